"""Decoded images on disk: written in one go, checked when read, rebuilt when in doubt."""

import json
import logging
import os
import zlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)


def load(path: Path) -> tuple[dict[str, Tensor], list[str]] | None:
    """The tensors kept at `path` and the files left out of them; None where there are none that are whole."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as kept:
            tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
            metadata = kept.metadata()
        if metadata["checksum"] == _checksum(tensors):
            bad: list[str] = json.loads(metadata["bad"])
            return tensors, bad
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        pass
    log.warning(f"{path}: the cached images are damaged; decoding them again")
    return None


def store(path: Path, tensors: dict[str, Tensor], bad: list[str]) -> None:
    """Keep tensors at `path`; where that cannot be written, they are decoded again next time."""
    half = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, half, metadata={"checksum": _checksum(tensors), "bad": json.dumps(bad)})
        half.replace(path)
    except (OSError, SafetensorError) as error:
        half.unlink(missing_ok=True)
        log.warning(f"{path}: decoded images cannot be kept there ({error})")


def _checksum(tensors: dict[str, Tensor]) -> str:
    return " ".join(f"{name}:{zlib.crc32(tensors[name].numpy().data)}" for name in sorted(tensors))
