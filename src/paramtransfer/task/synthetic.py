"""The two synthetic tasks of Section 5 as LightningDataModules.

Shape letters: R replicates, F filters (both signs), D coordinates.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from paramtransfer import theory
from paramtransfer.checks import flag, number, refusal, whole
from paramtransfer.dataset.signal_noise import Draw, FreshSamples, Samples, SignalNoise
from paramtransfer.model.two_layer_cnn import TwoLayerCNNs
from paramtransfer.optim.optimizers import GradientDescent
from paramtransfer.randomness import stream
from paramtransfer.stage import SIDES, Side, Stage
from paramtransfer.task.stage_data import StageData

_CURVE_TEST_POINTS = 1000

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SideSettings:
    """One task.

    Raises:
        ValueError: a value that is out of range, named by its configuration key.
    """

    side: Side
    num_samples: int
    """N_k, training samples."""
    noise: float
    """sigma_{p,k}, read as `dataset.noise_scale` says."""
    steps: int
    """T_k, gradient steps."""

    def __post_init__(self) -> None:
        key = f"task.{self.side}"
        object.__setattr__(self, "num_samples", whole(f"{key}.num_samples", self.num_samples, at_least=1))
        object.__setattr__(self, "noise", number(f"{key}.noise", self.noise, at_least=0))
        object.__setattr__(self, "steps", whole(f"{key}.steps", self.steps, at_least=1))

    @property
    def values(self) -> dict[str, float]:
        """The numbers, by key."""
        return {"num_samples": self.num_samples, "noise": self.noise, "steps": self.steps}


class FullBatch(NamedTuple):
    """One Lightning step: several gradient steps on all samples, then a look at some test points."""

    samples: Samples
    test_points: FreshSamples | Samples
    num_steps: int


class Batches(Generic[T]):
    """Batches made when asked for: a dataloader, as Lightning takes it."""

    def __init__(self, make: Callable[[], Iterator[T]], num_batches: int) -> None:
        self._make = make
        self._num_batches = num_batches

    def __iter__(self) -> Iterator[T]:
        return self._make()

    def __len__(self) -> int:
        return self._num_batches

    def state_dict(self) -> dict[str, object]:
        """None: the training's own count says where to go on."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """There is none."""


