"""A classification task on images as a LightningDataModule.

Shape letters: N images, B images of a batch, C channels (3), H height, W width.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from paramtransfer.dataset.images import Images, Split
from paramtransfer.dataset.preprocessing import FixedNoise, crop_and_flip, normalize, resize
from paramtransfer.interrupts import leave_to_parent
from paramtransfer.randomness import stream
from paramtransfer.stage import Side
from paramtransfer.task.stage_data import StageData

_CALIBRATION_BATCHES = 20


class Batch(NamedTuple):
    """Images with their labels."""

    images: Tensor
    """(B, C, H, W): 8-bit values, with the noise that belongs to them; normalized on the device."""
    labels_B: Tensor
    """Among the task's classes."""
    key: int
    """What the batch's own draws derive from."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of a split's images, with their labels among the task's classes."""

    split: Split
    index_N: Tensor
    labels_N: Tensor
    noise: FixedNoise | None = None

    def pixels(self, chosen_B: Tensor) -> Tensor:
        """Some of the images, by their numbers in the part, with the noise that belongs to them: (B, C, H, W)."""
        index_B = self.index_N[chosen_B]
        pixels = self.split.pixels(index_B)
        return pixels if self.noise is None else self.noise(pixels, index_B)

    @classmethod
    def of(
        cls,
        split: Split,
        labels: Sequence[int],
        index_of: Sequence[np.ndarray],
        noise: FixedNoise | None = None,
    ) -> "Part":
        """The images at `index_of` each class."""
        index_N = torch.from_numpy(np.concatenate(index_of))
        labels_N = torch.cat([torch.full((len(index),), label) for label, index in zip(labels, index_of, strict=True)])
        return cls(split=split, index_N=index_N, labels_N=labels_N, noise=noise)


@dataclass(frozen=True, kw_only=True)
class View:
    """What is done to the images of one side, besides normalization.

    Attributes:
        size: height and width that the network sees, pixels.
        padding: of random crops in training, pixels of the dataset's images.
        noise: standard deviation of the Gaussian noise added anew whenever an image is seen, 8-bit units.
    """

    size: int
    padding: int
    noise: float


class ImageTask(StageData):
    """One task for one stage; baseline and downstream of a seed see the same batches.

    Every draw derives from the seed and the number of the batch alone, so that training can start again anywhere.

    Args:
        dataset: where the images come from.
        parts: the images to train on, to choose by (`val`) and to test on, which no two parts share.
        classes: names, in the order of the labels.
        view: what is done to the images.
        side: names the random streams.
        seed: what they derive from.
        epochs: passes over the training images.
        batch_size: images of a training step, over all devices.
    """

    batch_size: int

    def __init__(
        self,
        *,
        dataset: Images,
        parts: dict[str, Part],
        classes: Sequence[str],
        view: View,
        side: Side,
        seed: int,
        epochs: int,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.parts = parts
        self.classes = classes
        self.view = view
        self.side = side
        self.seed = seed
        self.epochs = epochs
        self.batch_size = min(batch_size, len(parts["train"].index_N))

    def stream(self, name: str, number: int = 0) -> np.random.Generator:
        """A random stream of this side's own."""
        return stream(f"{self.side} {name}", seed=self.seed, replicate=number)

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Shuffled batches; images that do not fill the last one wait for the next epoch."""
        return self._loader("train", _Order(self))

    def val_dataloader(self) -> list["DataLoader[Batch]"]:
        """In order; with `test_every_epoch` the test images too, for a curve and never for choosing."""
        return [self._loader(name, self._in_order(name)) for name in ("val", "test")[: 1 + self.test_every_epoch]]

    def test_dataloader(self) -> "DataLoader[Batch]":
        """In order."""
        return self._loader("test", self._in_order("test"))

    def calibration_batches(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Some training images as the network sees them, without augmentation, and their labels."""
        part = self.parts["train"]
        order = self.stream("calibration").permutation(len(part.index_N))
        for number in range(min(_CALIBRATION_BATCHES, len(order) // self.batch_size)):
            chosen_B = torch.from_numpy(order[number * self.batch_size : (number + 1) * self.batch_size])
            pixels = part.pixels(chosen_B).to(device)
            key = int(self.stream("calibration", number).integers(2**63))
            yield self._seen(pixels, key, augment=False), part.labels_N[chosen_B].to(device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augmentation, noise, size and normalization, on the device that the batch is on."""
        trainer = self.trainer
        assert trainer is not None
        images = self._seen(batch.images, batch.key, augment=trainer.training)
        if not trainer.training:
            return Batch(images, batch.labels_B, batch.key)
        own = slice(trainer.global_rank, None, trainer.world_size)  # now, for the draws are the whole batch's
        return Batch(images[own], batch.labels_B[own], batch.key)

    def _seen(self, pixels_BCHW: Tensor, key: int, *, augment: bool) -> Tensor:
        generator = torch.Generator(pixels_BCHW.device).manual_seed(key)
        if augment:
            pixels_BCHW = crop_and_flip(pixels_BCHW, self.view.padding, generator)
        values_BCHW = pixels_BCHW.float()
        if self.view.noise:
            values_BCHW += self.view.noise * torch.randn(
                values_BCHW.shape, generator=generator, device=values_BCHW.device
            )
        return normalize(resize(values_BCHW, self.view.size), self.dataset.mean, self.dataset.std)

    def _in_order(self, name: str) -> list[tuple[Tensor, int]]:
        batches = torch.split(torch.arange(len(self.parts[name].index_N)), self.batch_size)
        return [(chosen_B, self._key(name, number)) for number, chosen_B in enumerate(batches)]

    def _key(self, name: str, number: int) -> int:
        return int(self.stream(name, number).integers(2**63))

    def _loader(self, name: str, batches: Iterable[tuple[Tensor, int]]) -> "DataLoader[Batch]":
        workers = self.dataset.num_workers
        pixels = _Pixels(self.parts[name])
        stay = workers > 0 and name == "train"
        return _Loader(
            pixels,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            persistent_workers=stay,
            worker_init_fn=leave_to_parent,
        )


class _Pixels(Dataset[Batch]):
    """Whole batches, by the numbers of their images in a part."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __getitem__(self, item: tuple[Tensor, int]) -> Batch:
        chosen_B, key = item
        return Batch(self._part.pixels(chosen_B), self._part.labels_N[chosen_B], key)


class _Loader(DataLoader[Batch]):
    """Goes on where the trainer's step is, and so has no state of its own to keep."""

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


class _Order(Sampler[tuple[Tensor, int]]):
    """The batches of an epoch that are still to come."""

    def __init__(self, task: ImageTask) -> None:
        self._task = task
        self._num_images = len(task.parts["train"].index_N)

    def __len__(self) -> int:
        return self._num_images // self._task.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        task = self._task
        assert task.trainer is not None
        epoch, done = divmod(task.trainer.global_step, len(self))
        order_N = torch.from_numpy(task.stream("order", epoch).permutation(self._num_images))
        for number in range(done, len(self)):
            chosen_B = order_N[number * task.batch_size : (number + 1) * task.batch_size]
            yield chosen_B, task._key("batch", epoch * len(self) + number)
