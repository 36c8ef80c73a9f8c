"""Controls: starts that inherit nothing, or scale and spectrum alone: structure is not to be taken for knowledge."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from paramtransfer.checks import choice, number, refusal
from paramtransfer.model.two_layer_cnn import TwoLayerCNN, aligned
from paramtransfer.stage import Stage
from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.denoise import with_spectrum_of
from paramtransfer.transfer.explained_variance import Target
from paramtransfer.transfer.plan import Pairing, Plan, plan_nothing
from paramtransfer.transfer.regularize import as_matrix, filter_widths
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.rules import Filters, TransferRule
from paramtransfer.transfer.select import Selection
from paramtransfer.transfer.wrapped_models import unwrap

SIGNS = ("apart", "together")


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
        self.scale = math.nan  # no direction is inherited, which the theory is about

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, target: Target | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        state, report = super().__call__(upstream, downstream, seed=seed, target=target)
        return state, replace(report, what="fresh with the upstream's singular values")

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
        share_direction = target is None or self._is_wide(filter_widths(downstream), target)
        plan = plan_nothing(downstream, reason="its filters share a direction" if share_direction else "fresh")
        state, report = inherit(plan, {}, downstream.state_dict(), Selection(alpha=0.0, seed=seed))
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
