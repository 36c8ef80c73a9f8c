"""Before anything is trained: how many trainings there are, which the store has already, how long the others take."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from paramtransfer.experiment.run import Job
from paramtransfer.tracking.history import Training, read_history
from paramtransfer.tracking.store import Store

_FEW = 3
_FACTOR = 4.0


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What jobs come to."""

    num_jobs: int
    num_trainings: int
    """Different trainings that the jobs need: those that are shared count once."""
    num_reused: int
    """Those that are in the store already."""
    seconds: float
    """Estimated seconds of training, of those that are to be trained and that there is an estimate for."""
    num_unknown: int
    """Trainings without an estimate: nothing like them is in the store."""
    differences: Sequence[str]
    """Keys in which the trainings behind the estimate differ from those that are to be trained."""
    refused: Sequence[str]
    """Why some of the jobs cannot run, in one sentence each."""

    def __str__(self) -> str:
        """A few lines for the terminal."""
        jobs = f"{self.num_jobs} job{'s' * (self.num_jobs != 1)}"
        num_new = self.num_trainings - self.num_reused
        lines = [f"{jobs}: {self.num_trainings} different trainings, {self.num_reused} reused, {num_new} to train."]
        refused = "Refused, the others run" if self.num_jobs > len(self.refused) else "Refused"
        lines += [f"{refused}: {reason}" for reason in dict.fromkeys(self.refused)]
        if num_new == 0:
            return "\n".join(lines)
        if self.num_unknown == num_new:
            return "\n".join([*lines, "No estimate of time: nothing of this size has been trained in this store."])
        shown = list(self.differences[:_FEW]) + ["..."] * (len(self.differences) > _FEW)
        basis = f"that differ in {', '.join(shown)}" if shown else "with the same settings"
        estimate = f"Training takes about {_duration(self.seconds)} in all, judged by finished runs {basis}"
        unknown = f"; nothing is known of {self.num_unknown}" if self.num_unknown else ""
        return "\n".join([*lines, f"{estimate}{unknown}. Jobs that run at the same time share it."])


def preview(store: Store, jobs: Iterable[Job], *, refused: Sequence[str] = ()) -> Preview:
    """Look the stages of some jobs up in the store; nothing is created there.

    Args:
        store: where finished runs are.
        jobs: what is to run.
        refused: why other jobs cannot run.
    """
    num_jobs = len(refused)
    wanted: dict[str, tuple[str, Mapping[str, str]]] = {}
    reuse = True
    for job in jobs:
        num_jobs += 1
        reuse = reuse and job.reuse
        for stage, settings in job.stages.items():
            wanted[settings.fingerprint] = (stage, {key: str(value) for key, value in settings.params.items()})
    history = read_history(store, wanted)
    reused = history.fingerprints if reuse else ()
    seconds, num_unknown, differences = 0.0, 0, dict[str, None]()
    for fingerprint, (name, params) in wanted.items():
        if fingerprint in reused:
            continue
        near, differing = _nearest(name, params, history.trainings)
        seconds += sum(near) / len(near) if near else 0.0
        num_unknown += not near
        differences |= dict.fromkeys(differing)
    return Preview(
        num_jobs=num_jobs,
        num_trainings=len(wanted),
        num_reused=len(reused),
        seconds=seconds,
        num_unknown=num_unknown,
        differences=list(differences),
        refused=refused,
    )


def _nearest(stage: str, params: Mapping[str, str], trainings: Iterable[Training]) -> tuple[list[float], list[str]]:
    """Seconds of the alike trainings that differ in the fewest parameters, and in which."""
    near: list[float] = []
    differing: list[str] = []
    for training in trainings:
        others = training.params
        if training.stage != stage or params.keys() != others.keys():
            continue
        keys = [key for key in params if key != "seed" and params[key] != others[key]]
        if all(_alike(params[key], others[key]) for key in keys):
            if not near or len(keys) < len(differing):
                near, differing = [], keys
            if len(keys) == len(differing):
                near.append(training.seconds)
    return near, differing


def _alike(one: str, other: str) -> bool:
    """Whether two numbers ask for about the same work: within a factor of 4, and below 4 whatever they are."""
    try:
        small, large = sorted(max(abs(float(text)), _FACTOR) for text in (one, other))
    except ValueError:
        return False
    return large <= _FACTOR * small


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 1):.0f} s"
