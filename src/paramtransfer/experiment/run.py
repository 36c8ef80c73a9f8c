"""A job: one upstream, one baseline, one downstream training, each found in the store or trained and kept there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from paramtransfer.errors import ConfigError
from paramtransfer.estimates import accuracy, paired_gain
from paramtransfer.experiment.description import describe
from paramtransfer.stage import SIDES, Side, Stage
from paramtransfer.tracking.claims import claim, wait_for
from paramtransfer.tracking.store import Store, as_json
from paramtransfer.trainer.checkpoints import Checkpoints
from paramtransfer.trainer.ranks import Order
from paramtransfer.trainer.stage_trainer import StageTrainer
from paramtransfer.transfer.callback import ParameterTransfer
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.rules import TransferRule

RANKS = "ranks"
"""Under the store's folder: where srun's tasks find what rank 0 hands over."""


class Tasks(Protocol):
    """What a job needs of its pair of tasks."""

    def data(self, side: Side, *, seed: int, replicates: int) -> Any:
        """The LightningDataModule of one side, with the number of `epochs` to train."""

    def label(self, side: Side) -> str:
        """The setting in a few words, for the names of runs."""

    def theory(self, stage: Stage, alpha: float) -> dict[str, float]:
        """The theory's values for one stage, as metrics."""

    def verdict(self, alpha: float) -> str:
        """What the theory predicts for the job, in words."""


class Models(Protocol):
    """What a job needs of its pair of architectures."""

    def build(self, data: Any) -> nn.Module:
        """A fresh model for one side's data."""

    def upstream(self, state: Mapping[str, Tensor] | None, data: Any) -> nn.Module:
        """The upstream model with a state, as the downstream's data sees it; with None, before its training."""

    def foreign(
        self, read_run: Callable[[str], dict[str, Tensor]], *, download: bool = True
    ) -> dict[str, Tensor] | None:
        """The state of an upstream from elsewhere, which may be a run; None where the upstream is trained."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """The settings that a stage's result depends on."""

    fingerprint: str
    params: Mapping[str, Any]
    """Configuration keys, flattened."""
    own_sources: Mapping[str, str]
    """The user's own classes' source files, by name, for the run's artifacts."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One experiment, as objects."""

    tasks: Tasks
    model: Models
    transfer: TransferRule
    training: Callable[..., LightningModule]
    trainer: StageTrainer
    stages: Mapping[Stage, StageSettings]
    seed: int
    replicates: int
    reuse: bool
    config: str
    """The resolved configuration, as YAML."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """How a stage ended."""

    run_id: str
    metrics: Mapping[str, float]
    state: Mapping[str, Tensor]
    hits_RN: Tensor
    reused: bool


def run(job: Job, store: Store, *, tags: Mapping[str, str]) -> dict[Stage, StageResult]:
    """Find or train every stage of a job.

    Args:
        job: the experiment.
        store: where runs are found and kept.
        tags: set on every run that the job uses.
    """
    foreign = _foreign(job, store.state)
    results: dict[Stage, StageResult] = {}
    run_ids: dict[Stage, str] = {}
    with job.trainer.ranks.leading(job.config, store.folder / RANKS), store.closing() as opened:
        for stage in job.stages:
            run_ids[stage] = _claim(job, stage, store, opened, run_ids, tags)
        for stage in job.stages:
            while stage not in results:
                if run_ids[stage] in opened and stage == "upstream" and foreign is not None:
                    results[stage] = _keep(store, run_ids[stage], foreign)
                elif run_ids[stage] in opened:
                    results[stage] = _train(job, stage, store, run_ids[stage], results)
                elif result := _reuse(store, run_ids[stage]):
                    results[stage] = result
                else:  # its process died, or its weights cannot be read
                    run_ids[stage] = _claim(job, stage, store, opened, run_ids, tags)
                    if stage != "downstream" and run_ids["downstream"] in opened:
                        store.tag(run_ids["downstream"], {f"{stage}_run_id": run_ids[stage]})
    return results


def _foreign(
    job: Job, read_run: Callable[[str], dict[str, Tensor]], *, download: bool = True
) -> dict[str, Tensor] | None:
    """The state of an upstream from elsewhere."""
    try:
        return job.model.foreign(read_run, download=download) if "upstream" in job.stages else None
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _keep(store: Store, run_id: str, state: dict[str, Tensor]) -> StageResult:
    """An upstream that is not trained here."""
    hits_RN = torch.zeros(1, 0, dtype=torch.bool)
    store.finish(run_id, metrics={}, result=_result(state, hits_RN), files={})
    return StageResult(run_id=run_id, metrics={}, state=state, hits_RN=hits_RN, reused=False)


def _result(state: Mapping[str, Tensor], hits_RN: Tensor) -> dict[str, Any]:
    """What a run keeps of a stage."""
    packed = torch.from_numpy(np.packbits(hits_RN.numpy(), axis=1))
    return {"state": dict(state), "hits": packed, "num_test": hits_RN.shape[1]}


def plan(job: Job, read_run: Callable[[str], dict[str, Tensor]]) -> Report:
    """What the downstream would inherit, tensor by tensor, without any training or download.

    Args:
        job: the experiment.
        read_run: the weights of a run, for an upstream from there.
    """
    data = job.tasks.data("downstream", seed=job.seed, replicates=job.replicates)
    upstream = job.model.upstream(_foreign(job, read_run, download=False), data)
    return job.transfer(upstream, job.model.build(data), seed=job.seed)[1]


def _claim(
    job: Job, stage: Stage, store: Store, opened: list[str], run_ids: Mapping[Stage, str], tags: Mapping[str, str]
) -> str:
    """The run that a stage's result comes from: of an earlier job, of one that trains it now, or a new one in `opened`.

    Args:
        run_ids: what is known already; a downstream run names the other two.
    """
    settings = job.stages[stage]
    others = {f"{other}_run_id": run_ids[other] for other in run_ids if stage == "downstream" != other}

    def create() -> str:
        return store.create(
            opened,
            name=_name(job, stage),
            tags={"stage": stage, "fingerprint": settings.fingerprint, **others, **tags},
            params=settings.params,
            files={"config.yaml": job.config, **settings.own_sources},
        )

    run_id = claim(store, opened, settings.fingerprint, create) if job.reuse else create()
    store.tag(run_id, {**others, **tags} if run_id in opened else tags)
    return run_id


def _reuse(store: Store, run_id: str) -> StageResult | None:
    """What another job's run ended with, as soon as it ends."""
    found = store.load(run_id) if wait_for(store, run_id) else None
    if found is None:
        return None
    run, saved = found
    hits_RN = torch.from_numpy(np.unpackbits(saved["hits"].numpy(), axis=1, count=saved["num_test"])).bool()
    return StageResult(run_id=run_id, metrics=run.data.metrics, state=saved["state"], hits_RN=hits_RN, reused=True)


