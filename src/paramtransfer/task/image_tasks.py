"""What pairs of image tasks share: settings, parts without overlap, names."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from paramtransfer.checks import flag, number, refusal, share, whole
from paramtransfer.dataset.images import Images, say
from paramtransfer.dataset.preprocessing import FixedNoise
from paramtransfer.model.network_pair import NetworkPair
from paramtransfer.optim.optimizers import MinibatchOptimizer
from paramtransfer.randomness import stream
from paramtransfer.stage import SIDES, Side, Stage
from paramtransfer.task.minibatches import ImageTask, Part, View
from paramtransfer.task.trial import check_forward

_FEW = 5  # training images of a class
_UNEVEN = 10  # times as many images as those of the smallest class

if TYPE_CHECKING:  # an edit of a rule repeats no upstream
    from paramtransfer.transfer.rules import TransferRule


class ImageTasks(ABC):
    """Tasks 1 and 2 on images; a subclass says which classes of which dataset each has.

    Args:
        dataset: where the images come from.
        model: both architectures.
        optim: what minimizes the loss on minibatches.
        upstream: task 1: `epochs`.
        downstream: task 2: `epochs`, `per_class`, the most training images of a class, where its tasks are smaller than
            `dataset.per_class` makes them (None), `noise` (sigma_{p,2}), the standard deviation of Gaussian noise added
            to all its images before augmentation and normalization, 8-bit units, and `fresh_noise`: whether it is drawn
            anew whenever an image is seen, which makes it an augmentation, and not once for each image.
        batch_size: images of a training step.
        val_share: share of each class's training images that is kept to choose by.
        padding: of random crops in training, pixels.
        input_size: height and width that the networks see, pixels; None for the dataset's.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(
        self,
        *,
        dataset: Images,
        model: NetworkPair,
        optim: MinibatchOptimizer,
        upstream: Mapping[str, Any],
        downstream: Mapping[str, Any],
        batch_size: int,
        val_share: float,
        padding: int,
        input_size: int | None,
    ) -> None:
        _fits("dataset", dataset, hasattr(dataset, "classes"), "image_folder, cifar10 or cifar100")
        _fits("model", model, isinstance(model, NetworkPair), "a pair of image networks, such as vgg16_vgg11")
        _fits("optim", optim, isinstance(optim, MinibatchOptimizer), "sgd or adamw")
        self.dataset = dataset
        self.model = model
        self.optim = optim
        self.epochs: dict[Side, int] = {
            "upstream": whole("task.upstream.epochs", upstream["epochs"], at_least=1),
            "downstream": whole("task.downstream.epochs", downstream["epochs"], at_least=1),
        }
        few = downstream["per_class"]
        self.per_class = None if few is None else whole("task.downstream.per_class", few, at_least=2)
        if self.per_class and dataset.per_class and self.per_class > dataset.per_class:
            raise refusal("task.downstream.per_class", few, f"at most dataset.per_class={dataset.per_class}")
        self.noise = number("task.downstream.noise", downstream["noise"], at_least=0)
        self.fresh_noise = flag("task.downstream.fresh_noise", downstream["fresh_noise"])
        self.batch_size = whole("task.batch_size", batch_size, at_least=2)
        self.val_share = share("task.val_share", val_share)
        if self.val_share == 1:
            raise refusal("task.val_share", val_share, "a number from 0 to below 1: the others are trained on")
        self.padding = whole("task.padding", padding, at_least=0)
        self.input_size = None if input_size is None else whole("task.input_size", input_size, at_least=1)

    def check(self, transfer: "TransferRule", seed: int, replicates: int) -> None:
        """Refuse now what the data or the transfer would refuse later.

        Raises:
            ValueError: names the key.
        """
        data = {side: self.data(side, seed=seed, replicates=replicates) for side in SIDES.values()}
        network = self.model.build(data["downstream"])
        self._try(network, data["downstream"])
        upstream = self.model.upstream(None, data["upstream"]) if transfer.needs_upstream else network
        if transfer.needs_upstream and self.model.weights is None:
            self._try(upstream, data["upstream"])
        target = (lambda device: [_probe(data["downstream"], device)]) if transfer.needs_target else None
        transfer(upstream, network, seed=seed, target=target)
        say(*self.model.one_sided())

    def _try(self, network: nn.Module, data: ImageTask) -> None:
        name, size = self.model.names[data.side], data.view.size
        check_forward(copy.deepcopy(network), side=data.side, name=name, num_classes=len(data.classes), size=size)

    @abstractmethod
    def classes_of(self, side: Side, seed: int) -> Sequence[str]:
        """The classes of a task, in the order of its labels."""

    def dataset_of(self, side: Side) -> Images:
        """Where the images of a task come from."""
        return self.dataset

    def data(self, side: Side, *, seed: int, replicates: int = 1) -> ImageTask:
        """The data module of one stage.

        Raises:
            ValueError: the task cannot be made of the dataset; names the key.
        """
        if replicates != 1:
            raise refusal("replicates", replicates, "1 with images: sweep seed=0,1,2 for repetitions")
        dataset, classes = self.dataset_of(side), self.classes_of(side, seed)
        if len(classes) < 2:
            raise ValueError(f"task: must have at least two classes, not {len(classes)} as the {side}'s")
        noise = self.noise if side == "downstream" else 0.0
        fixed, fresh = (0.0, noise) if self.fresh_noise else (noise, 0.0)
        return ImageTask(
            dataset=dataset,
            parts=self._parts(dataset, classes, seed, fixed, self.per_class if side == "downstream" else None),
            classes=classes,
            view=View(size=self.input_size or dataset.size, padding=self.padding, noise=fresh),
            side=side,
            seed=seed,
            epochs=self.epochs[side],
            batch_size=self.batch_size,
        )

    def _parts(
        self, dataset: Images, classes: Sequence[str], seed: int, noise: float, per_class: int | None
    ) -> dict[str, Part]:
        """A part of each class's training images to choose by, and of the others those to train on, both drawn."""
        train, val, test = [], [], []
        for name in classes:
            label = list(dataset.classes).index(name)
            found = np.flatnonzero(dataset.train.labels_N.numpy() == label)
            tested = np.flatnonzero(dataset.test.labels_N.numpy() == label)
            if len(found) < 2 or not len(tested):
                has = f"{len(found)} training and {len(tested)} test images"
                raise ValueError(f"class {name} of {dataset.place} has {has}: must have two and one, or more")
            order = stream(f"images {name}", seed=seed).permutation(found)
            num_val = min(max(1, round(self.val_share * len(order))), len(order) - 1)
            val.append(order[:num_val])
            train.append(order[num_val:][: dataset.per_class][:per_class])
            test.append(tested)
        _say_uneven(dataset, classes, train, val, test)
        labels = range(len(classes))
        of_train, of_test = (_fixed_noise(noise, split, seed) for split in ("train", "test"))
        return {
            "train": Part.of(dataset.train, labels, train, of_train),
            "val": Part.of(dataset.train, labels, val, of_train),
            "test": Part.of(dataset.test, labels, test, of_test),
        }

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on: the images and the stage's own task, or both."""
        return {"dataset": dataset_identity(self.dataset, stage), "task": self._task_identity(stage)}

    def _task_identity(self, stage: Stage) -> dict[str, object]:
        shared: dict[str, object] = {
            "batch_size": self.batch_size,
            "val_share": self.val_share,
            "padding": self.padding,
            "input_size": self.input_size,
        }
        if stage != "upstream":
            own = {"per_class": self.per_class, "noise": self.noise, "fresh_noise": self.fresh_noise}
            shared["downstream"] = {"epochs": self.epochs["downstream"], **own}
        if stage != "baseline":
            shared["upstream"] = {"epochs": self.epochs["upstream"]}
        return shared

    def label(self, side: Side) -> str:
        """The setting in a few words, for the names of runs."""
        fresh = " fresh" if self.fresh_noise else ""
        noise = f" σ_p={self.noise:g}{fresh}" if side == "downstream" and self.noise else ""
        return f"{self.model.names[side]}{noise}"

    def theory(self, stage: Stage, alpha: float) -> dict[str, float]:
        """Nothing: the theory is for the two-layer CNN."""
        return {}

    def verdict(self, alpha: float) -> str:
        """Nothing: the theory is for the two-layer CNN."""
        return ""


