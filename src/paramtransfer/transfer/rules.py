"""The transfer rules that a configuration can name: each gives the downstream model its start."""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from paramtransfer.checks import choice, refusal, share
from paramtransfer.model.two_layer_cnn import TwoLayerCNN
from paramtransfer.stage import Stage
from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.explained_variance import ImageData, Target
from paramtransfer.transfer.plan import BATCHNORM, CHANNELS, UNITS, Pairing, Plan, plan_filters, plan_nothing
from paramtransfer.transfer.regularize import ALONG, Regularization, filter_widths, shrink_by_direction
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.scores import NEEDS_IMAGES, SELECT, score_channels
from paramtransfer.transfer.select import Selection
from paramtransfer.transfer.start import Start
from paramtransfer.transfer.wrapped_models import unwrap


class TransferRule(Protocol):
    """What is inherited and how; a rule of your own needs these names, and has those with values by subclassing it."""

    alpha: float
    """The share of filters inherited, which the theory is evaluated at."""
    scale: float = 1.0
    """What is inherited is multiplied by it; the theory takes it as a factor of `alpha` (`theory.shrunk`). NaN where it
    does not speak of the rule."""
    label: str
    """What is inherited, in a few words, for the names of runs."""
    needs_upstream: bool = True
    needs_target: bool = False
    """Whether it looks at the target's training samples, and is then called with them as `target`."""
    start: Start = Start()
    """What happens before and while the training begins."""
    sees_labels: bool = False
    """Whether it looks at the labels of the target's training samples."""

    def check_target(self, data: object) -> None:
        """Refuse, before anything is trained, data that the rule cannot look at.

        Raises:
            ValueError: names the key.
        """
        return

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, target: Target | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        """The downstream model's start and the account of it, from the trained and the fresh model, both unchanged."""


class Filters(TransferRule):
    """The share `alpha` of every layer's filters is inherited (Algorithm 1).

    Args:
        alpha: that share.
        unit: see `plan_filters`.
        select: which filters: `random` (the paper), or those with the largest `norm`, scale in their batch norm
            (`batchnorm`), mean output on the target's images (`activation`), or those that tell the target's classes
            apart best (`aligned`).
        channels: see `plan_filters`.
        batchnorm: see `plan_filters`.
        rank: see `Regularization`, and for `shrinkage`, `scale`, `perturb`, `perturb_along` and `dash`.
        freeze_epochs: see `Start`, and for the others.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(
        self,
        *,
        alpha: float,
        unit: str = "auto",
        select: str = "random",
        channels: str = "auto",
        batchnorm: str = "inherit",
        rank: int | str | None = None,
        shrinkage: str | None = None,
        scale: float = 1.0,
        perturb: float = 0.0,
        perturb_along: str = "own",
        dash: float | None = None,
        freeze_epochs: int = 0,
        frozen_norms: str = "train",
        head_epochs: int = 0,
        match_steps: int = 0,
    ) -> None:
        self.alpha = share("alpha", alpha)
        self.unit = choice("transfer.unit", unit, UNITS)
        self.select = choice("transfer.select", select, SELECT)
        self.channels = choice("transfer.channels", channels, CHANNELS)
        self.batchnorm = choice("transfer.batchnorm", batchnorm, BATCHNORM)
        self.how = Regularization(
            rank=rank, shrinkage=shrinkage, scale=scale, perturb=perturb, perturb_along=perturb_along, dash=dash
        )
        self.scale = self.how.scale
        self.start = Start(
            head_epochs=head_epochs,
            freeze_epochs=freeze_epochs,
            frozen_norms=frozen_norms,
            match_steps=match_steps,
            recalibrate=batchnorm == "recalibrate",
        )
        self.needs_target = select in NEEDS_IMAGES or dash is not None
        self.sees_labels = dash is not None
        if perturb or dash is not None:
            self.scale = math.nan  # the theory does not speak of it
        usual = (UNITS[0], SELECT[0], CHANNELS[0], BATCHNORM[0])
        given = (unit, select, channels, batchnorm)
        others = [value for value, default in zip(given, usual, strict=True) if value != default]
        self.label = " ".join(filter(None, [f"α={alpha:g}", *others, self.how.label, self.start.label]))

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, target: Target | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        if self.how.perturb_along != ALONG[0] and not isinstance(unwrap(downstream).network, TwoLayerCNN):
            raise refusal("transfer.perturb_along", self.how.perturb_along, f"own for {type(downstream).__name__}")
        plan = self._plan(upstream, downstream)
        device = next((tensor.device for tensor in upstream.parameters()), torch.device("cpu"))
        scores = score_channels(self.select, plan, upstream, None if target is None else target(device))
        selection = Selection(alpha=self.alpha, seed=seed, scores=scores)
        trained = self.how.denoised(plan, upstream.state_dict(), filter_widths(upstream))
        state, report = inherit(plan, trained, downstream.state_dict(), selection, self._land)
        if self.how.dash is None or target is None:
            return state, report
        return shrink_by_direction(plan, state, report.masks, downstream, target(device), floor=self.how.dash), report

    def _plan(self, upstream: nn.Module, downstream: nn.Module) -> Plan:
        return plan_filters(upstream, downstream, unit=self.unit, channels=self.channels, batchnorm=self.batchnorm)

    def _land(self, pairing: Pairing, taken: Tensor, fresh: Tensor) -> Tensor:
        return self.how.land(pairing, taken, fresh)

    def check_target(self, data: object) -> None:
        if self.select in NEEDS_IMAGES and not isinstance(data, ImageData):
            raise refusal("transfer.select", self.select, "random or norm: this task has no images")

    def identity(self, stage: Stage) -> dict[str, object]:
        """The settings that a stage's result depends on, under their configuration keys: the downstream's alone."""
        if stage != "downstream":
            return {}
        own = {"alpha": self.alpha, "unit": self.unit, "select": self.select}
        own |= {"channels": self.channels, "batchnorm": self.batchnorm}
        return {**own, **self.how.identity(), **self.start.identity()}


class Nothing(TransferRule):
    """Everything stays fresh (Algorithm 2); no upstream is trained."""

    alpha = 0.0
    label = "nothing inherited"
    needs_upstream = False

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, target: Target | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        return inherit(plan_nothing(downstream), {}, downstream.state_dict(), Selection(alpha=0.0, seed=seed))

    def identity(self, stage: Stage) -> dict[str, object]:
        """Nothing: there are no settings."""
        return {}
