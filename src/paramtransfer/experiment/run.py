"""A job: one upstream, one baseline, one downstream training, each found in the store or trained and kept there."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from paramtransfer.errors import ConfigError, LostRun
from paramtransfer.experiment.job import Job, ReadRun, StageResult
from paramtransfer.experiment.outcome import outcome
from paramtransfer.experiment.train import INHERITED, train
from paramtransfer.experiment.why_trained import SETTINGS, why_trained
from paramtransfer.stage import SIDES, Stage
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.masking import masked
from paramtransfer.tracking.results import Result
from paramtransfer.tracking.store import Store
from paramtransfer.transfer.callback import ParameterTransfer
from paramtransfer.transfer.report import Report

_THREADS = "threads"
RANKS = "ranks"
"""Under the store's folder: where srun's tasks find what rank 0 hands over."""

log = logging.getLogger(__name__)


def run(job: Job, store: Store, *, tags: Mapping[str, str], follower: Sequence[str] = ()) -> dict[Stage, StageResult]:
    """Find or train every stage of a job.

    Args:
        job: the experiment.
        store: where runs are found and kept.
        tags: set on every run that the job uses.
        follower: the command that starts a further process of a job with several; a folder and a rank are added.
    """
    foreign = foreign_state(job, lambda run_id: store.result(run_id).state)
    with job.trainer.ranks.leading(job.config, store.folder / RANKS, follower), Session(store) as session:
        session.bury_dead()
        stages = _Stages(job, session, tags)
        for stage in job.stages:
            stages.claim(stage)
        for stage in job.stages:
            stages.complete(stage, foreign)
        session.look_again()
    return stages.results


def foreign_state(job: Job, read_run: ReadRun, *, download: bool = True) -> Mapping[str, Tensor] | None:
    """The state of an upstream from elsewhere; None where it is trained, or would have to be downloaded.

    Raises:
        ConfigError: it cannot be read, or is of another architecture.
    """
    try:
        return job.model.foreign(read_run, download=download) if "upstream" in job.stages else None
    except ValueError as error:
        raise ConfigError(str(error)) from error


def plan(job: Job, read_run: ReadRun) -> Report:
    """What the downstream would inherit, tensor by tensor, without any training or download.

    With weights that are at hand, how much of the upstream's features arrives, too.

    Args:
        job: the experiment.
        read_run: the weights of a run, for an upstream from there.
    """
    data = job.tasks.data("downstream", seed=job.seed, replicates=job.replicates)
    foreign = foreign_state(job, read_run, download=False)
    inheritance = ParameterTransfer(job.transfer, job.model.upstream(foreign, data), seed=job.seed)
    return inheritance.preview(job.model.build(data), data, explain=foreign is not None)


class _Stages:
    """The stages of a job on their way: first each has a run, then each has a result."""

    def __init__(self, job: Job, session: Session, tags: Mapping[str, str]) -> None:
        self._job = job
        self._session = session
        self._tags = tags
        self._attempt = {} if job.reuse else session.attempt(job.stages["downstream"].fingerprint)
        self._run_ids: dict[Stage, str] = {}
        self.results: dict[Stage, StageResult] = {}

    def claim(self, stage: Stage) -> None:
        """Name the run that a stage's result comes from: of an earlier job, of one that trains it now, or a new one."""
        identity = self._job.stages[stage]
        others = {
            f"{other}_run_id": run_id for other, run_id in self._run_ids.items() if stage == "downstream" != other
        }

        def create() -> str:
            if self._job.reuse:
                why_trained(self._session.store, stage, identity, in_sweep=bool(self._tags))
            return self._session.create(
                name=self._name(stage),
                tags={
                    "stage": stage,
                    "fingerprint": identity.fingerprint,
                    SETTINGS: identity.hash_of_settings,
                    _THREADS: str(torch.get_num_threads()),
                    **others,
                    **self._attempt,
                    **self._tags,
                },
                params=identity.settings,
                files={
                    "config.yaml": self._job.config,
                    "identity.json": identity.as_json(),
                    **{name: masked(source) for name, source in identity.own_sources.items()},
                },
            )

        run_id = self._session.claim(identity.fingerprint, create, among=self._attempt)
        tags = {**others, **self._threads(run_id), **self._tags} if self._session.owns(run_id) else self._tags
        self._session.store.tag(run_id, tags)
        self._run_ids[stage] = run_id

    def _threads(self, run_id: str) -> dict[str, str]:
        """Sums depend on their order, and it on the number of threads: said, though no part of a result's identity."""
        now, before = str(torch.get_num_threads()), self._session.store.run(run_id).tags.get(_THREADS)
        if before not in (None, now):
            log.warning(f"run {run_id} goes on with {now} threads instead of {before}: the last digits may differ")
        return {_THREADS: now}

    def _name(self, stage: Stage) -> str:
        inherited = f" {self._job.transfer.label}" if stage == "downstream" else ""
        return f"{stage}{inherited} {self._job.tasks.label(SIDES[stage])} seed={self._job.seed}"

    def complete(self, stage: Stage, foreign: Mapping[str, Tensor] | None) -> None:
        """Train a stage that is this job's own; take another's as soon as it ends, and its place where it died."""
        while stage not in self.results:
            run_id = self._run_ids[stage]
            if self._session.owns(run_id):
                with self._unless_lost(run_id):
                    if stage == "upstream" and foreign is not None:
                        self.results[stage] = self._keep(run_id, foreign)
                    else:
                        self.results[stage] = train(self._job, stage, self._session, run_id, self.results)
            elif result := self._take(stage, run_id):
                self.results[stage] = result
            else:
                self._claim_again(stage)

    @contextmanager
    def _unless_lost(self, run_id: str) -> Iterator[None]:
        """If another process has taken the run over, its result is waited for; where others train along, it ends."""
        try:
            yield
        except LostRun:
            if self._job.trainer.ranks.size > 1:
                raise
            self._session.forget(run_id)

    def _keep(self, run_id: str, state: Mapping[str, Tensor]) -> StageResult:
        """An upstream that is not trained here."""
        result = Result(state=state, hits_RN=torch.zeros(1, 0, dtype=torch.bool))
        self._session.finish(run_id, result, metrics={}, files={})
        return StageResult(run_id=run_id, metrics={}, state=state, hits_RN=result.hits_RN, reused=False)

    def _take(self, stage: Stage, run_id: str) -> StageResult | None:
        """What another job's run ended with; what derives from it is brought up to date. None if it is of no use."""
        run = self._session.wait(run_id)
        result = self._session.result(run_id) if run else None
        if run is None or result is None:
            return None
        baseline_hits_RN = self.results["baseline"].hits_RN if stage == "downstream" else None
        derived = outcome(self._job, stage, result.hits_RN, baseline_hits_RN)
        if stale := {name: value for name, value in derived.items() if run.metrics.get(name) != value}:
            self._session.store.log_metrics(run_id, stale)
        metrics = {**run.metrics, **derived}
        inherited = run.tags.get(INHERITED, "")
        return StageResult(
            run_id=run_id,
            metrics=metrics,
            state=result.state,
            hits_RN=result.hits_RN,
            reused=True,
            inherited=inherited,
        )

    def _claim_again(self, stage: Stage) -> None:
        """The run's process died, or its weights cannot be read."""
        self.claim(stage)
        downstream = self._run_ids.get("downstream", "")  # an advice trains the baseline alone
        if stage != "downstream" and self._session.owns(downstream):
            self._session.store.tag(downstream, {f"{stage}_run_id": self._run_ids[stage]})
