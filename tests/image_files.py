"""Small image sets on disk, made by the tests."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def picture(rng: np.random.Generator, label: int, size: int = 32) -> np.ndarray:
    """Noise whose colour says the class: (size, size, 3)."""
    colour = np.array([label % 3, label // 3 % 3, label // 9]) * 100
    return np.clip(colour + rng.normal(0, 20, (size, size, 3)), 0, 255).astype(np.uint8)


def write_folder(
    root: Path, *, train: int = 12, test: int = 6, classes: list[str] = NAMES, suffix: str = "png"
) -> Path:
    """`train/<class>/*` and `test/<class>/*`."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture(rng, label)).save(root / part / name / f"{i:03d}.{suffix}")
    return root


def write_cifar(root: Path, source: type[datasets.CIFAR10], monkeypatch: pytest.MonkeyPatch, *, per_class: int) -> Path:
    """The unpacked archive of CIFAR-10 or CIFAR-100, with its own checksums."""
    rng = np.random.default_rng(0)
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    key = "labels" if source is datasets.CIFAR10 else "fine_labels"
    names = NAMES if source is datasets.CIFAR10 else [f"class {label}" for label in range(100)]

    def write(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for listed in ("train_list", "test_list"):
        made = []
        for name, _ in getattr(source, listed):
            labels = [label for label in range(len(names)) for _ in range(per_class)]
            pixels = np.stack([picture(rng, label).transpose(2, 0, 1).ravel() for label in labels])
            made.append([name, write(name, {"data": pixels, key: labels})])
        monkeypatch.setattr(source, listed, made)
    key = source.meta["key"]
    meta = {**source.meta, "md5": write(source.meta["filename"], {key: names})}
    monkeypatch.setattr(source, "meta", meta)
    return root


def is_for_images(option: Path) -> bool:
    """Whether a configuration file is for tasks on images."""
    text = option.stem + option.read_text()
    return any(
        word in text
        for word in (
            "Image",
            "Halved",
            "CIFAR",
            "cifar10",
            "network_pair",
            "- deit",
            "- narrow_resnets",
            "image_defaults",
            "momentum",
            "Adam",
        )
    )
