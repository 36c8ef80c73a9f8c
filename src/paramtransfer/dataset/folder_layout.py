"""Which folders are classes, which are splits, and which files are images: what is unambiguous is taken, and said."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from paramtransfer.checks import refusal
from paramtransfer.dataset import decoding
from paramtransfer.randomness import stream

Part = Literal["train", "test"]
_PARTS: tuple[Part, ...] = ("train", "test")

_KEY = "dataset.root"
_LAYOUT = "a folder with train/<class>/* and test/<class>/*, or <class>/*"
_NAMES = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst"),
    "val": ("val", "valid", "validation", "dev"),
}
# What systems leave behind, besides what begins with a dot.
_NO_CLASS = {
    *("__MACOSX", "__pycache__", "@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", "lost+found"),
    "System Volume Information",
}
_NO_IMAGE = {"Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r"}
_FEWEST = {"train": 2, "test": 1}  # images of a class; one of the former is chosen by
_SHOWN = 4


class Found(NamedTuple):
    """The images of a folder."""

    classes: Sequence[str]
    files: Mapping[Part, Sequence[tuple[Path, int]]]
    """Each with its class's place."""
    said: Sequence[str]
    """What was taken for what, and what was passed over, in sentences."""


def find(root: Path, *, test_share: float, split_seed: int) -> Found:
    """The classes of a folder, and the files of each split.

    Args:
        root: the folder.
        test_share: share of each class that tests, where there is no folder for it.
        split_seed: what that draw derives from.

    Raises:
        ValueError: it holds no images, or they lie in a way that can be read in more than one; says what was seen.
    """
    search = _Search(root, test_share=test_share, split_seed=split_seed)
    top = search.unwrapped()
    folders = search.splits(top)
    found = {part: search.classes(listing) for part, listing in folders.items()}
    names = sorted(set[str]().union(*found.values()))
    if not any(files for classes in found.values() for files in classes.values()):
        raise search.refused(f"no image is in any of {_few(names)}{search.passed_over_of(names)}")
    if len(names) < 2:
        raise search.refused(f"all images are of one class, {_few(names)}")
    files: dict[Part, list[tuple[Path, int]]] = {"train": [], "test": []}
    for label, name in enumerate(names):
        for part, paths in search.split(name, {part: classes.get(name) for part, classes in found.items()}).items():
            files[part] += [(path, label) for path in paths]
    return Found(names, files, search.sentences())


@dataclass(frozen=True)
class _Listing:
    """What a folder holds."""

    path: Path
    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Files that are not read, by their ending."""


def _list(path: Path) -> _Listing:
    """A folder's entries in order, but for what systems leave behind."""
    listing = _Listing(path)
    try:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name in _NO_IMAGE:
                    continue
                if entry.is_dir():
                    listing.folders.extend([] if entry.name in _NO_CLASS else [Path(entry.path)])
                elif not entry.is_file() and os.path.exists(entry.path):
                    listing.others["pipe or device"] += 1
                elif Path(entry.name).suffix.lower() in decoding.formats():
                    listing.images.append(Path(entry.path))
                else:
                    listing.others[Path(entry.name).suffix.lower() or "file without an ending"] += 1
    except OSError as error:
        raise refusal(_KEY, path, f"a folder of images that can be read ({error.strerror})") from error
    return listing


