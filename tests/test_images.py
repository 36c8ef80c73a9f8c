"""Image datasets, their splits, augmentation, and what is refused of them."""

import errno
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from image_files import NAMES, write_cifar, write_folder
from PIL import Image
from torchvision import datasets

from paramtransfer.dataset import images
from paramtransfer.dataset.cifar import CIFAR
from paramtransfer.dataset.decoding import Room, decode
from paramtransfer.dataset.image_folder import ImageFolder
from paramtransfer.dataset.preprocessing import crop_and_flip, normalize, resize
from paramtransfer.errors import TrainingError
from paramtransfer.model.network_pair import NetworkPair
from paramtransfer.optim.optimizers import SGD
from paramtransfer.task.class_split import ClassSplit
from paramtransfer.task.minibatches import Part

SCALE: dict[str, Any] = {"mean": [1, 1, 1], "std": [1, 1, 1], "per_class": None}


def folder(root: Path | str, **changes: Any) -> ImageFolder:
    settings = {"size": 32, "test_share": 0.25, "split_seed": 0, "skip_bad": False, "in_memory": True}
    where = {"root": str(root), "cache_dir": str(Path(root).parent / "cache"), "num_workers": 0}
    return ImageFolder(**{**settings, **where, **SCALE, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "root")


def split(dataset: Any, **changes: Any) -> ClassSplit:
    sgd = SGD(
        lr=0.1, momentum=0.9, nesterov=True, weight_decay=0, schedule="cosine", warmup_epochs=0, inherited_lr_scale=1
    )
    pair = NetworkPair(
        upstream={"name": "test_resnet", "weights": None},
        downstream={"name": "test_resnet"},
        stem="imagenet",
        head="small",
    )
    settings = {
        "upstream": {"epochs": 1},
        "downstream": {"epochs": 1, "per_class": None, "noise": 0, "fresh_noise": False},
        "batch_size": 8,
        "val_share": 0.25,
        "padding": 4,
        "input_size": None,
        "num_target": 2,
        "target_classes": None,
        "ratio": 3,
    }
    return ClassSplit(dataset=dataset, model=pair, optim=sgd, **{**settings, **changes})


def test_folder_holds_its_pictures(root: Path) -> None:
    """Pixels and labels as PIL reads them, in order of class and name; as many when streamed from disk."""
    kept, streamed = folder(root), folder(root, in_memory=False)
    assert list(kept.classes) == NAMES
    for part, count in (("train", 12), ("test", 6)):
        files = [path for name in NAMES for path in sorted((root / part / name).iterdir())]
        expected = np.stack([np.array(Image.open(path)).transpose(2, 0, 1) for path in files])
        for dataset in (kept, streamed):
            here = getattr(dataset, part)
            assert here.labels_N.tolist() == [label for label in range(10) for _ in range(count)]
            assert np.array_equal(here.pixels(torch.arange(len(files))).numpy(), expected)


def test_pictures_are_brought_to_size(tmp_path: Path) -> None:
    """The shorter side is resized, the middle of the longer one kept."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            wide = np.zeros((10, 30, 3), np.uint8)
            wide[:, 10:20] = 200
            Image.fromarray(wide).save(tmp_path / part / name / "wide.png")
    pixels = folder(tmp_path, size=20).train.pixels(torch.tensor([0]))
    assert pixels.shape == (1, 3, 20, 20)
    assert pixels[..., 2:18].min() > 190


def test_one_tree_is_split_by_a_seed(tmp_path: Path) -> None:
    """A share of each class tests; no image does both; another seed, another split."""
    tree = write_folder(tmp_path / "root", train=8, test=1, classes=["a", "b"]) / "train"
    one, other = folder(tree), folder(tree, split_seed=1)
    for dataset in (one, other):
        assert torch.bincount(dataset.test.labels_N).tolist() == [2, 2]
        assert torch.bincount(dataset.train.labels_N).tolist() == [6, 6]
        both = torch.cat([part.pixels(torch.arange(len(part.labels_N))) for part in (dataset.train, dataset.test)])
        assert len(both.flatten(1).unique(dim=0)) == 16
    assert not torch.equal(one.test.pixels(torch.arange(4)), other.test.pixels(torch.arange(4)))


@pytest.mark.parametrize("damage", ["flipped byte", "half written"])
def test_damaged_cache_is_rebuilt(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is read afterwards is what was decoded first, and a changed image is decoded anew."""
    root = write_folder(tmp_path / "root", train=2, test=1)
    pixels = folder(root).train.pixels_NCHW  # type: ignore[attr-defined]
    (cache,) = (tmp_path / "cache").iterdir()
    content = bytearray(cache.read_bytes())
    if damage == "flipped byte":
        content[-100] ^= 1
    cache.write_bytes(content if damage == "flipped byte" else content[: len(content) // 2])
    assert torch.equal(folder(root).train.pixels_NCHW, pixels)  # type: ignore[attr-defined]
    assert "damaged" in caplog.text
    caplog.clear()
    assert torch.equal(folder(root).train.pixels_NCHW, pixels)  # type: ignore[attr-defined]
    assert not caplog.text

    Image.new("RGB", (32, 32), "red").save(root / "train" / "airplane" / "000.png")
    assert folder(root).train.pixels(torch.tensor([0]))[0, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("variable", "place"), [("", ".cache"), ("relative", ".cache"), ("{}/own", "own")])
def test_cache_lies_where_the_standard_says(
    variable: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable is none: nothing is written to the root folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", variable.format(tmp_path))
    _ = folder(tree(tmp_path / "root", "a/*", "b/*"), cache_dir=None).train
    assert len(list((tmp_path / place / "paramtransfer").iterdir())) == 1


def test_moved_folder_has_the_same_content(root: Path, tmp_path: Path) -> None:
    """So that its runs are found again; other images have another."""
    moved, other = write_folder(tmp_path / "moved"), write_folder(tmp_path / "other", train=11)
    assert folder(moved).content == folder(root).content != folder(other).content


@pytest.mark.parametrize("source", [datasets.CIFAR10, datasets.CIFAR100])
def test_cifar_files_are_read(source: type[datasets.CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the format, as torchvision reads them."""
    write_cifar(tmp_path, source, monkeypatch, per_class=1)
    dataset = CIFAR(source=source, root=str(tmp_path), download=False, **SCALE)
    expected = source(tmp_path, train=False)
    assert dataset.test.labels_N.tolist() == expected.targets
    assert np.array_equal(dataset.test.pixels_NCHW.permute(0, 2, 3, 1).numpy(), expected.data)
    assert len(dataset.classes) == len(dataset.test.labels_N)


def test_cifar_says_what_to_do_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, where from and where to."""
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(ValueError, match=r"dataset\.root=.*cifar-10-python\.tar\.gz.*put the file there"):
        CIFAR(source=datasets.CIFAR10, root=str(tmp_path), download=True, **SCALE)


def write(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    """A file, and the folders above it; a colour for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image or Image.new("RGB", (8, 8), tuple(crc32(bytes(path)).to_bytes(4, "big")[:3]))
    image.save(path, **{"format": None if path.suffix in Image.registered_extensions() else "PNG", **options})
    return path


def tree(root: Path, *names: str) -> Path:
    """Images at `names`, or empty files of other kinds; `*` stands for five images."""
    root.mkdir(exist_ok=True)
    for name in names:
        for number in range(5) if "*" in name else (0,):
            path = write(root / name.replace("*", f"{number}.png"))
            if path.suffix != ".png":
                path.write_bytes(b"")
    return root


RECOGNIZED = {
    "wrapped": (["in/a/*", "in/b/*"], r"images are taken from in/", [8, 2]),
    "capitals": (["Train/a/*", "Train/b/*", "Test/a/*", "Test/b/*"], r"Train is trained on, Test tested on", [10, 10]),
    "training": (["training/a/*", "training/b/*", "testing/a/*", "testing/b/*"], r"training is trained on", [10, 10]),
    "only train": (["train/a/*", "train/b/*"], r"no test folder: dataset\.test_share=0\.25 of train", [8, 2]),
    "val aside": (["train/a/*", "train/b/*", "test/a/*", "test/b/*", "val/a/*"], r"val left aside", [10, 10]),
    "one deeper": (["a/images/*", "b/images/*"], r"images one level deeper: 2 classes", [8, 2]),
    "beside": (["a/*", "b/*", "loose.png"], r"1 images that lie in no class's folder are passed over", [8, 2]),
    "a train": (["bus/*", "train/*"], "", [8, 2]),
    "left behind": (
        [*("a/*", "b/*", "a/._0.png", "@eaDir/*", "lost+found/*", "__MACOSX/a/*", ".ipynb_checkpoints/*")],
        "",
        [8, 2],
    ),
}


@pytest.mark.parametrize("names", RECOGNIZED)
def test_layouts_that_are_unambiguous(names: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Read, and said what was taken for what; what systems leave behind is no image."""
    files, sentence, counts = RECOGNIZED[names]
    dataset = folder(tree(tmp_path / "root", *files))
    assert [len(part.labels_N) for part in (dataset.train, dataset.test)] == counts
    assert list(dataset.classes) == (["bus", "train"] if names == "a train" else ["a", "b"])
    assert re.search(sentence, caplog.text) if sentence else not caplog.text


REFUSED = {
    "no test": (["train/a/*", "train/b/*", "val/a/*"], r"it holds train and val: no test folder; rename val to test"),
    "no train": (["test/a/*", "test/b/*"], r"it holds test, but no train folder"),
    "two trains": (["train/a/*", "Training/a/*", "test/a/*"], r"it holds Training and train and test"),
    "flat": (["1.png", "2.png"], r"it holds 2 images and no folder"),
    "flat splits": (["train/*", "test/*"], r"test, train hold no folder for each class"),
    "two levels": (["a/x/*", "a/y/*", "b/*"], r"a holds no images but folders, x, y: which are the classes\?"),
    "one class": (["a/*"], r"all images are of one class, a"),
    "two images": (["a/1.png", "a/2.png", "b/*"], r"class a has 2 images of at least three, one each to train"),
    "no test image": (["train/a/*", "train/b/*", "test/a/*"], r"class b has no test image"),
    "no images": (["a/no.txt", "b/1.eps"], r"no image is in any of a, b; passed over 1 \.txt, 1 \.eps"),
    "kinds": (["a/*", "b/1.heic", "b/2.heic"], r"class b has no image; passed over 2 \.heic \(pip install pillow-heif"),
    "empty": ([], r"it holds no folder"),
}


@pytest.mark.parametrize("names", REFUSED)
def test_layouts_that_are_refused(names: str, tmp_path: Path) -> None:
    """One sentence with what was seen."""
    files, seen = REFUSED[names]
    allowed = r"must be a folder with train/<class>/\* and test/<class>/\*, or <class>/\*"
    with pytest.raises(ValueError, match=rf"^dataset\.root=\S*root: {allowed}: {seen}"):
        folder(tree(tmp_path / "root", *files))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"root": ""}, r"dataset\.root=: must be a folder; where the value is a variable of the shell, is it set\?"),
        ({"root": "nowhere"}, r"dataset\.root=nowhere: must be a folder of images that can be read \(No such file"),
        ({"test_share": 0}, r"dataset\.test_share=0\.0: must be above 0 and below 1, as \S*root has no test folder"),
        ({"test_share": 1}, r"dataset\.test_share=1\.0: must be above 0 and below 1"),
        ({"mean": [0.485, 0.456, 0.406]}, r"dataset\.mean=.*8-bit units, 0 to 255: multiply values of 0 to 1 by 255"),
        ({"std": [0.229, 0.224, 0.225]}, r"dataset\.std=.*8-bit units"),
        ({"mean": [1, 2]}, r"dataset\.mean=\[1, 2\]: must be three positive numbers"),
    ],
)
def test_settings_of_a_folder_are_refused(changes: Any, sentence: str, tmp_path: Path) -> None:
    """One sentence that names the key."""
    with pytest.raises(ValueError, match=rf"^{sentence}"):
        folder(**{"root": tree(tmp_path / "root", "a/*", "b/*"), **changes})


def test_few_images_of_a_class_are_split(tmp_path: Path) -> None:
    """Whatever the share: one tests, two are left to train on and to choose by."""
    for share in (0.01, 0.25, 0.99):
        dataset = folder(tree(tmp_path / "root", "a/*", "b/1.png", "b/2.png", "b/3.png"), test_share=share)
        assert torch.bincount(dataset.test.labels_N).min() == 1
        assert torch.bincount(dataset.train.labels_N).min() == 2


grey16 = Image.fromarray(np.full((8, 8), 100 << 8, np.uint16))
clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
white = Image.new("RGB", (8, 8), "white")
PIXELS: dict[str, tuple[str, Image.Image, dict[str, Any], int, str]] = {
    "16 bits": ("png", grey16, {}, 100, ""),
    "16 bits of a PGM": ("pgm", grey16.convert("I"), {}, 100, ""),
    "32 bits": ("tiff", Image.fromarray(np.full((8, 8), 100 << 8, np.int32)), {}, 100, ""),
    "12 bits": (
        "png",
        Image.fromarray(np.full((8, 8), 4095, np.uint16)),
        {},
        15,
        "of 16 bits that use 12 of them at most",
    ),
    "0 to 1": ("tiff", Image.fromarray(np.full((8, 8), 0.4, np.float32)), {}, 102, ""),
    "0 to 255": ("tiff", Image.fromarray(np.full((8, 8), 99.6, np.float32)), {}, 100, ""),
    "transparent": ("png", clear, {}, 255, "with transparency"),
    "transparent palette": ("png", clear.convert("RGB").quantize(2), {"transparency": 0}, 255, "with transparency"),
    "opaque": ("png", Image.new("RGBA", (8, 8), (9, 9, 9, 255)), {}, 9, ""),
    "frames": ("gif", white, {"save_all": True, "append_images": [clear]}, 255, "with several frames"),
    "one bit": ("png", Image.new("1", (8, 8), 1), {}, 255, ""),
    "JPEG 2000": ("jp2", Image.new("RGB", (8, 8), (7, 7, 7)), {}, 7, ""),
    "CMYK": ("jpg", Image.new("CMYK", (8, 8), 0), {}, 255, ""),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_are_what_people_see(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As 8-bit values, whatever the depth; what might not be meant is said, from the cache too."""
    suffix, image, options, expected, note = PIXELS[kind]
    tree(tmp_path / "root", "test/a/*", "test/b/*", "train/b/*")
    write(tmp_path / "root" / "train" / "a" / f"0.{suffix}", image, **options)
    for _ in range(2):
        images._say.cache_clear()
        caplog.clear()
        assert folder(tmp_path / "root", size=8).train.pixels(torch.tensor([0])).unique().tolist() == [expected]
        assert f"1 images {note}" in caplog.text if note else not caplog.text


def bad_files(root: Path) -> dict[str, str]:
    """Files that cannot be read in some way, with the reason."""
    for name, content in {"empty": b"", "text": b"<html>", "cut": write(root / "whole.png").read_bytes()[:50]}.items():
        (root / f"{name}.png").write_bytes(content)
    (root / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (root / "link.png").symlink_to("nothing")
    write(root / "huge.tif", Image.fromarray(np.full((8, 8), -1, np.int32)))
    write(root / "nan.tif", Image.fromarray(np.full((8, 8), np.nan, np.float32)))
    return {
        "empty.png": "it is empty",
        "text.png": "its content is no image of a kind that is read",
        "cut.png": r"[\w ]*(truncated|broken)",
        "eps.jpg": "its content is no image of a kind that is read",
        "link.png": "a link to nothing",
        "huge.tif": "its values are from -1 to -1: must be 0 to 65535 in whole numbers",
        "nan.tif": "its values are from nan to nan: must be 0 to 1 or 0 to 255 in floating point",
    }


def test_files_that_cannot_be_decoded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Named with the reason and the number of others, or left out; a pipe is never opened."""
    root = tree(tmp_path / "root", "test/a/*", "test/b/*", "train/a/*", "train/b/*")
    reasons = bad_files(root / "train" / "a")
    os.mkfifo(root / "train" / "a" / "pipe.png")
    (root / "train" / "a" / "folder.png").mkdir()
    (root / os.fsdecode(b"train/a/caf\xe9.png")).write_bytes((root / "train" / "a" / "whole.png").read_bytes())
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=rf"^{reason}"):
            decode(root / "train" / "a" / name, 8)
    with pytest.raises(ValueError, match=r"nor can 6 others; mend or remove them, or set dataset\.skip_bad=true$"):
        _ = folder(root).train
    for _ in range(2):
        images._say.cache_clear()
        caplog.clear()
        assert len(folder(root, skip_bad=True).train.labels_N) == 12
        assert re.search(r"7 images left out, the first \S*cut\.png: cannot be decoded \(", caplog.text)
    assert "passed over 1 pipe or device" in caplog.text


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence, or left out."""
    root = tree(tmp_path / "root", "test/a/*", "test/b/*", "train/a/*", "train/b/*")
    plain = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path == root / "train" / "a" / "0.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(ValueError, match=r"^\S*train/a/0\.png: cannot be decoded \(Permission denied\); mend"):
        _ = folder(root).train
    assert len(folder(root, skip_bad=True).train.labels_N) == 9


def test_copies_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One image with two labels, or trained on and tested on."""
    root = tree(tmp_path / "root", "test/a/*", "test/b/*", "train/a/*", "train/b/*")
    shutil.copy(root / "train" / "a" / "0.png", root / "train" / "b" / "copy.png")
    shutil.copy(root / "train" / "b" / "1.png", root / "test" / "b" / "copy.png")
    _ = folder(root).train
    assert re.search(r"images are in two classes, byte for byte the same: train/a/0\.png and train/b/copy", caplog.text)
    assert re.search(r"images are trained on and tested on, .* train/b/1\.png and test/b/copy\.png", caplog.text)


def test_pixels_in_flight_are_bounded(tmp_path: Path) -> None:
    """However many threads decode; an image that is larger than the bound is decoded alone."""
    room, now, most = Room(100), [0], [0]

    def take(pixels: int) -> None:
        with room.taken(pixels):
            now[0] += pixels
            most[0] = max(most[0], now[0])
            time.sleep(0.001)
            now[0] -= pixels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [30, 30, 30, 30, 50, 90, 100, 10] * 5))
        assert 50 < most[0] <= 100
        most[0] = 0
        list(pool.map(take, [500, 10, 500]))
        assert most[0] == 500

        path = write(tmp_path / "image.png")
        with room.taken(100):
            waiting = pool.submit(decode, path, 8, room)
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
        assert waiting.result(5).pixels.shape[1:] == (8, 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_image_that_ends_early(workers: int, tmp_path: Path) -> None:
    """Its beginning is fine; one sentence when it is decoded, from a worker process too."""
    root = write_folder(tmp_path / "root", suffix="jpg")
    path = next((root / "train").glob("*/*"))
    noise = np.random.default_rng(0).integers(256, size=(256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-10_000])
    task = split(folder(root, in_memory=False, num_workers=workers), ratio=4).data("upstream", seed=0)
    streamed = task.parts["train"].split
    everything = Part(split=streamed, index_N=torch.arange(len(streamed.labels_N)), labels_N=streamed.labels_N)
    task.parts["test"] = everything
    with pytest.raises(TrainingError, match=rf"^{path}: cannot be decoded \([^\n]*; mend or remove the file$"):
        list(task.test_dataloader())


def test_streamed_files_are_looked_at(tmp_path: Path) -> None:
    """What is no image is refused before training, or left out."""
    root = write_folder(tmp_path / "root", train=2, test=1)
    (root / "train" / "cat" / "000.png").write_bytes(b"")
    assert len(folder(root, skip_bad=True, in_memory=False).train.labels_N) == 19
    with pytest.raises(ValueError, match=r"cat/000\.png: cannot be decoded \(it is empty\)"):
        _ = folder(root, in_memory=False).train


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_no_class_is_in_both_tasks_and_no_image_in_two_parts(root: Path, ratio: int) -> None:
    """For several seeds; sources of a smaller ratio are among those of a larger one, targets do not depend on it."""
    dataset = folder(root)
    for seed in range(5):
        tasks, largest = split(dataset, ratio=ratio), split(dataset, ratio=4)
        target, source = tasks.classes_of("downstream", seed), tasks.classes_of("upstream", seed)
        assert len(target) == 2
        assert len(source) == 2 * ratio
        assert not set(target) & set(source)
        assert target == largest.classes_of("downstream", seed)
        assert set(source) <= set(largest.classes_of("upstream", seed))
        data = tasks.data("downstream", seed=seed)
        train, val, test = (data.parts[part] for part in ("train", "val", "test"))
        assert not set(train.index_N.tolist()) & set(val.index_N.tolist())
        assert torch.bincount(val.labels_N).tolist() == [3, 3]
        for part, own in ((train, dataset.train), (val, dataset.train), (test, dataset.test)):
            assert part.split is own
            names = [NAMES[label] for label in own.labels_N[part.index_N].tolist()]
            assert names == [target[label] for label in part.labels_N.tolist()]
    assert split(dataset).classes_of("downstream", 0) != split(dataset).classes_of("downstream", 1)


def test_few_images_of_a_class(root: Path) -> None:
    """dataset.per_class bounds what is trained on, not what is chosen or tested by."""
    parts = split(folder(root, per_class=4)).data("upstream", seed=0).parts
    assert {part: len(own.labels_N) for part, own in parts.items()} == {"train": 24, "val": 18, "test": 36}


def test_few_images_of_a_target_class(root: Path) -> None:
    """task.downstream.per_class takes some of the target's images, and none of the source's."""
    downstream = {"epochs": 1, "per_class": 2, "noise": 0, "fresh_noise": False}
    usual, fewer = split(folder(root, per_class=4)), split(folder(root, per_class=4), downstream=downstream)
    for side, left in (("upstream", 24), ("downstream", 4)):
        before, after = (tasks.data(side, seed=0).parts["train"].index_N.tolist() for tasks in (usual, fewer))
        assert len(after) == left
        assert set(after) <= set(before)
    assert usual.identity("upstream") == fewer.identity("upstream")
    assert usual.identity("baseline") != fewer.identity("baseline")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target_classes": ["cat", "unicorn"]}, r"task\.target_classes=unicorn: must be among airplane, .*"),
        ({"target_classes": ["cat"]}, r"task\.target_classes=\['cat'\]: must be two or more different classes"),
        ({"ratio": 5}, r"task\.ratio=5: must be at most 4: 10 classes, 2 of them targets"),
        (
            {"downstream": {"epochs": 0, "per_class": None, "noise": 0, "fresh_noise": False}},
            r"task\.downstream\.epochs=0: must be a whole number of at least 1",
        ),
        (
            {"downstream": {"epochs": 1, "per_class": 5, "noise": 0, "fresh_noise": False}},
            r"task\.downstream\.per_class=5: must be at most dataset\.per_class=4",
        ),
    ],
)
def test_impossible_splits_are_refused(changes: Any, sentence: str, root: Path) -> None:
    """One sentence with key, value and what is allowed."""
    with pytest.raises(ValueError, match=rf"^{sentence}"):
        split(folder(root, per_class=4), **changes)


def test_crops_and_flips_are_those_of_a_plain_loop() -> None:
    """Every image is a crop of its padded self, flipped or not; all places and both ways occur."""
    pixels = torch.arange(2000 * 3 * 4 * 5, dtype=torch.int32).view(2000, 3, 4, 5).remainder(251).to(torch.uint8)
    seen = crop_and_flip(pixels, 2, torch.Generator().manual_seed(0))
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    places = set()
    for image, source in zip(seen.numpy(), padded, strict=True):
        found = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if np.array_equal(image, source[:, top : top + 4, left : left + 5][..., :: -1 if flip else 1])
        ]
        assert found
        places |= set(found[:1]) if len(found) == 1 else set()
    assert len(places) == 50


