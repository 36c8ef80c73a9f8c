"""One file to pixels: upright, on a plain ground, as 8-bit values, brought to size.

Shape letters: C channels (3), H height, W width.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from paramtransfer.errors import first_line

VERSION = 2
"""Of what is made of a file: images that another version has decoded are decoded again."""
_SUFFIXES = {
    "AVIF": (".avif",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}  # None of them starts another program, as EPS does.
_PIXELS_AT_ONCE = 2**27  # four bytes each: half a GB while they are decoded
_TWELVE_BITS = 4096

TRANSPARENT = "with transparency: laid on white"
FRAMES = "with several frames: the first is taken"
DARK = "of 16 bits that use 12 of them at most: nearly black, unless they are scaled up"


class Decoded(NamedTuple):
    """What is made of a file."""

    pixels: Tensor
    """(C, H, W), 8-bit values."""
    note: str
    """What the user should know of it, or nothing."""


@cache
def formats() -> dict[str, str]:
    """Pillow's name of the format by the ending of a file, of those that can be read here."""
    with suppress(ImportError):  # optional
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    return {suffix: name for name, suffixes in _SUFFIXES.items() if name in Image.OPEN for suffix in suffixes}


def peek(path: Path) -> None:
    """Look at the beginning of a file.

    Raises:
        ValueError: why it is no image, in a few words.
    """
    try:
        with _reading(path.stat().st_size), Image.open(path, formats=_all_formats()):
            pass
    except OSError as error:
        raise ValueError(_reason(path, error)) from error


def decode(path: Path, size: int, room: "Room | None" = None) -> Decoded:
    """An image, upright, resized so that it covers a square of that size, and the centre of it.

    Args:
        path: of the file.
        size: height and width, pixels.
        room: what is shared with others that decode at the same time.

    Raises:
        ValueError: why the file cannot be decoded, in a few words.
    """
    content = read(path)
    with _reading(len(content)):
        image = Image.open(io.BytesIO(content), formats=_all_formats())
        with (room or Room()).taken(image.width * image.height):
            decoded = _decode(image, size)
            del image  # before others have the room
            return decoded


def read(path: Path) -> bytes:
    """The content of a file.

    Raises:
        ValueError: why it cannot be read, in a few words.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(_reason(path, error)) from error


class Room:
    """Bounds the pixels that are decoded at the same time; an image that is larger alone is decoded alone."""

    def __init__(self, pixels: int = _PIXELS_AT_ONCE) -> None:
        self._all = self._left = pixels
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait for room for some pixels, and keep it during the block."""
        pixels = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._left)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


def _all_formats() -> list[str]:
    return sorted(set(formats().values()))


@contextmanager
def _reading(num_bytes: int) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError("its content is no image of a kind that is read" if num_bytes else "it is empty") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(first_line(error)) from error
    except Exception as error:  # whatever a damaged file leads Pillow to
        raise ValueError(first_line(error)) from error


def _reason(path: Path, error: OSError) -> str:
    return "a link to nothing" if path.is_symlink() and not path.exists() else error.strerror or first_line(error)


def _decode(image: Image.Image, size: int) -> Decoded:
    note = FRAMES if getattr(image, "n_frames", 1) > 1 and image.format != "MPO" else ""  # a phone's: its preview
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        values = np.asarray(image)
        note = DARK if image.mode != "F" and 0 < values.max() < _TWELVE_BITS else note
        image = Image.fromarray(_in_8_bits(values))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            note = TRANSPARENT
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return Decoded(torch.from_numpy(np.array(image)).permute(2, 0, 1), note)


def _in_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits, or floating point from 0 to 1 or to 255, as 8-bit values."""
    low, high = values.min(), values.max()
    is_float = values.dtype.kind == "f"
    if low >= 0 and high <= (255 if is_float else 2**16 - 1):
        in_8_bits: np.ndarray = np.rint(values * (255 if high <= 1 else 1)) if is_float else values >> 8
        return in_8_bits.astype(np.uint8)
    allowed = "0 to 1 or 0 to 255 in floating point" if is_float else "0 to 65535 in whole numbers"
    raise ValueError(f"its values are from {low:g} to {high:g}: must be {allowed}")
