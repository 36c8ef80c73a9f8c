"""A job as objects: its pair of tasks, its pair of models, what is inherited, how it is trained, and how stages end.

Shape letters: R replicates, N test points.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from paramtransfer.experiment.identity import Identity
from paramtransfer.stage import Side, Stage
from paramtransfer.task.stage_data import StageData
from paramtransfer.trainer.stage_trainer import StageTrainer
from paramtransfer.training.fit import StageModule
from paramtransfer.transfer.rules import TransferRule

ReadRun = Callable[[str], Mapping[str, Tensor]]
"""The weights that a run keeps, by its id."""


class Tasks(Protocol):
    """What a job needs of its pair of tasks."""

    def data(self, side: Side, *, seed: int, replicates: int) -> StageData:
        """The data of one side."""

    def label(self, side: Side) -> str:
        """The setting in a few words, for the names of runs."""

    def theory(self, stage: Stage, alpha: float) -> Mapping[str, float]:
        """The theory's values for one stage, as metrics."""

    def verdict(self, alpha: float) -> str:
        """What the theory predicts for the job, in words."""


class Models(Protocol):
    """What a job needs of its pair of architectures."""

    def build(self, data: StageData) -> nn.Module:
        """A fresh model for one side's data."""

    def upstream(self, state: Mapping[str, Tensor] | None, data: StageData) -> nn.Module:
        """The upstream model with a state, as the downstream's data sees it; with None, before its training."""

    def foreign(self, read_run: ReadRun, *, download: bool = True) -> Mapping[str, Tensor] | None:
        """The state of an upstream from elsewhere, which may be a run; None where the upstream is trained."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One experiment, as objects."""

    tasks: Tasks
    model: Models
    transfer: TransferRule
    training: Callable[[nn.Module], StageModule]
    trainer: StageTrainer
    stages: Mapping[Stage, Identity]
    """What identifies each stage, in the order that they are trained in."""
    seed: int
    replicates: int
    reuse: bool
    config: str
    """The resolved configuration, as YAML."""

    @property
    def alpha(self) -> float:
        """The share inherited times its scale, as the theory sees them: 0 without an upstream."""
        return self.transfer.alpha * self.transfer.scale if "upstream" in self.stages else 0.0

    @property
    def verdict(self) -> str:
        """What the theory predicts, in words; nothing where it does not speak of the rule."""
        return "" if math.isnan(self.alpha) else self.tasks.verdict(self.alpha)

    def theory(self, stage: Stage) -> Mapping[str, float]:
        """The theory's values for a stage; none where it does not speak of the rule."""
        seen: Stage = stage if "upstream" in self.stages else "baseline"  # without an upstream, task 1 is nobody's
        alpha = self.transfer.alpha * self.transfer.scale
        return {} if math.isnan(alpha) else self.tasks.theory(seen, alpha)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """How a stage ended."""

    run_id: str
    metrics: Mapping[str, float]
    state: Mapping[str, Tensor]
    hits_RN: Tensor
    reused: bool
    inherited: str = ""
    """What a downstream inherited, in one line."""