def test_normalization() -> None:
    """(pixels - mean) / std by channel; bicubic resizing keeps a constant image."""
    pixels = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    seen = normalize(resize(pixels.float(), 8), [100, 90, 80], [1, 2, 4])
    assert seen.shape == (2, 3, 8, 8)
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor([0.0, 5.0, 5.0]))


def test_target_noise_belongs_to_its_image(root: Path) -> None:
    """A function of seed, split and image: the same in every epoch, batch and stage; on the downstream's side alone."""
    downstream = {"epochs": 1, "per_class": None, "noise": 10, "fresh_noise": False}
    tasks, plain = (split(folder(root, std=[2, 2, 2]), padding=0, **some) for some in ({"downstream": downstream}, {}))

    def noise(part: str, chosen: list[int], seed: int = 0, side: Any = "downstream") -> torch.Tensor:
        """Of some images as a network sees them, in 8-bit units."""
        seen, clean = (each.data(side, seed=seed) for each in (tasks, plain))
        pixels = [data.parts[part].pixels(torch.tensor(chosen)) for data in (seen, clean)]
        noisy, without = (data._seen(each, 1, augment=False) for data, each in zip((seen, clean), pixels, strict=True))
        return 2 * (noisy - without)

    assert noise("train", [0, 1, 2, 3, 4]).std().item() == pytest.approx(10, rel=0.02)
    torch.testing.assert_close(noise("train", [3, 1]), noise("train", [0, 1, 2, 3])[[3, 1]])
    different = [noise("train", [0]), noise("train", [1]), noise("val", [0]), noise("test", [0])]
    for one, other in pairwise(different):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.1
    assert not torch.equal(noise("train", [0]), noise("train", [0], seed=1))
    assert noise("train", [0], side="upstream").abs().max() == 0


