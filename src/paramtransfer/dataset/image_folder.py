"""Images in one folder for each class.

Shape letters: N images, B images of a batch, C channels (3), H height, W width.
"""

import hashlib
import io
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from paramtransfer.checks import flag, refusal, share, whole
from paramtransfer.dataset import image_cache
from paramtransfer.dataset.images import InMemory, Split, per_channel
from paramtransfer.errors import TrainingError
from paramtransfer.randomness import stream
from paramtransfer.stage import Stage

_LONG = 2000  # images that are worth a progress bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """A split that is decoded anew each time, for data larger than memory."""

    paths: Sequence[Path]
    labels_N: Tensor
    size: int

    def pixels(self, index_B: Tensor) -> Tensor:
        """Some of the images, decoded and brought to size, 8-bit values: (B, C, H, W)."""
        paths = [self.paths[i] for i in index_B.tolist()]
        try:
            return torch.stack([_decode(path, path.read_bytes(), self.size) for path in paths])
        except (OSError, ValueError) as error:
            raise TrainingError(f"{error}; mend or remove the file") from error


class ImageFolder:
    """Images at `train/<class>/*` and `test/<class>/*` below a folder, or at `<class>/*`, split by a seeded draw.

    Decoded once, brought to one size by resizing and cropping the centre, and cached under a hash of the files.

    Args:
        root: the folder.
        size: height and width that images are brought to, pixels.
        test_share: share of each class that tests, where there are no folders `train` and `test`.
        split_seed: what that draw derives from.
        skip_bad: whether files that cannot be decoded are left out, with a count, or refused.
        in_memory: whether all images are kept decoded; otherwise they are read and decoded for each batch.
        num_workers: processes that decode if not in memory; None for one on each core.
        cache_dir: where decoded images are kept.
        per_class: training images of a class that a task uses; None for all.
        mean: what normalization subtracts, by channel, 8-bit units.
        std: what normalization divides by, likewise.

    Raises:
        ValueError: an argument that is out of range, or no such images; names the key.
    """

    def __init__(
        self,
        *,
        root: str,
        size: int,
        test_share: float,
        split_seed: int,
        skip_bad: bool,
        in_memory: bool,
        num_workers: int | None,
        cache_dir: str,
        per_class: int | None,
        mean: object,
        std: object,
    ) -> None:
        self._root = Path(str(root)).expanduser()
        self.place = str(self._root.resolve())
        self.size = whole("dataset.size", size, at_least=1)
        self._test_share = share("dataset.test_share", test_share)
        self._split_seed = whole("dataset.split_seed", split_seed, at_least=0)
        self._skip_bad = flag("dataset.skip_bad", skip_bad)
        self._in_memory = flag("dataset.in_memory", in_memory)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores if num_workers is None else whole("dataset.num_workers", num_workers, at_least=0)
        self.num_workers = 0 if in_memory else workers
        self._cache_dir = Path(str(cache_dir)).expanduser()
        self.per_class = None if per_class is None else whole("dataset.per_class", per_class, at_least=1)
        self.mean = per_channel("dataset.mean", mean)
        self.std = per_channel("dataset.std", std)
        self.classes, self._files = self._find()

    def _find(self) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
        """The classes, and for each split its files with their labels."""
        if not self._root.is_dir():
            raise refusal(
                "dataset.root", self._root, "a folder of images, train/<class>/* and test/<class>/* or <class>/*"
            )
        split = all((self._root / name).is_dir() for name in ("train", "test"))
        folders = {name: self._root / name for name in ("train", "test")} if split else {"all": self._root}
        names = [{path.name for path in folder.iterdir() if _is_class(path)} for folder in folders.values()]
        classes = sorted(set[str]().union(*names))
        if not classes:
            raise refusal("dataset.root", self._root, "a folder with one folder for each class")
        files: dict[str, list[tuple[Path, int]]] = {"train": [], "test": []}
        for label, name in enumerate(classes):
            found = {part: _images(folder / name) for part, folder in folders.items()}
            if not split:
                order = stream(f"split {name}", seed=self._split_seed).permutation(len(found["all"]))
                num_test = round(self._test_share * len(order))
                found = {
                    "test": [found["all"][i] for i in sorted(order[:num_test])],
                    "train": [found["all"][i] for i in sorted(order[num_test:])],
                }
            for part, paths in found.items():
                if not paths:
                    raise ValueError(f"dataset.root={self._root}: class {name} must have at least one {part} image")
                files[part] += [(path, label) for path in paths]
        return classes, files

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on: the images, wherever they lie, how many, their split, size and scale."""
        return {
            "content": self.content,
            "size": self.size,
            "skip_bad": self._skip_bad,
            "per_class": self.per_class,
            "mean": self.mean,
            "std": self.std,
        }

    @cached_property
    def content(self) -> str:
        """A hash of all files; of their names, sizes and times where they are not all read."""
        digest = hashlib.blake2b(PIL.__version__.encode(), digest_size=16)  # versions decode a little differently
        for part, files in self._files.items():
            for path, label in files:
                digest.update(os.fsencode(f"{part}/{self.classes[label]}/{path.name}"))
                now = path.stat()
                state = now.st_size, now.st_mtime_ns
                digest.update(_hash(path, *state) if self._in_memory else repr(state).encode())
        return digest.hexdigest()

    @cached_property
    def train(self) -> Split:
        """What is trained on and chosen by."""
        return self._splits["train"]

    @cached_property
    def test(self) -> Split:
        """What is tested on, once."""
        return self._splits["test"]

    @cached_property
    def _splits(self) -> dict[str, Split]:
        if not self._in_memory:
            return self._listed()
        cache = self._cache_dir / f"{self.content}-{self.size}.safetensors"
        tensors, bad = image_cache.load(cache) or (None, [])
        if tensors is None:
            tensors, bad = self._decode_all()
            image_cache.store(cache, tensors, bad)
        self._report(bad)
        return {part: InMemory(tensors[f"{part}_pixels"], tensors[f"{part}_labels"]) for part in self._files}

    def _listed(self) -> dict[str, Split]:
        """The files of both splits, whose beginnings are looked at."""
        bad: list[str] = []
        splits: dict[str, Split] = {}
        with ThreadPoolExecutor() as pool:
            for part, files in self._files.items():
                opens = list(pool.map(_opens, (path for path, _ in files)))
                bad += [str(path) for (path, _), good in zip(files, opens, strict=True) if not good]
                good = [file for file, good in zip(files, opens, strict=True) if good]
                splits[part] = Files([path for path, _ in good], torch.tensor([label for _, label in good]), self.size)
        self._report(bad)
        return splits

    def _report(self, bad: list[str]) -> None:
        """Refuse files that cannot be decoded, or say how many are left out."""
        if bad and not self._skip_bad:
            raise ValueError(f"{bad[0]}: cannot be decoded; mend or remove it, or set dataset.skip_bad=true")
        if bad:
            count = f"{len(bad)} images left out that cannot be decoded, the first {bad[0]}"
            log.warning(f"dataset.skip_bad=true: {count}")

    def _decode_all(self) -> tuple[dict[str, Tensor], list[str]]:
        """Pixels and labels of both splits, and the files that cannot be decoded."""
        tensors, bad = {}, []

        def decode(file: tuple[Path, int]) -> Tensor | None:
            try:
                return _decode(file[0], file[0].read_bytes(), self.size)
            except ValueError:
                return None

        with ThreadPoolExecutor() as pool:
            for part, files in self._files.items():
                decoded = tqdm(pool.map(decode, files), f"decoding {part}", len(files), disable=len(files) < _LONG)
                pixels, labels = [], []
                for (path, label), picture in zip(files, decoded, strict=True):
                    if picture is None:
                        bad.append(str(path))
                    else:
                        pixels.append(picture)
                        labels.append(label)
                tensors[f"{part}_pixels"] = torch.stack(pixels) if pixels else torch.empty(0, 3, self.size, self.size)
                tensors[f"{part}_labels"] = torch.tensor(labels, dtype=torch.long)
        return tensors, bad


@cache
def _hash(path: Path, size: int, mtime_ns: int) -> bytes:
    """Of a file's bytes, read once in a process while size and time stay: a sweep makes many datasets of one folder."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in IMG_EXTENSIONS)


def _opens(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError):
        return False


def _decode(path: Path, content: bytes, size: int) -> Tensor:
    """An image, upright, resized so that it covers a square of that size, and the centre of it: (C, H, W).

    Raises:
        ValueError: the file is no image that can be decoded.
    """
    try:
        image: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
        image = image.convert("RGB")
    except Exception as error:  # whatever a damaged file leads PIL to
        raise ValueError(f"{path}: cannot be decoded ({error})") from error
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
