"""Images in one folder for each class.

Shape letters: N images, B images of a batch, C channels (3), H height, W width.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from paramtransfer.checks import flag, refusal, share, whole
from paramtransfer.dataset import decoding, folder_layout, image_cache
from paramtransfer.dataset.folder_layout import Part
from paramtransfer.dataset.image_cache import Kept
from paramtransfer.dataset.images import InMemory, Split, per_channel, say
from paramtransfer.errors import TrainingError
from paramtransfer.stage import Stage

_LONG = 2000  # images that are worth a progress bar
_HASH_BYTES = 16


@dataclass(frozen=True)
class Files:
    """A split that is decoded anew each time, for data larger than memory."""

    paths: Sequence[Path]
    labels_N: Tensor
    size: int

    def pixels(self, index_B: Tensor) -> Tensor:
        """Some of the images, decoded and brought to size, 8-bit values: (B, C, H, W)."""
        return torch.stack([self._pixels(self.paths[i]) for i in index_B.tolist()])

    def _pixels(self, path: Path) -> Tensor:
        try:
            return decoding.decode(path, self.size).pixels
        except ValueError as error:
            raise TrainingError(f"{path}: cannot be decoded ({error}); mend or remove the file") from error


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
        cache_dir: where decoded images are kept; None for the user's own folder of caches.
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
        cache_dir: str | None,
        per_class: int | None,
        mean: object,
        std: object,
    ) -> None:
        self._root = folder("dataset.root", root)
        self.place = str(self._root.resolve())
        self.size = whole("dataset.size", size, at_least=1)
        self._test_share = share("dataset.test_share", test_share)
        self._split_seed = whole("dataset.split_seed", split_seed, at_least=0)
        self._skip_bad = flag("dataset.skip_bad", skip_bad)
        self._in_memory = flag("dataset.in_memory", in_memory)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores if num_workers is None else whole("dataset.num_workers", num_workers, at_least=0)
        self.num_workers = 0 if in_memory else workers
        self._cache_dir = _cache_dir() if cache_dir is None else folder("dataset.cache_dir", cache_dir)
        self.per_class = None if per_class is None else whole("dataset.per_class", per_class, at_least=1)
        self.mean = per_channel("dataset.mean", mean)
        self.std = per_channel("dataset.std", std)
        found = folder_layout.find(self._root, test_share=self._test_share, split_seed=self._split_seed)
        self.classes, self._files = found.classes, found.files
        say(*found.said)

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
        digest = hashlib.blake2b(
            PIL.__version__.encode(), digest_size=_HASH_BYTES
        )  # versions decode a little differently
        for part, files in self._files.items():
            for (path, label), state in zip(files, self._states[part], strict=True):
                digest.update(os.fsencode(f"{part}/{self.classes[label]}/{path.name}"))
                digest.update(state)
        return digest.hexdigest()

    @cached_property
    def _states(self) -> Mapping[Part, Sequence[bytes]]:
        """A hash of each file, or its size and time."""
        return {part: [_state(path, self._in_memory) for path, _ in files] for part, files in self._files.items()}

    @cached_property
    def train(self) -> Split:
        """What is trained on and chosen by."""
        return self._splits["train"]

    @cached_property
    def test(self) -> Split:
        """What is tested on, once."""
        return self._splits["test"]

    @cached_property
    def _splits(self) -> Mapping[Part, Split]:
        if not self._in_memory:
            return self._listed()
        self._say_copies()
        cache = self._cache_dir / f"{self.content}-{self.size}.{decoding.VERSION}.safetensors"
        kept = image_cache.load(cache)
        if kept is None:
            kept = self._decode_all()
            image_cache.store(cache, kept)
        self._report(kept)
        return {part: InMemory(kept.tensors[f"{part}_pixels"], kept.tensors[f"{part}_labels"]) for part in self._files}

    def _say_copies(self) -> None:
        """Say which files are the same but for their label, or for their split."""
        labels, tested, first = list[str](), list[str](), dict[bytes, tuple[Part, Path, int]]()
        files = [(part, *file) for part, own in self._files.items() for file in own]
        states = [state for own in self._states.values() for state in own]
        for (part, path, label), state in zip(files, states, strict=True):
            if len(state) < _HASH_BYTES:  # it could not be read
                continue
            other_part, other, other_label = first.setdefault(state, (part, path, label))
            both = f"{self._name(other)} and {self._name(path)}"
            labels.extend([both] if label != other_label else [])
            tested.extend([both] if part != other_part else [])
        for copies, are in ((labels, "are in two classes"), (tested, "are trained on and tested on")):
            if copies:
                say(f"dataset.root={self._root}: {len(copies)} images {are}, byte for byte the same: {copies[0]}")

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._root))

    def _listed(self) -> Mapping[Part, Split]:
        """The files of both splits, whose beginnings are looked at."""
        kept = Kept({}, [], {})
        splits: dict[Part, Split] = {}

        def looked_at(file: tuple[Path, int]) -> str:
            try:
                decoding.peek(file[0])
            except ValueError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor() as pool:
            for part, files in self._files.items():
                reasons = list(pool.map(looked_at, files))
                kept.bad.extend((self._name(path), why) for (path, _), why in zip(files, reasons, strict=True) if why)
                good = [file for file, why in zip(files, reasons, strict=True) if not why]
                splits[part] = Files([path for path, _ in good], torch.tensor([label for _, label in good]), self.size)
        self._report(kept)
        return splits

    def _report(self, kept: Kept) -> None:
        """Refuse files that cannot be decoded, or say how many are left out; say what the others were made of."""
        if kept.bad:
            name, reason = kept.bad[0]
            first, more = f"{self._root / name}: cannot be decoded ({reason})", len(kept.bad) - 1
            if not self._skip_bad:
                others = f", nor can {more} others; mend or remove them" if more else "; mend or remove it"
                raise ValueError(f"{first}{others}, or set dataset.skip_bad=true")
            say(f"dataset.skip_bad=true: {len(kept.bad)} images left out, the first {first}")
        for note, (name, count) in kept.notes.items():
            say(f"dataset.root={self._root}: {count} images {note} (the first {name})")

    def _decode_all(self) -> Kept:
        """Pixels and labels of both splits, the files that cannot be decoded, and what is to be said of the others."""
        kept, room = Kept({}, [], {}), decoding.Room()

        def decode(file: tuple[Path, int]) -> decoding.Decoded | str:
            try:
                return decoding.decode(file[0], self.size, room)
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor() as pool:
            for part, files in self._files.items():
                decoded = tqdm(pool.map(decode, files), f"decoding {part}", len(files), disable=len(files) < _LONG)
                pixels, labels = [], []
                for (path, label), picture in zip(files, decoded, strict=True):
                    if isinstance(picture, str):
                        kept.bad.append((self._name(path), picture))
                        continue
                    pixels.append(picture.pixels)
                    labels.append(label)
                    if picture.note:
                        name, count = kept.notes.get(picture.note, (self._name(path), 0))
                        kept.notes[picture.note] = name, count + 1
                none = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
                kept.tensors[f"{part}_pixels"] = torch.stack(pixels) if pixels else none
                kept.tensors[f"{part}_labels"] = torch.tensor(labels, dtype=torch.long)
        return kept


def folder(key: str, value: object) -> Path:
    """A path as people write it, with `~` and variables.

    Raises:
        ValueError: it is empty, as a variable that is not set is.
    """
    text = "" if value is None else os.path.expandvars(str(value).strip())
    if not text:
        raise refusal(key, value, "a folder; where the value is a variable of the shell, is it set?")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise refusal(key, value, "a folder without ~, as there is no home directory") from error


def _cache_dir() -> Path:
    """The user's own folder of caches, as its standard says: an empty or relative variable is none."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return folder("dataset.cache_dir", given if given.startswith("/") else "~/.cache") / "paramtransfer"


def _state(path: Path, whole: bool) -> bytes:
    """A hash of a file's content, or its size and time; why it cannot be read."""
    try:
        now = path.stat()
        state = now.st_size, now.st_mtime_ns
        return _hash(path, *state) if whole else repr(state).encode()
    except OSError as error:
        return repr(error.errno).encode()


@cache
def _hash(path: Path, size: int, mtime_ns: int) -> bytes:
    """Of a file's bytes, read once in a process while size and time stay: a sweep makes many datasets of one folder."""
    return hashlib.blake2b(path.read_bytes(), digest_size=_HASH_BYTES).digest()
