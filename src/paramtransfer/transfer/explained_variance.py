"""What two networks put out after each of their levels, on the same images.

Shape letters: B images of a batch, C channels, H height, W width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paramtransfer.transfer.reader import read_layout

_RIDGES = (1e-4, 1e-2, 1.0)
"""Penalties of the regression, in units of the mean square of its inputs; the best one counts."""

Labelled = tuple[Tensor, Tensor]
"""Images (B, C, H, W) as a network sees them with labels (B,), or samples (R, N, P, D) with labels -1 and 1 (R, N)."""
Target = Callable[[torch.device], Iterable[Labelled]]
"""Some of the target's training samples, on a device."""


@runtime_checkable
class TargetData(Protocol):
    """A data module that can show some of its training samples."""

    def calibration_batches(self, device: torch.device) -> Iterable[Labelled]:
        """Batches without augmentation."""


@runtime_checkable
class ImageData(TargetData, Protocol):
    """One whose samples are images."""

    classes: Sequence[str]


def common_levels(upstream: nn.Module, downstream: nn.Module) -> dict[str, tuple[str, str]]:
    """By a name of each level that both networks have: the modules whose inputs are its output, upstream's first."""
    theirs, ours = read_layout(upstream), read_layout(downstream)
    last = {layer.level: layer.name for layer in ours.layers if layer.filters is not None and layer.role == "main"}
    ends = {level: name for level, name in ours.level_ends.items() if level in theirs.level_ends}
    if max(ours.level_ends, default=0) != max(theirs.level_ends, default=0):
        ends = {level: name for level, name in ends.items() if level < max(ends)}  # not what a head is given
    return {last[level]: (theirs.level_ends[level], name) for level, name in ends.items()}


@contextmanager
def inputs_of(model: nn.Module, names: Iterable[str]) -> Iterator[Mapping[str, Tensor]]:
    """What modules were given when the model was last called, as (B, C, H, W); filled while the context is open."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0] if inputs[0].dim() == 4 else inputs[0].flatten(1)[..., None, None]

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def at_same_places(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two outputs brought to the smaller height and width."""
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    resized = [
        each if each.shape[2:] == size else nn.functional.adaptive_avg_pool2d(each, size) for each in (one, other)
    ]
    return resized[0], resized[1]


@contextmanager
def testing(*models: nn.Module) -> Iterator[None]:
    """Models as they are tested, without gradients."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def explained_variance(upstream: nn.Module, downstream: nn.Module, images: Iterable[Labelled]) -> dict[str, float]:
    """How much of each of the upstream's levels a linear map finds in the downstream's: share of variance, by level.

    The map is fitted by ridge regression on one half of each batch, and judged on the other.

    Args:
        upstream: the trained model.
        downstream: with what it inherited, before training.
        images: some batches.
    """
    levels = common_levels(upstream, downstream)
    sums: dict[str, _Regression] = {}
    with (
        testing(upstream, downstream),
        inputs_of(upstream, [there for there, _ in levels.values()]) as theirs,
        inputs_of(downstream, [here for _, here in levels.values()]) as ours,
    ):
        for images_BCHW, _ in images:
            upstream(images_BCHW)
            downstream(images_BCHW)
            for level, (there, here) in levels.items():
                target, given = at_same_places(theirs[there], ours[here])
                for half in (0, 1):
                    rows = [each[half::2].movedim(1, -1).flatten(0, -2).double() for each in (given, target)]
                    sums.setdefault(level, _Regression()).add(rows[0], rows[1], half=half)
    return {level: regression.explained() for level, regression in sums.items()}


class _Regression:
    """Sums of products of rows, to fit with (index 0) and to judge by (1)."""

    def __init__(self) -> None:
        self._sums: list[tuple[Tensor, Tensor, Tensor] | None] = [None, None]

    def add(self, given: Tensor, target: Tensor, *, half: int) -> None:
        given = torch.cat([given, torch.ones_like(given[:, :1])], dim=1)
        new = (given.T @ given, given.T @ target, torch.stack([target.sum(0), target.square().sum(0)]))
        old = self._sums[half]
        counted = new if old is None else tuple(a + b for a, b in zip(old, new, strict=True))
        self._sums[half] = (counted[0], counted[1], counted[2])

    def explained(self) -> float:
        """1 - sum of squared errors / sum of squares about the mean; at least 0."""
        if self._sums[0] is None or self._sums[1] is None:
            return float("nan")
        (fit_xx, fit_xy, _), (xx, xy, (first, second)) = self._sums[0], self._sums[1]
        about_mean = second - first.square() / xx[-1, -1]
        shares = [0.0]
        for ridge in _RIDGES:
            penalty = ridge * fit_xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
            coefficients = torch.linalg.solve(fit_xx + penalty, fit_xy)
            errors = second - 2 * (coefficients * xy).sum(0) + (coefficients * (xx @ coefficients)).sum(0)
            shares.append(1 - float(errors.sum() / about_mean.sum()))
        return max(shares)
