"""Which: the channels that are inherited, out of those that could be."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from paramtransfer.randomness import stream
from paramtransfer.transfer.layout import Axis


def num_inherited(alpha: float, num_filters: int) -> int:
    """alpha m, rounded to the nearest whole filter (halves up)."""
    return math.floor(alpha * num_filters + 0.5)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A random share of the filters along each axis (Algorithm 1); a larger share holds every smaller one of its seed.

    Filters keep their positions where both layers have as many; where the upstream has more, a random subset of its
    channels is taken, and where it has fewer, they come to lie at random positions.
    """

    alpha: float
    seed: int
    sources: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Upstream channels, by axis, that stand for a downstream axis' channels in order, instead of random ones."""

    def __call__(self, axis: Axis | None, size: int, source_size: int) -> tuple[Tensor, Tensor]:
        """Positions along a dimension of the downstream's tensor, and those in the upstream's that go there."""
        if axis is not None and (axis.unit > 1 or axis.repeats > 1):
            return self._in_units(axis, size, source_size)
        here, there = self._matched(axis, size, source_size)
        if axis is not None and axis.filters:
            order = self._draw("filters", axis, size).permutation(size)
            chosen = np.isin(here, np.sort(order[np.isin(order, here)][: num_inherited(self.alpha, size)]))
            here, there = here[chosen], there[chosen]
        return torch.from_numpy(here), torch.from_numpy(there)

    def _in_units(self, axis: Axis, size: int, source_size: int) -> tuple[Tensor, Tensor]:
        """The same for whole units, in each repeat."""
        per_repeat = [each // (axis.unit * axis.repeats) for each in (size, source_size)]
        here, there = self(replace(axis, unit=1, repeats=1), *per_repeat)
        repeats, channels = torch.arange(axis.repeats)[:, None, None], torch.arange(axis.unit)
        expanded = [
            ((repeats * count + index[:, None]) * axis.unit + channels).flatten()
            for count, index in zip(per_repeat, (here, there), strict=True)
        ]
        return expanded[0], expanded[1]

    def _matched(self, axis: Axis | None, size: int, source_size: int) -> tuple[np.ndarray, np.ndarray]:
        everywhere = np.arange(size)
        if axis is not None and axis.name in self.sources:
            return everywhere, np.asarray(self.sources[axis.name])
        if axis is None or size == source_size:
            return everywhere, everywhere
        subset = self._draw(f"{size} of {source_size}", axis, size).permutation(max(size, source_size))
        subset = np.sort(subset[: min(size, source_size)])
        return (everywhere, subset) if source_size > size else (subset, np.arange(source_size))

    def _draw(self, what: str, axis: Axis, size: int) -> np.random.Generator:
        return stream(f"{what} {axis.name}", seed=self.seed)