class _Search:
    """One folder, and what was seen in it so far."""

    def __init__(self, root: Path, *, test_share: float, split_seed: int) -> None:
        self._root = root
        self._test_share = test_share
        self._split_seed = split_seed
        self._has_test = False
        self._said: list[str] = []
        self._others: dict[str, Counter[str]] = {}
        self._below: Counter[str] = Counter()

    def refused(self, seen: str) -> ValueError:
        return refusal(_KEY, self._root, f"{_LAYOUT}: {seen}")

    def unwrapped(self) -> _Listing:
        """The folder, or the one that it wraps."""
        listing = _list(self._root)
        while not listing.images and len(listing.folders) == 1 and _role(listing.folders[0]) is None:
            inner = _list(listing.folders[0])
            if inner.images or not inner.folders:
                break
            listing = inner
        if not listing.folders:
            held = f"{len(listing.images)} images and no folder" if listing.images else "no folder"
            raise self.refused(f"it holds {held}{_kinds(listing.others)}")
        if listing.path != self._root:
            self._said.append(f"images are taken from {listing.path.relative_to(self._root)}/")
        return listing

    def splits(self, top: _Listing) -> dict[str, _Listing]:
        """The folders `train` and `test`, however they are written; or all classes in one."""
        roles: dict[str, list[_Listing]] = {}
        for folder in top.folders:
            role, listing = _role(folder), _list(folder)
            if role is not None and listing.folders and not listing.images:
                roles.setdefault(role, []).append(listing)
        if not roles:
            named = [folder.name for folder in top.folders if _role(folder) is not None]
            if len(named) == len(top.folders):
                raise self.refused(f"{_few(named)} hold no folder for each class")
            return {"all": top}
        taken = {role: listings[0] for role, listings in roles.items()}
        seen = " and ".join(listing.path.name for listings in roles.values() for listing in listings)
        if any(len(listings) > 1 for listings in roles.values()):
            raise self.refused(f"it holds {seen}")
        if "train" not in taken:
            raise self.refused(f"it holds {seen}, but no train folder")
        if "test" in taken:
            self._has_test = True
            if [taken[part].path.name for part in _PARTS] != list(_PARTS):
                self._said.append(f"{taken['train'].path.name} is trained on, {taken['test'].path.name} tested on")
        elif "val" in taken:
            mend = f"rename {taken['val'].path.name} to test, or give dataset.root={taken['train'].path}"
            raise self.refused(f"it holds {seen}: no test folder; {mend}, a share of which then tests")
        else:
            self._said.append(f"there is no test folder: dataset.test_share={self._test_share:g} of train tests")
        used = [taken[part].path for part in _PARTS if part in taken]
        aside = [folder.name for folder in top.folders if folder not in used]
        if aside:
            self._said.append(f"{_few(aside)} left aside")
        return {part: taken[part] for part in _PARTS} if self._has_test else {"all": taken["train"]}

    def classes(self, listing: _Listing) -> dict[str, list[Path]]:
        """The images of each class in a split."""
        if listing.images:
            self._said.append(f"{len(listing.images)} images that lie in no class's folder are passed over")
        return {_shown(folder): self._images(_list(folder)) for folder in listing.folders}

    def _images(self, listing: _Listing) -> list[Path]:
        """Of one class: in its folder, or in the only one below it."""
        name = _shown(listing.path)
        self._others.setdefault(name, Counter()).update(listing.others)
        below = [inner for inner in map(_list, listing.folders) if inner.images or inner.folders]
        if not below:
            return listing.images
        if not listing.images and len(below) == 1 and below[0].images:
            self._below["images one level deeper"] += 1
            self._others[name].update(below[0].others)
            return below[0].images
        if listing.images:
            self._below["folders within a class's folder"] += len(below)
            return listing.images
        raise self.refused(
            f"{name} holds no images but folders, {_few([inner.path.name for inner in below])}: which are the classes?"
        )

    def split(self, name: str, found: Mapping[str, Sequence[Path] | None]) -> dict[Part, list[Path]]:
        """A class's images to train and to test on."""
        for part, paths in found.items():
            if not paths:
                kind = "" if part == "all" else f" {part}"
                raise self.refused(f"class {name} has no{kind} image{self.passed_over_of([name])}")
        if self._has_test:
            return {part: list(found[part] or ()) for part in _PARTS}
        paths = found["all"] or ()
        if len(paths) < sum(_FEWEST.values()):
            needed = "one each to train on, to choose by and to test on"
            raise self.refused(f"class {name} has {len(paths)} images of at least three, {needed}")
        if self._test_share in (0, 1):
            allowed = f"above 0 and below 1, as {self._root} has no test folder"
            raise refusal("dataset.test_share", self._test_share, allowed)
        order = stream(f"split {name}", seed=self._split_seed).permutation(len(paths))
        num_test = min(max(_FEWEST["test"], round(self._test_share * len(order))), len(order) - _FEWEST["train"])
        return {
            "test": [paths[i] for i in sorted(order[:num_test])],
            "train": [paths[i] for i in sorted(order[num_test:])],
        }

    def passed_over_of(self, names: Iterable[str]) -> str:
        """The files of some classes that are not read, as the end of a sentence."""
        return _kinds(sum((self._others.get(name, Counter()) for name in names), Counter[str]()))

    def sentences(self) -> list[str]:
        """What was taken for what, and what was passed over."""
        below = [f"{what}: {count} classes" for what, count in self._below.items()]
        passed_over = self.passed_over_of(self._others).removeprefix("; ")
        return [f"{_KEY}={self._root}: {sentence}" for sentence in (*self._said, *below, passed_over) if sentence]


def _role(folder: Path) -> str | None:
    """Which split a folder is called after."""
    return next((role for role, names in _NAMES.items() if folder.name.lower() in names), None)


def _shown(folder: Path) -> str:
    """A folder's name as a class, also where it is no UTF-8."""
    return os.fsencode(folder.name).decode("utf-8", "backslashreplace")


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])


def _kinds(others: Counter[str]) -> str:
    """Files that are not read, as the end of a sentence."""
    if not others:
        return ""
    kinds = _few([f"{count} {ending}" for ending, count in others.most_common()])
    hint = " (pip install pillow-heif reads .heic)" if {".heic", ".heif"} & others.keys() else ""
    return f"; passed over {kinds}{hint}"
