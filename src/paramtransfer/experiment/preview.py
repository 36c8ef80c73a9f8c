"""Before anything is trained: how many trainings there are, which the store has already, how long the others take."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from paramtransfer.experiment.identity import Identity
from paramtransfer.experiment.job import Job
from paramtransfer.experiment.why_trained import differing, nearest
from paramtransfer.metrics import TRAINING_SECONDS
from paramtransfer.stage import Stage
from paramtransfer.tracking.runs import RunRecord
from paramtransfer.tracking.store import Store

_NEWEST = 1000
_FEW = 3
_ANYBODY = -1  # shares a training that any job may have left
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
    reasons: Sequence[str]
    """Of the first trainings: which finished run comes nearest, and what it differs in."""
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
            unknown = "No estimate of time: nothing of this size has been trained in this store."
            return "\n".join([*lines, unknown, *self.reasons])
        shown = list(self.differences[:_FEW]) + ["..."] * (len(self.differences) > _FEW)
        basis = f"that differ in {', '.join(shown)}" if shown else "with the same settings"
        estimate = f"Training takes about {_duration(self.seconds)} in all, judged by finished runs {basis}"
        unknown = f"; nothing is known of {self.num_unknown}" if self.num_unknown else ""
        return "\n".join([*lines, f"{estimate}{unknown}. Jobs that run at the same time share it.", *self.reasons])


def preview(store: Store, jobs: Iterable[Job], *, refused: Sequence[str] = ()) -> Preview:
    """Look the stages of some jobs up in the store; nothing is created there.

    Args:
        store: where finished runs are.
        jobs: what is to run.
        refused: why other jobs cannot run.
    """
    num_jobs = len(refused)
    wanted: dict[tuple[int, str], tuple[Stage, Identity]] = {}
    for number, job in enumerate(jobs):
        num_jobs += 1
        owner = _ANYBODY if job.reuse else number
        wanted |= {(owner, identity.fingerprint): (stage, identity) for stage, identity in job.stages.items()}
    newest = list(store.runs("attributes.status = 'FINISHED'", newest_first=True, at_most=_NEWEST))
    shared = {fingerprint for owner, fingerprint in wanted if owner == _ANYBODY}
    reused = {(_ANYBODY, fingerprint) for fingerprint in _finished(store, shared, newest)}
    missing = [wanted[key] for key in wanted if key not in reused]
    seconds, num_unknown, differences = 0.0, 0, dict[str, None]()
    for stage, identity in missing:
        near, differing = _alike_trainings(stage, identity, newest)
        seconds += sum(near) / len(near) if near else 0.0
        num_unknown += not near
        differences |= dict.fromkeys(differing)
    asked = [wanted[key] for key in wanted if key not in reused and key[0] == _ANYBODY]
    reasons = (nearest(store, stage, identity, newest) for stage, identity in asked[:_FEW])
    return Preview(
        num_jobs=num_jobs,
        num_trainings=len(wanted),
        num_reused=len(reused),
        seconds=seconds,
        num_unknown=num_unknown,
        differences=list(differences),
        reasons=list(filter(None, reasons)),
        refused=refused,
    )


def _finished(store: Store, fingerprints: Collection[str], newest: Sequence[RunRecord]) -> set[str]:
    """Which of some fingerprints have finished: a question of its own for each that is not among the newest runs."""
    found = {run.tags.get("fingerprint", "") for run in newest} & set(fingerprints)
    if len(newest) == _NEWEST:
        for fingerprint in set(fingerprints) - found:
            own = f"attributes.status = 'FINISHED' and tags.fingerprint = '{fingerprint}'"
            found |= {fingerprint for _ in store.runs(own, at_most=1)}
    return found


def _alike_trainings(stage: Stage, identity: Identity, finished: Iterable[RunRecord]) -> tuple[list[float], list[str]]:
    """Seconds of the alike trainings that differ in the fewest parameters, and in which."""
    near: list[float] = []
    closest: list[str] = []
    params = {key: str(value) for key, value in identity.settings.items()}
    for run in finished:
        if run.tags.get("stage") != stage or params.keys() != run.params.keys() or TRAINING_SECONDS not in run.metrics:
            continue
        keys = [key for key in differing(params, run.params) if key != "seed"]
        if all(_alike(params[key], run.params[key]) for key in keys):
            if not near or len(keys) < len(closest):
                near, closest = [], keys
            if len(keys) == len(closest):
                near.append(run.metrics[TRAINING_SECONDS])
    return near, closest


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