class SyntheticTask(StageData):
    """One task for one stage, drawn when first asked for; baseline and downstream of a seed draw the same."""

    epochs = 1

    def __init__(self, tasks: "SyntheticTasks", side: Side, *, seed: int, replicates: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.side = side
        self.seed = seed
        self.replicates = replicates
        self.settings = tasks.sides[side]
        self.tail_error = tasks.tail_error

    @cached_property
    def _draw(self) -> Draw:
        return self.tasks.dataset.draw(
            self.side,
            self.tasks.coordinates[self.side],
            num_samples=self.settings.num_samples,
            noise=self.settings.noise,
            seed=self.seed,
            replicates=self.replicates,
        )

    def streams(self, name: str) -> list[np.random.Generator]:
        """Random streams of this side's own, one for each replicate."""
        return [stream(f"{self.side} {name}", seed=self.seed, replicate=r) for r in range(self.replicates)]

    @property
    def initial_RFD(self) -> Tensor:
        """Standard normal filters."""
        return self._draw.initial_RFD

    @property
    def samples(self) -> Samples:
        """The training samples."""
        return self._draw.samples

    @property
    def ambient_dim(self) -> int:
        """d, whatever the coordinates."""
        return self.tasks.dataset.dim

    def calibration_batches(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """All training samples as the network sees them, (R, N, P, D), and their labels -1 and 1, (R, N)."""
        yield self._draw.samples.patches().to(device), self._draw.samples.labels_RN.to(device)

    @property
    def setting(self) -> theory.Setting:
        """The task as the theory sees it, alone."""
        return self.tasks.setting("upstream" if self.side == "upstream" else "baseline", alpha=0.0)

    def carry(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The upstream's state dict in this task's coordinates."""
        here, there = self.tasks.coordinates["downstream"], self.tasks.coordinates["upstream"]
        shape = (*upstream["filters"].shape[1:3], here.dim)
        carried = [
            here.carry(there, filters_JMD.flatten(0, 1), stream("span", seed=self.seed, replicate=r)).view(shape)
            for r, filters_JMD in enumerate(upstream["filters"])
        ]
        return {"filters": torch.stack(carried)}

    def _test_points(self, num_test: int) -> Iterator[FreshSamples | Samples]:
        return self.tasks.dataset.test_points(
            self.side, self._draw, num_test=num_test, noise=self.settings.noise, seed=self.seed
        )

    def train_dataloader(self) -> Batches[FullBatch]:
        test_points = next(self._test_points(min(self.tasks.num_test, _CURVE_TEST_POINTS)))
        num_points = min(self.tasks.curve_points, self.settings.steps)
        ends = [self.settings.steps * point // num_points for point in range(num_points + 1)]

        def batches() -> Iterator[FullBatch]:
            module: Any = self.trainer.lightning_module if self.trainer else None
            for start, end in list(pairwise(ends))[module.num_batches if module else 0 :]:
                yield FullBatch(self._draw.samples, test_points, end - start)

        return Batches(batches, num_points)

    def test_dataloader(self) -> Batches[FreshSamples | Samples]:
        num_batches = math.ceil(self.tasks.num_test / self.tasks.dataset.test_chunk(self.replicates))
        return Batches(lambda: self._test_points(self.tasks.num_test), num_batches)


class SyntheticTasks:
    """Tasks 1 and 2 on signal-noise data.

    Args:
        dataset: the law of the samples.
        model: the architecture, whose filters are drawn together with the samples.
        optim: gradient descent, whose step size the theory is evaluated at.
        upstream: settings of task 1.
        downstream: settings of task 2.
        num_test: fresh samples that the test accuracy is measured on, per replicate.
        curve_points: points of the curves of training loss and test accuracy.
        tail_error: whether the test error is computed as an integral, too, which finds those too small to count.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(
        self,
        *,
        dataset: SignalNoise,
        model: TwoLayerCNNs,
        optim: GradientDescent,
        upstream: Mapping[str, Any],
        downstream: Mapping[str, Any],
        num_test: int,
        curve_points: int = 100,
        tail_error: bool = False,
    ) -> None:
        self.sides: dict[Side, SideSettings] = {
            "upstream": SideSettings(side="upstream", **upstream),
            "downstream": SideSettings(side="downstream", **downstream),
        }
        self.dataset = dataset
        self.model = model
        self.optim = optim
        self.num_test = whole("task.num_test", num_test, at_least=1)
        self.curve_points = whole("task.curve_points", curve_points, at_least=1)
        self.tail_error = flag("task.tail_error", tail_error)
        if tail_error and not dataset.is_gaussian:
            allowed = f"false for {type(dataset).__name__}: the integral is for Gaussian noise only"
            raise refusal("task.tail_error", tail_error, allowed)
        self.coordinates = {
            side: dataset.coordinates_of(num_samples=settings.num_samples, num_filters=model.num_filters)
            for side, settings in self.sides.items()
        }

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on: the law of the samples and the stage's own task, or both."""
        sides = (*SIDES.values(),) if stage == "downstream" else (SIDES[stage],)
        task: dict[str, object] = {side: self.sides[side].values for side in sides}
        task |= {"num_test": self.num_test, "curve_points": self.curve_points, "tail_error": self.tail_error}
        return {"dataset": self.dataset.identity(stage), "task": task}

    def data(self, side: Side, *, seed: int, replicates: int) -> SyntheticTask:
        """The data module of one stage."""
        return SyntheticTask(self, side, seed=seed, replicates=replicates)

    def label(self, side: Side) -> str:
        """The setting in a few words, for the names of runs."""
        own = self.sides[side]
        return f"d={self.dataset.dim} ‖u‖={self.dataset.u_norm:.3g} N={own.num_samples} σ_p={own.noise:g}"

    def check(self, transfer: object, seed: int, replicates: int) -> None:
        """All that can be refused has been."""

    def setting(self, stage: Stage, alpha: float) -> theory.Setting:
        """What the theory sees of a stage: both tasks for the downstream, its own task alone for the others."""
        first: Side = "upstream" if stage == "downstream" else SIDES[stage]
        one, two = self.sides[first], self.sides[SIDES[stage]]
        return theory.Setting(
            dim=self.dataset.dim,
            u_norm=self.dataset.u_norm,
            v1_norm=self.dataset.v_norm[first],
            v2_norm=self.dataset.v_norm[SIDES[stage]],
            sigma1=self.dataset.sigma(one.noise),
            sigma2=self.dataset.sigma(two.noise),
            num1=one.num_samples,
            num2=two.num_samples,
            alpha=alpha if stage == "downstream" else 0.0,
            filters=self.model.filters,
            init_std=self.model.init_std,
            lr=self.optim.lr,
            steps1=one.steps,
            steps2=two.steps,
        )

    def theory(self, stage: Stage, alpha: float) -> dict[str, float]:
        """The theory's values for one stage, as metrics."""
        return theory.metrics(self.setting(stage, alpha))

    def verdict(self, alpha: float) -> str:
        """What the theory predicts for the job, in words."""
        return theory.verdict(self.setting("downstream", alpha))
