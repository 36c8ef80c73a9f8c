"""Labelled images, as every image dataset gives them.

Shape letters: N images, B images of a batch, C channels (3), H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from paramtransfer.checks import refusal
from paramtransfer.stage import Stage


class Split(Protocol):
    """The training or the test images of a dataset."""

    @property
    def labels_N(self) -> Tensor:
        """Positions in the dataset's list of classes."""

    def pixels(self, index_B: Tensor) -> Tensor:
        """Some of the images, 8-bit values: (B, C, H, W)."""


@dataclass(frozen=True)
class InMemory:
    """A split that is decoded once for all."""

    pixels_NCHW: Tensor
    labels_N: Tensor

    def pixels(self, index_B: Tensor) -> Tensor:
        """Some of the images, 8-bit values: (B, C, H, W)."""
        return self.pixels_NCHW[index_B]


class Images(Protocol):
    """An image dataset."""

    classes: Sequence[str]
    size: int
    """Height and width, pixels."""
    per_class: int | None
    """Training images of a class that a task uses; None for all."""
    mean: Sequence[float]
    """Of each channel, 8-bit units: what normalization subtracts."""
    std: Sequence[float]
    """Of each channel, 8-bit units: what normalization divides by."""
    num_workers: int
    """Processes that decode while others train; 0 where there is nothing to decode."""
    place: str
    """Where the images come from: two datasets of one place share images."""
    content: str
    """Identifies the images and labels, wherever they lie."""
    train: Split
    test: Split

    def identity(self, stage: Stage) -> Mapping[str, object]:
        """What a stage's result depends on."""


def per_channel(key: str, values: object) -> tuple[float, ...]:
    """Three positive numbers, for red, green and blue.

    Raises:
        ValueError: anything else.
    """
    if isinstance(values, list | tuple) and len(values) == 3:
        numbers = [value for value in values if isinstance(value, int | float) and value > 0]
        if len(numbers) == 3:
            return tuple(float(value) for value in numbers)
    raise refusal(key, values, "three positive numbers, for red, green and blue")
