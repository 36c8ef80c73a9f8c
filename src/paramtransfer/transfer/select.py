"""Which: the channels that are inherited, out of those that could be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from paramtransfer.checks import share, whole
from paramtransfer.randomness import stream
from paramtransfer.transfer.layout import Axis

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996

Scores = Mapping[tuple[str, int], Tensor]
"""A score for each upstream channel, by the name of the downstream's axis and the number of these channels."""


def num_inherited(alpha: float, num_filters: int) -> int:
    """The number of filters r <= alpha m (Algorithm 1), for images as for the two-layer CNN."""
    return math.floor(alpha * num_filters + _ROUNDING)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A share of the filters along each axis (Algorithm 1); a larger share holds every smaller one of its seed.

    Filters keep their positions where both layers have as many; where the upstream has more, a subset of its channels
    is taken, and where it has fewer, they come to lie at random positions. What is taken is random, or, where there
    are scores, the best.

    Raises:
        ValueError: `alpha` is not a share, or `seed` not a whole number.
    """

    alpha: float
    seed: int
    scores: Scores = field(default_factory=dict)

    def __post_init__(self) -> None:
        share("alpha", self.alpha)
        whole("seed", self.seed, at_least=0)

    def __call__(self, axis: Axis | None, size: int, upstream_size: int) -> tuple[Tensor, Tensor]:
        """Positions along a dimension of the downstream's tensor, and those in the upstream's that go there."""
        if axis is None:
            return torch.arange(size), torch.arange(size)
        if axis.unit > 1 or axis.repeats > 1:
            return self._in_units(axis, size, upstream_size)
        here, there = self._matched(axis, size, upstream_size)
        if axis.counted:
            ranks = self._ranks(axis, upstream_size)
            order = ranks[there] if ranks is not None else _inverse(self._draw("filters", axis, size))[here]
            chosen = np.sort(np.argsort(order)[: num_inherited(self.alpha, size)])
            here, there = here[chosen], there[chosen]
        return torch.from_numpy(here), torch.from_numpy(there)

    def _in_units(self, axis: Axis, size: int, upstream_size: int) -> tuple[Tensor, Tensor]:
        """The same for whole units, in each repeat."""
        per_repeat = [each // (axis.unit * axis.repeats) for each in (size, upstream_size)]
        here, there = self(replace(axis, unit=1, repeats=1), *per_repeat)
        repeats, channels = torch.arange(axis.repeats)[:, None, None], torch.arange(axis.unit)
        expanded = [
            ((repeats * count + index[:, None]) * axis.unit + channels).flatten()
            for count, index in zip(per_repeat, (here, there), strict=True)
        ]
        return expanded[0], expanded[1]

    def _matched(self, axis: Axis, size: int, upstream_size: int) -> tuple[np.ndarray, np.ndarray]:
        if size == upstream_size:
            return np.arange(size), np.arange(size)
        ranks = self._ranks(axis, upstream_size)
        if ranks is not None and upstream_size > size:
            return np.arange(size), np.sort(np.argsort(ranks)[:size])
        subset = self._draw(f"{size} of {upstream_size}", axis, max(size, upstream_size))
        subset = np.sort(subset[: min(size, upstream_size)])
        return (np.arange(size), subset) if upstream_size > size else (subset, np.arange(upstream_size))

    def _ranks(self, axis: Axis, upstream_size: int) -> np.ndarray | None:
        """The rank of each upstream channel, the best first."""
        scores = self.scores.get((axis.name, upstream_size))
        return None if scores is None else _inverse(torch.argsort(scores, descending=True, stable=True).numpy())

    def _draw(self, what: str, axis: Axis, size: int) -> np.ndarray:
        return stream(f"{what} {axis.name}", seed=self.seed).permutation(size)


def _inverse(order: np.ndarray) -> np.ndarray:
    """Each position's place in an order."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places
