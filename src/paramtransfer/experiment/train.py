"""One stage of a job in a Lightning training of its own, of all ranks; rank 0 keeps the result."""

import json
from collections.abc import Mapping
from pathlib import Path

from pytorch_lightning.loggers import Logger

from paramtransfer.experiment.job import Job, StageResult
from paramtransfer.experiment.outcome import outcome
from paramtransfer.experiment.run_description import describe
from paramtransfer.stage import SIDES, Stage
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.results import Result
from paramtransfer.tracking.store import DESCRIPTION
from paramtransfer.trainer.checkpoints import Checkpoints
from paramtransfer.trainer.ranks import Order
from paramtransfer.training.fit import StageModule, fit_and_test
from paramtransfer.transfer.callback import ParameterTransfer
from paramtransfer.transfer.report import Report

INHERITED = "inherited"
"""The tag of what a downstream run inherited, in one line."""


def train(job: Job, stage: Stage, session: Session, run_id: str, earlier: Mapping[Stage, StageResult]) -> StageResult:
    """Train and test a stage, and finish its run.

    Args:
        job: the experiment.
        stage: one of its stages.
        session: has opened the run.
        run_id: where curves and results go.
        earlier: how the stages before it ended.
    """
    logger = session.begin(run_id)
    minutes = job.trainer.checkpoint_minutes
    checkpoints = Checkpoints(session.checkpoints(run_id), minutes=minutes, before=logger.flush)
    upstream = earlier["upstream"].state if stage == "downstream" and "upstream" in earlier else None
    order = Order(stage=stage, upstream=upstream, checkpoint=checkpoints.latest())
    job.trainer.ranks.hand_over(order)
    module, report = _fit(job, order, logger, checkpoints)

    state = {name: tensor.detach().cpu() for name, tensor in module.model.state_dict().items()}
    result = Result(state=state, hits_RN=module.hits)
    baseline_hits_RN = earlier["baseline"].hits_RN if stage == "downstream" else None
    metrics = {**module.metrics, **outcome(job, stage, result.hits_RN, baseline_hits_RN)}
    metrics |= report.compared.metrics if report is not None and report.compared is not None else {}
    inherited = report.summary if report is not None else ""
    links = {other: session.store.link(other, found.run_id) for other, found in earlier.items()}
    description = describe(stage, metrics, result.hits_RN.shape, inherited=inherited, links=links)
    tags = {DESCRIPTION: description, **({INHERITED: inherited} if inherited else {})}
    session.finish(run_id, result, metrics=metrics, files=_files(job, report), tags=tags)
    checkpoints.clear()
    return StageResult(
        run_id=run_id, metrics=metrics, state=state, hits_RN=result.hits_RN, reused=False, inherited=inherited
    )


def follow(job: Job, folder: Path, *, rank: int | None = None) -> None:
    """Train along with rank 0, which alone knows the store.

    Args:
        job: the same as rank 0's.
        folder: where it hands its stages over.
        rank: the own one, if rank 0 has started this process.
    """

    def along(order: Order) -> None:
        checkpoints = Checkpoints(folder, minutes=job.trainer.checkpoint_minutes, before=lambda: None)
        _fit(job, order, None, checkpoints)

    job.trainer.ranks.follow(folder, along, rank=rank)


def _fit(job: Job, order: Order, logger: Logger | None, checkpoints: Checkpoints) -> tuple[StageModule, Report | None]:
    """The trained module, and what it inherited."""
    data = job.tasks.data(SIDES[order.stage], seed=job.seed, replicates=job.replicates)
    data.test_every_epoch = job.trainer.test_every_epoch and order.stage != "upstream"
    module = job.training(job.trainer.prepare(job.model.build(data)))
    inheritance = None
    if order.stage == "downstream":
        inheritance = ParameterTransfer(job.transfer, job.model.upstream(order.upstream, data), seed=job.seed)
    fit_and_test(
        module,
        data,
        inheritance=inheritance,
        others=[checkpoints],
        make_trainer=lambda callbacks: job.trainer(order.stage, epochs=data.epochs, logger=logger, callbacks=callbacks),
        make_trial=lambda epochs: job.trainer(order.stage, epochs=epochs, logger=None, callbacks=[]),
        checkpoint=order.checkpoint,
    )
    return module, None if inheritance is None else inheritance.report


def _files(job: Job, report: Report | None) -> dict[str, str]:
    """What a downstream run keeps beside its result."""
    if report is None:
        return {}
    account = json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n"
    return {"transfer.json": account, **({"theory.txt": f"{job.verdict}\n"} if job.verdict else {})}
