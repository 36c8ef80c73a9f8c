"""Decoded images on disk: written in one go, checked when read, rebuilt when in doubt."""

import json
import logging
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """Decoded images."""

    tensors: dict[str, Tensor]
    bad: list[tuple[str, str]]
    """Files that are left out, each with the reason."""
    notes: dict[str, tuple[str, int]]
    """What the user should know of some files: the first of them, and how many there are."""


def load(path: Path) -> Kept | None:
    """What is kept at `path`; None where there is nothing that is whole."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        if metadata["checksum"] == _checksum(tensors):
            said = json.loads(metadata["said"])
            notes = {note: (name, count) for note, (name, count) in said["notes"].items()}
            return Kept(tensors, [(name, reason) for name, reason in said["bad"]], notes)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        pass
    log.warning(f"{path}: the cached images are damaged; decoding them again")
    return None


def store(path: Path, kept: Kept) -> None:
    """Keep images at `path`; where that cannot be written, they are decoded again next time."""
    half = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        said = json.dumps({"bad": kept.bad, "notes": kept.notes})
        save_file(kept.tensors, half, metadata={"checksum": _checksum(kept.tensors), "said": said})
        half.replace(path)
    except (OSError, SafetensorError) as error:
        half.unlink(missing_ok=True)
        log.warning(f"{path}: decoded images cannot be kept there ({error})")


def _checksum(tensors: dict[str, Tensor]) -> str:
    return " ".join(f"{name}:{zlib.crc32(tensors[name].numpy().data)}" for name in sorted(tensors))
