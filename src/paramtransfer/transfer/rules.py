"""The transfer rules that a configuration can name: each gives the downstream model its start."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from paramtransfer.checks import choice, number, refusal, share
from paramtransfer.model.two_layer_cnn import TwoLayerCNN, aligned
from paramtransfer.stage import Stage
from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.denoise import with_spectrum_of
from paramtransfer.transfer.explained_variance import Target
from paramtransfer.transfer.plan import BATCHNORM, CHANNELS, UNITS, Pairing, Plan, plan_filters, plan_nothing
from paramtransfer.transfer.regularize import ALONG, Regularization, as_matrix, filter_widths, shrink_by_direction
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.scores import NEEDS_IMAGES, SELECT, score_channels
from paramtransfer.transfer.select import Selection
from paramtransfer.transfer.start import Start
from paramtransfer.transfer.wrapped_models import unwrap

SIGNS = ("apart", "together")


class TransferRule(Protocol):
    """What is inherited and how; a rule of your own needs these names, and has those with values by subclassing it."""

    alpha: float
    """The share of filters inherited, which the theory is evaluated at; NaN where it does not speak of the rule."""
    scale: float = 1.0
    """What is inherited is multiplied by it; the theory takes it as a factor of `alpha` (`theory.shrunk`)."""
    label: str
    """What is inherited, in a few words, for the names of runs."""
    needs_upstream: bool = True
    needs_target: bool = False
    """Whether it looks at the target's training samples, and is then called with them as `target`."""
    start: Start = Start()
    """What happens before and while the training begins."""

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

    def identity(self, stage: Stage) -> dict[str, object]:
        """The settings that a stage's result depends on, under their configuration keys: the downstream's alone."""
        if stage != "downstream":
            return {}
        own = {"alpha": self.alpha, "unit": self.unit, "select": self.select}
        own |= {"channels": self.channels, "batchnorm": self.batchnorm}
        return {**own, **self.how.identity(), **self.start.identity()}


class Spectrum(Filters):
    """A control without knowledge of directions: of what `Filters` inherits, only the singular values are taken.

    Each inherited slice of weights is U S V' with the fresh slice's singular vectors and the upstream's singular
    values; biases, norms and all else stay fresh. What it gains over a fresh start, structure alone gives.

    Args:
        alpha: the share of filters; see `Filters`, and for the others.

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
        rank: int | str | None = None,
        shrinkage: str | None = None,
        scale: float = 1.0,
        head_epochs: int = 0,
        freeze_epochs: int = 0,
    ) -> None:
        super().__init__(
            alpha=alpha,
            unit=unit,
            select=select,
            channels=channels,
            batchnorm="reset",
            rank=rank,
            shrinkage=shrinkage,
            scale=scale,
            head_epochs=head_epochs,
            freeze_epochs=freeze_epochs,
        )
        self.label = self.label.replace("reset", "spectrum")

    def _plan(self, upstream: nn.Module, downstream: nn.Module) -> Plan:
        return [
            replace(pairing, upstream=None, reason="transfer=spectrum: not a weight")
            if pairing.upstream is not None and pairing.role != "weight"
            else pairing
            for pairing in super()._plan(upstream, downstream)
        ]

    def _land(self, pairing: Pairing, taken: Tensor, fresh: Tensor) -> Tensor:
        trained, drawn = (as_matrix(pairing, each) for each in (taken, fresh))
        return super()._land(pairing, with_spectrum_of(trained, drawn).view_as(fresh), fresh)


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


class Aligned(TransferRule):
    """A control that knows nothing: a fresh start whose filters share one direction; no upstream is trained.

    For the two-layer CNN alone. Every filter keeps its length and takes the direction of the first one.

    Args:
        signs: `apart`: the first filter of its own sign; `together`: the first of all, so that f(W; x) starts near 0.
        scale: of the lengths.
        dims_per_sample: all of this only where d is above so many times the target's training samples, and a plain
            fresh start elsewhere; 0: always.

    Raises:
        ValueError: an argument that is out of range, or a network of another kind.
    """

    alpha = 0.0
    needs_upstream = False

    def __init__(self, *, signs: str = "apart", scale: float = 1.0, dims_per_sample: float = 0.0) -> None:
        self.dims_per_sample = number("transfer.dims_per_sample", dims_per_sample, at_least=0)
        self.needs_target = dims_per_sample > 0
        self.signs = choice("transfer.signs", signs, SIGNS)
        self.scale = number("transfer.scale", scale, above=0)
        others = [signs] if signs != SIGNS[0] else []
        others += [f"scale={scale:g}"] if scale != 1 else []
        others += [f"dims_per_sample={dims_per_sample:g}"] if dims_per_sample else []
        self.label = " ".join(["aligned fresh start", *others])

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, target: Target | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        if not isinstance(unwrap(downstream).network, TwoLayerCNN):
            name = type(downstream).__name__
            raise refusal("transfer", "aligned", f"spectrum for {name}, whose filters lie in several layers")
        plan = plan_nothing(downstream, reason="its filters share a direction")
        state, report = inherit(plan, {}, downstream.state_dict(), Selection(alpha=0.0, seed=seed))
        share_direction = target is None or self._is_wide(filter_widths(downstream), target)
        together = self.signs == "together"
        if share_direction:
            state = {name: self.scale * aligned(filters, together=together) for name, filters in state.items()}
        return state, report

    def _is_wide(self, widths: Mapping[str, int], target: Target) -> bool:
        """Whether d is above so many times the target's training samples (R, N, P, D)."""
        (samples_RNPD, _), *_ = target(torch.device("cpu"))
        return min(widths.values()) > self.dims_per_sample * samples_RNPD.shape[1]

    def identity(self, stage: Stage) -> dict[str, object]:
        """The setting that a stage's result depends on, under its configuration key: the downstream's alone."""
        if stage != "downstream":
            return {}
        return {"signs": self.signs, "scale": self.scale, "dims_per_sample": self.dims_per_sample}
