"""Benchmarks on images: augmentation against torchvision's, training steps against a bare loop."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from bench_table import Line, Times, at_most, faster, fastest
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from paramtransfer.dataset.image_folder import ImageFolder
from paramtransfer.dataset.images import InMemory
from paramtransfer.model.networks import library_network, make_network
from paramtransfer.optim.optimizers import SGD
from paramtransfer.task.minibatches import ImageTask, Part, View
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.store import Store
from paramtransfer.trainer.checkpoints import Checkpoints
from paramtransfer.trainer.stage_trainer import StageTrainer
from paramtransfer.training.supervised import SupervisedTraining
from paramtransfer.transfer.callback import ParameterTransfer
from paramtransfer.transfer.layers import Layers
from paramtransfer.transfer.rules import Filters, TransferRule

_MEAN, _STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
_TRAINER = {"cpu": "cpu", "cuda": "gpu"}


class Bench(Protocol):
    """What these lines need."""

    device: str
    quick: bool


def augmentation(bench: Bench) -> Iterator[Line]:
    """An epoch of crops, flips and normalization, >= 15 times as fast as torchvision's way.

    The peer is torchvision's ImageFolder with its transforms in a DataLoader with 2 workers, on the same JPEG files,
    started once.
    """
    num_images = 2000 if bench.quick else 10_000
    with tempfile.TemporaryDirectory() as folder:
        root = _write_images(Path(folder) / "images", num_images)
        ours = ImageFolder(
            root=str(root),
            size=32,
            test_share=0.0,
            split_seed=0,
            skip_bad=False,
            in_memory=True,
            num_workers=0,
            cache_dir=folder,
            per_class=None,
            mean=_MEAN,
            std=_STD,
        )
        data = _task(ours, size=32, batch_size=128)
        trainer: Any = SimpleNamespace(global_step=0, global_rank=0, world_size=1, training=True)
        data.trainer = trainer
        device = torch.device(bench.device)

        def epoch() -> None:
            for batch in data.train_dataloader():
                data.on_after_batch_transfer(batch._replace(images=batch.images.to(device)), 0)

        steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        scale = transforms.Normalize([value / 255 for value in _MEAN], [value / 255 for value in _STD])
        peer = datasets.ImageFolder(str(root / "train"), transforms.Compose([*steps, scale]))
        loader = DataLoader(peer, batch_size=128, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)

        def torchvision_epoch() -> None:
            for images, _ in loader:
                images.to(device)

        torchvision_epoch()  # starts the workers
        times = fastest(epoch, torchvision_epoch, 3)
    what = (
        f"augmented epoch of {num_images:,} images, {num_images / times.ours:,.0f} images/s / torchvision's, 2 workers"
    )
    yield faster(what, times, at_least=15, aim=15)


def cnn_step(bench: Bench) -> Iterator[Line]:
    """A training step of ResNet-18 with half of its filters inherited, within 5 % of a bare loop."""
    model, upstream = (make_network("resnet18", num_classes=2, stem="imagenet", head="small") for _ in range(2))
    rule = Filters(alpha=0.5)
    times = _steps(bench, model, upstream, rule, size=32, batch_size=128, num_steps=4 if bench.quick else 60)
    yield at_most("training step of ResNet-18, 128 images of 32 x 32 / bare loop", times, 1.05)


def deit_step(bench: Bench) -> Iterator[Line]:
    """A training step of DeiT-Base at 224 x 224 with blocks 9 to 11 inherited, within 5 % of a bare timm loop."""
    model, upstream = (library_network("deit_base_patch16_224", num_classes=10) for _ in range(2))
    rule = Layers(layers=[9, 10, 11])
    batch_size = 2 if bench.device == "cpu" else 64
    times = _steps(bench, model, upstream, rule, size=224, batch_size=batch_size, num_steps=1 if bench.quick else 8)
    yield at_most(f"training step of DeiT-Base, {batch_size} images of 224 x 224 / bare timm loop", times, 1.05)


IMAGE_LINES: dict[int, Callable[[Any], Iterable[Line]]] = {8: augmentation, 9: cnn_step, 10: deit_step}


def _steps(
    bench: Bench,
    model: nn.Module,
    upstream: nn.Module,
    rule: TransferRule,
    *,
    size: int,
    batch_size: int,
    num_steps: int,
) -> Times:
    """Seconds of a step: a whole fit with data, transfer, tracking and checkpoints, and a bare loop on one batch."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch_size * num_steps, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (len(pixels),), generator=generator)
    split = InMemory(pixels, labels)
    images: Any = SimpleNamespace(train=split, test=split, num_workers=0, mean=_MEAN, std=_STD, size=32)
    optim = SGD(
        lr=1e-4,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_epochs=0,
        inherited_lr_scale=1,
    )
    training = SupervisedTraining(optim=optim, label_smoothing=0, mixup=0, cutmix=0)
    trainers = StageTrainer(
        accelerator=_TRAINER[bench.device],
        devices=1,
        precision="32-true",
        channels_last=False,
        compile=False,
        deterministic=False,
        progress=False,
        checkpoint_minutes=60,
        test_every_epoch=False,
    )

    def ours(store: Store) -> None:
        data = _task(images, size=size, batch_size=batch_size)
        session = Session(store)
        run_id = session.create(name="bench", tags={"stage": "downstream"}, params={}, files={})
        logger = store.logger(run_id)
        checkpoints = Checkpoints(session.checkpoints(run_id), minutes=60, before=logger.flush)
        callbacks = [ParameterTransfer(rule, upstream, seed=0), checkpoints]
        trainers("downstream", epochs=1, logger=logger, callbacks=callbacks).fit(training(model), data)

    seen = _task(images, size=size, batch_size=batch_size)._seen(pixels[:batch_size], 0, augment=False)

    def bare() -> None:
        network, batch, targets = (
            model.to(bench.device).train(),
            seen.to(bench.device),
            labels[:batch_size].to(bench.device),
        )
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
        for _ in range(num_steps):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(network(batch), targets))
            optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        times = fastest(partial(ours, Store(Path(folder))), bare, 2 if bench.quick else 3)
    return Times(times.ours / num_steps, times.peer / num_steps)


def _task(dataset: Any, *, size: int, batch_size: int) -> ImageTask:
    labels = dataset.train.labels_N
    everything = Part(split=dataset.train, index_N=torch.arange(len(labels)), labels_N=labels)
    few = Part(split=dataset.train, index_N=torch.arange(2), labels_N=labels[:2])
    return ImageTask(
        dataset=dataset,
        parts={"train": everything, "val": few, "test": few},
        classes=["one", "other"],
        view=View(size=size, padding=4, noise=0.0),
        side="downstream",
        seed=0,
        epochs=1,
        batch_size=batch_size,
    )


def _write_images(root: Path, num_images: int) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", num_images), ("test", 2)):
        for number in range(count):
            folder = root / part / str(number % 2)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=75)
    return root