def dataset_identity(dataset: Images, stage: Stage) -> dict[str, object]:
    """What a stage's result depends on; of a class that does not say it, the content at least."""
    own = dataset.identity(stage) if hasattr(dataset, "identity") else None
    return {**(own or {}), "content": dataset.content}


def _fixed_noise(std: float, split: str, seed: int) -> FixedNoise | None:
    """The noise that belongs to the images of a split; None without noise."""
    return FixedNoise(std=std, seed=int(stream(f"noise of {split}", seed=seed).integers(2**63))) if std else None


def _probe(data: ImageTask, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty images of the size that networks see, two of each class."""
    labels_B = torch.arange(2 * len(data.classes), device=device) // 2
    return torch.zeros(len(labels_B), 3, data.view.size, data.view.size, device=device), labels_B


def _say_uneven(dataset: Images, classes: Sequence[str], *parts: Sequence[np.ndarray]) -> None:
    """Say what the smallest class comes to where it is tiny, or far smaller than the largest."""
    sizes = [len(index) for index in parts[0]]
    label = int(np.argmin(sizes))
    trained, chosen, tested = (len(part[label]) for part in parts)
    if trained < _FEW or max(sizes) >= _UNEVEN * trained:
        smallest = f"{classes[label]} has {trained} images to train on, {chosen} to choose by and {tested} to test on"
        say(f"{dataset.place}: {smallest}; {classes[int(np.argmax(sizes))]} has {max(sizes)} to train on")


def _fits(group: str, value: object, fits: bool, options: str) -> None:
    if not fits:
        raise refusal(group, type(value).__name__, f"{options}, for a task on images")