def _name(job: Job, stage: Stage) -> str:
    inherited = f" {job.transfer.label}" if stage == "downstream" else ""
    return f"{stage}{inherited} {job.tasks.label(SIDES[stage])} seed={job.seed}"


def _train(job: Job, stage: Stage, store: Store, run_id: str, results: Mapping[Stage, StageResult]) -> StageResult:
    """Train and test one stage in a Lightning training of its own."""
    logger, minutes = store.logger(run_id), job.trainer.checkpoint_minutes
    checkpoints = Checkpoints(store.checkpoints(run_id), minutes=minutes, before=logger.flush)
    upstream = results["upstream"].state if stage == "downstream" and "upstream" in results else None
    order = Order(stage=stage, upstream=upstream, checkpoint=checkpoints.latest())
    job.trainer.ranks.hand_over(order)
    module, inheritance = _fit_and_test(job, order, logger, checkpoints)

    hits_RN: Tensor = module.hits
    test = accuracy(hits_RN)
    metrics = {"test/acc": test.mean, "test/acc_sem": test.sem, **module.metrics}
    metrics |= job.tasks.theory(stage if "upstream" in job.stages else "baseline", job.transfer.alpha)
    files = {}
    if inheritance is not None:
        baseline = results["baseline"]
        gain = paired_gain(hits_RN, baseline.hits_RN)
        metrics |= {"test/gain": gain.mean, "test/gain_sem": gain.sem}
        metrics["test/acc_without_transfer"] = baseline.metrics["test/acc"]
        metrics["test/acc_without_transfer_sem"] = baseline.metrics["test/acc_sem"]
        files["transfer.json"] = as_json(inheritance.report.as_dict())
        verdict = job.tasks.verdict(job.transfer.alpha if "upstream" in job.stages else 0.0)
        files |= {"theory.txt": f"{verdict}\n"} if verdict else {}
    state = {name: tensor.detach().cpu() for name, tensor in module.model.state_dict().items()}
    inherited = inheritance.report.summary if inheritance is not None else ""
    links = {other: store.link(other, found.run_id) for other, found in results.items()}
    description = describe(stage, metrics, hits_RN.shape, inherited=inherited, links=links)
    store.finish(run_id, metrics=metrics, result=_result(state, hits_RN), files=files, description=description)
    checkpoints.clear()
    return StageResult(run_id=run_id, metrics=metrics, state=state, hits_RN=hits_RN, reused=False)


def _fit_and_test(
    job: Job, order: Order, logger: Logger | None, checkpoints: Checkpoints
) -> tuple[Any, ParameterTransfer | None]:
    """One Lightning training, of every rank; the trained module, and what it inherited."""
    data = job.tasks.data(SIDES[order.stage], seed=job.seed, replicates=job.replicates)
    data.test_every_epoch = job.trainer.test_every_epoch and order.stage != "upstream"
    module: Any = job.training(job.trainer.prepare(job.model.build(data)))
    inheritance = None
    if order.stage == "downstream":
        inheritance = ParameterTransfer(job.transfer, job.model.upstream(order.upstream, data), seed=job.seed)
    callbacks: list[Callback] = [*([inheritance] if inheritance else []), checkpoints]  # held tensors first
    trainer = job.trainer(order.stage, epochs=data.epochs, logger=logger, callbacks=callbacks)
    trainer.fit(module, data, ckpt_path=order.checkpoint, weights_only=True)
    trainer.test(module, data, verbose=False)
    return module, inheritance


def follow(job: Job, folder: Path, *, rank: int | None = None) -> None:
    """Train along with rank 0, which alone knows the store.

    Args:
        job: the same as rank 0's.
        folder: where it hands its stages over.
        rank: the own one, if rank 0 has started this process.
    """

    def train(order: Order) -> None:
        checkpoints = Checkpoints(folder, minutes=job.trainer.checkpoint_minutes, before=lambda: None)
        _fit_and_test(job, order, None, checkpoints)

    job.trainer.ranks.follow(folder, train, rank=rank)
