"""Labelled images, as every image dataset gives them.

Shape letters: N images, B images of a batch, C channels (3), H height, W width.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from torch import Tensor

from paramtransfer.checks import number, refusal
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
    """Three positive numbers, for red, green and blue, in 8-bit units.

    Raises:
        ValueError: anything else.
    """
    allowed = "three positive numbers, for red, green and blue"
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise refusal(key, values, allowed)
    numbers = [number(key, value, above=0) for value in values]
    if max(numbers) < 1 or max(numbers) > 255:
        raise refusal(key, values, f"{allowed}, in 8-bit units, 0 to 255: multiply values of 0 to 1 by 255")
    return tuple(numbers)


def say(*sentences: str) -> None:
    """Tell the user what was made of the images, once in a process: a sweep makes many datasets of one folder."""
    for sentence in sentences:
        _say(sentence)


@cache
def _say(sentence: str) -> None:
    logging.getLogger(__name__).warning(sentence)
