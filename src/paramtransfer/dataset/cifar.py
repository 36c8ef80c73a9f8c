"""CIFAR-10 and CIFAR-100 as torchvision reads and downloads them."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from paramtransfer.checks import flag, whole
from paramtransfer.dataset.images import InMemory, per_channel
from paramtransfer.stage import Stage


class CIFAR:
    """CIFAR-10 or CIFAR-100 (Krizhevsky, 2009), 32 x 32.

    Args:
        source: the torchvision class.
        root: the folder that holds the archive or the unpacked files.
        download: whether to get the archive if it is not there.
        per_class: training images of a class that a task uses; None for all.
        mean: what normalization subtracts, by channel, 8-bit units.
        std: what normalization divides by, likewise.

    Raises:
        ValueError: an argument that is out of range, or no data at `root`; names the key.
    """

    size = 32
    num_workers = 0

    def __init__(
        self,
        *,
        source: type[datasets.CIFAR10],
        root: str,
        download: bool,
        per_class: int | None,
        mean: object,
        std: object,
    ) -> None:
        self._source = source
        self._root = Path(root)
        self._download = flag("dataset.download", download)
        self.per_class = None if per_class is None else whole("dataset.per_class", per_class, at_least=1)
        self.mean = per_channel("dataset.mean", mean)
        self.std = per_channel("dataset.std", std)
        self.place = source.__name__  # wherever its files lie
        self.content = f"{source.__name__} {source.tgz_md5}"
        self.classes = self._read(train=False).classes

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on: the images, wherever they lie, how many, their scale."""
        return {"content": self.content, "per_class": self.per_class, "mean": self.mean, "std": self.std}

    def _read(self, *, train: bool) -> datasets.CIFAR10:
        try:
            return self._source(self._root, train=train, download=self._download)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"dataset.root={self._root}: must hold {self._source.filename}, which could not be read or downloaded "
                f"({reason}): put the file there, from {self._source.url}"
            ) from error

    def _split(self, *, train: bool) -> InMemory:
        data = self._read(train=train)
        pixels_NCHW = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
        return InMemory(pixels_NCHW, torch.tensor(data.targets))

    @cached_property
    def train(self) -> InMemory:
        """50,000 images."""
        return self._split(train=True)

    @cached_property
    def test(self) -> InMemory:
        """10,000 images."""
        return self._split(train=False)