def test_fresh_noise_is_drawn_whenever_an_image_is_seen(root: Path) -> None:
    """Standard deviation in 8-bit units; fixed in tests by the number of the batch."""
    downstream = {"epochs": 1, "per_class": None, "noise": 10, "fresh_noise": True}
    tasks = split(folder(root, std=[2, 2, 2]), downstream=downstream, padding=0)
    data, plain = (some.data("downstream", seed=0) for some in (tasks, split(folder(root, std=[2, 2, 2]), padding=0)))
    pixels = data.parts["train"].pixels(torch.arange(10))
    noise = data._seen(pixels, 1, augment=False) - plain._seen(pixels, 1, augment=False)
    assert noise.std().item() == pytest.approx(5, rel=0.02)
    again = tasks.data("downstream", seed=0)
    assert [key for _, key in data._in_order("test")] == [key for _, key in again._in_order("test")]
    fresh = []
    for epoch in range(2):
        data.trainer = SimpleNamespace(global_step=epoch * len(data.train_dataloader()), global_rank=0, world_size=1)
        fresh += [batch.key for batch in data.train_dataloader()]
    assert len(set(fresh)) == len(fresh) > 2


def test_pictures_stand_upright(tmp_path: Path) -> None:
    """Turned as the camera says."""
    write_folder(tmp_path / "root", train=1, test=1, classes=["a", "b"])
    turned = Image.new("RGB", (32, 32), "black")
    turned.paste("white", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "root" / "train" / "a" / "000.png", exif=exif)
    (upside,) = folder(tmp_path / "root").train.pixels(torch.tensor([0]))
    assert upside[0, :16].max() == 0
    assert upside[0, 16:].min() == 255
