"""The LightningModule of the synthetic job: one Lightning step holds many steps of full-batch gradient descent.

Shape letters: R replicates, N samples.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from paramtransfer.checks import flag, refusal
from paramtransfer.dataset.signal_noise import FreshSamples, Samples
from paramtransfer.errors import TrainingError
from paramtransfer.metrics import LOSS_CURVE, TEST_CURVE, TRAINING_SECONDS
from paramtransfer.model.two_layer_cnn import TwoLayerCNN, output
from paramtransfer.optim.optimizers import GradientDescent
from paramtransfer.stage import Stage
from paramtransfer.task.synthetic import FullBatch
from paramtransfer.training.dynamics import Observer
from paramtransfer.training.fit import StageModule
from paramtransfer.training.leap import Leap
from paramtransfer.training.solver import GramSolver, Measured, Solver
from paramtransfer.training.tail_error import tail_error

MakeSolver = Callable[[TwoLayerCNN, Samples, float], Solver]


class Margins:
    """y f(W; x) of a model that stays as it is, over the points of one task."""

    @torch.no_grad()
    def __init__(self, model: TwoLayerCNN, points: FreshSamples | Samples) -> None:
        filters_RFD = model.filters.flatten(1, 2)
        signal_R1F = (filters_RFD @ points.signal_RD[..., None]).mT
        self._on_positive_R1, self._on_negative_R1 = output(signal_R1F), output(-signal_R1F)
        self._noise_map = points.noise_map(filters_RFD)

    @torch.no_grad()
    def __call__(self, points: FreshSamples | Samples) -> Tensor:
        """Of these points: (R, N)."""
        on_signal_RN = torch.where(points.labels_RN > 0, self._on_positive_R1, self._on_negative_R1)
        return points.labels_RN * (on_signal_RN + output(points.standard_noise @ self._noise_map.mT))


def margins(model: TwoLayerCNN, points: FreshSamples | Samples) -> Tensor:
    """y f(W; x): (R, N)."""
    return Margins(model, points)(points)


def is_right(margins_RN: Tensor) -> Tensor:
    """Not an error as Section 3 counts it, y f(W; x) < 0: (R, N) of bool."""
    return margins_RN >= 0


class FullBatchTraining(StageModule):
    """Trains all replicates of a two-layer CNN at once.

    Attributes:
        hits: after testing, which test points each replicate has on the right side: (R, N) of bool.
        metrics: after fitting, what is known only then.
        num_batches: taken so far.
    """

    model: TwoLayerCNN

    def __init__(
        self,
        *,
        model: TwoLayerCNN,
        optim: GradientDescent,
        solver: MakeSolver,
        dynamics: bool,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self._optim = optim
        self._make_solver = solver
        self._solver: Solver | None = None
        self._dynamics = dynamics
        self._observer: Observer | None = None
        self._num_steps = 0
        self.num_batches = 0
        self._state: dict[str, Tensor] = {}
        self._hits: list[Tensor] = []
        self.metrics: dict[str, float] = {}

    def solver(self, model: TwoLayerCNN, samples: Samples, *, scale: float = 1.0) -> Solver:
        """What trains a model on samples, `scale` times the step size a step."""
        return self._make_solver(model, samples, scale * self._optim.lr)

    def configure_optimizers(self) -> list[Optimizer]:
        """The solver takes the steps."""
        return []

    def training_step(self, batch: FullBatch, batch_idx: int) -> None:
        started = time.perf_counter()
        if self._solver is None:
            self._solver = self.solver(self.model, batch.samples)
            if self._state:
                self._solver.resume(self._state)
            if self._dynamics:
                self._observe(self._solver, batch.samples)
        self._solver.advance(batch.num_steps)
        loss = self._solver.loss().mean().item()
        seconds = time.perf_counter() - started

        self._num_steps += batch.num_steps
        self.num_batches += 1
        if not math.isfinite(loss):
            raise TrainingError(
                f"training diverged: the loss is {loss} after {self._num_steps} steps with optim.lr={self._optim.lr:g}"
            )
        self._solver.write()
        accuracy = is_right(margins(self.model, batch.test_points)).float().mean().item()
        self.metrics = {TRAINING_SECONDS: self.metrics.get(TRAINING_SECONDS, 0.0) + seconds}
        if isinstance(self._solver, Measured):
            self.metrics |= self._solver.metrics()
        self.log("loss", loss, prog_bar=True, logger=False)
        curves = {LOSS_CURVE: loss, TEST_CURVE: accuracy}
        if self._observer is not None:
            curves |= self._observer.now(self._num_steps)
        if self.logger is not None:
            self.logger.log_metrics(curves, step=self._num_steps)

    def _observe(self, solver: Solver, samples: Samples) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(solver, GramSolver)
        self._observer = Observer(solver, samples, data.setting)
        if self.logger is not None:
            self.logger.log_metrics({**self._observer.at_start(), **self._observer.now(0)}, step=0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The solver's state, and how far it is."""
        assert self._solver is not None
        done = {"steps": self._num_steps, "batches": self.num_batches, "metrics": self.metrics}
        checkpoint["so_far"] = {**done, "solver": self._solver.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with it."""
        so_far = checkpoint["so_far"]
        self._num_steps, self.num_batches = so_far["steps"], so_far["batches"]
        self.metrics, self._state = so_far["metrics"], so_far["solver"]

    def on_train_end(self) -> None:
        self._solver = self._observer = None  # frees what only training needs

    def on_test_start(self) -> None:
        self._hits = []

    def test_step(self, batch: FreshSamples | Samples, batch_idx: int) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if batch_idx == 0:
            self._margins = Margins(self.model, batch)
            if data.tail_error:
                assert isinstance(batch, FreshSamples)
                self.metrics |= tail_error(self._margins, batch, data.streams("tail")).metrics()
        self._hits.append(is_right(self._margins(batch)).cpu())

    def on_test_end(self) -> None:
        self.hits = torch.cat(self._hits, dim=1)


class FullBatchDescent:
    """Makes the LightningModule of each stage.

    Args:
        optim: the step size.
        solver: how the steps are taken.
        dynamics: whether signal learning and noise memorization are logged along the curves.

    Raises:
        ValueError: dynamics asked of a solver that does not know them.
    """

    def __init__(self, *, optim: GradientDescent, solver: MakeSolver, dynamics: bool = False) -> None:
        knows = isinstance(solver, Leap) or getattr(solver, "func", solver) is GramSolver
        if flag("task.training.dynamics", dynamics) and not knows:
            allowed = "false unless solver=gram or solver=leap, which the coefficients come from"
            raise refusal("task.training.dynamics", dynamics, allowed)
        self._settings: dict[str, Any] = {"optim": optim, "solver": solver, "dynamics": dynamics}

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on."""
        return {"solver": dict(self._settings["solver"].keywords), "dynamics": self._settings["dynamics"]}

    def __call__(self, model: TwoLayerCNN) -> FullBatchTraining:
        return FullBatchTraining(model=model, **self._settings)
