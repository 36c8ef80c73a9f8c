"""Upstream weights from elsewhere: a file, or what torchvision and timm offer."""

import argparse
import hashlib
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from urllib.error import URLError

import numpy as np
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from paramtransfer.errors import first_line
from paramtransfer.model.hub import at_once_offline
from paramtransfer.model.networks import library_network, torchvision_names

KEY = "model.upstream.weights"
DEFAULT = "DEFAULT"


def read_file(text: str) -> dict[str, dict[str, Tensor]]:
    """All groups of tensors by name in a checkpoint, by where in it they are: "" or `state_dict` or `ema` or so.

    Args:
        text: the file, and after `::` which of the groups is meant, where there are several.

    Raises:
        ValueError: no such file, or no tensors in it; says what it is instead.
    """
    path, _, choice = text.partition("::")
    if what := _no_checkpoint(path):
        raise ValueError(f"{KEY}={path}: must be a checkpoint of tensors, but {what}")
    try:
        content: object = load_file(path) if path.endswith(".safetensors") else _load(path)
    except Exception as error:  # whatever a file that is no checkpoint leads to
        raise ValueError(f"{KEY}={path}: cannot be read as a checkpoint of tensors ({_reason(error)})") from error
    groups = dict(_groups(content, ""))
    if not groups:
        raise ValueError(f"{KEY}={path}: must be a checkpoint of tensors by name")
    if choice and not (groups := _chosen(groups, choice)):
        raise ValueError(f"{KEY}={text}: must name a part of the checkpoint")
    return groups


def _load(path: str) -> object:
    """By torch's safe loading, which also takes the plain values that people keep beside their tensors."""
    multiarray = import_module("numpy._core.multiarray")
    plain: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        argparse.Namespace,
        defaultdict,
        np.dtype,
        np.ndarray,
        *(type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")),
        *((multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((multiarray._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    ]
    with torch.serialization.safe_globals(plain):
        return torch.load(path, "cpu", weights_only=True)


def _no_checkpoint(path: str) -> str:
    """What a file is that people take for a checkpoint; empty where it may be one."""
    file = Path(path)
    if file.is_dir():
        return "it is a folder"
    if not file.is_file():
        return ""  # said elsewhere
    if not os.access(file, os.R_OK):
        return "it may not be read"
    with file.open("rb") as opened:
        start = opened.read(512).lstrip()
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run `git lfs pull` for the file itself"
    if start.startswith(b"<"):
        return "it is a web page, as a failed download leaves it"
    if not start.startswith(b"PK"):
        return ""
    if not zipfile.is_zipfile(file):
        return "it is cut short"
    with zipfile.ZipFile(file) as archive:
        scripted = any(name.endswith("constants.pkl") for name in archive.namelist())
    return "it is TorchScript: save model.state_dict(), not the model" if scripted else ""


def _reason(error: Exception) -> str:
    if found := re.search(r"GLOBAL (\S+) was not", str(error)):
        return f"it holds a {found[1]}, more than tensors: save model.state_dict(), not the model"
    if isinstance(error, EOFError) or "truncated" in str(error) or "Ran out of input" in str(error):
        return "it is cut short"
    if type(error).__name__ == "UnpicklingError":  # torch's own reason is an essay
        return "it holds more than tensors: save model.state_dict(), not the model"
    return first_line(error)


def _groups(content: object, place: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The mappings in a checkpoint that hold tensors."""
    if not isinstance(content, Mapping):
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in content.items():
        yield from _groups(value, f"{place}.{name}".strip("."))


def _chosen(groups: Mapping[str, dict[str, Tensor]], choice: str) -> dict[str, dict[str, Tensor]]:
    """The groups, or the tensors in them, that a name stands for."""
    chosen = {place: tensors for place, tensors in groups.items() if f".{place}.".find(f".{choice}.") >= 0}
    if chosen:
        return chosen
    inside = {
        place: {name: tensor for name, tensor in tensors.items() if f".{name}".find(f".{choice}.") >= 0}
        for place, tensors in groups.items()
    }
    return {place: tensors for place, tensors in inside.items() if tensors}


def hash_file(text: str) -> str:
    """Of a file's content, with what is chosen of it.

    Raises:
        ValueError: no such file.
    """
    path, _, choice = text.partition("::")
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(
            f"{KEY}={path}: must be a run id, a checkpoint file that can be read ({error.strerror}), or {DEFAULT}"
        ) from error
    return f"{digest}::{choice}" if choice else digest


def pretrained(name: str) -> nn.Module:
    """A network as torchvision or timm have trained it, head included.

    Raises:
        ValueError: its weights are neither here nor to be had; says which file to put where.
    """
    try:
        with at_once_offline():
            return library_network(name, pretrained=True)
    except (URLError, OSError, RuntimeError, LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        reason = first_line(error)
        raise ValueError(
            f"{KEY}={DEFAULT}: the weights of {name} could be neither read nor downloaded ({reason}); {_where(name)}, "
            "or name a checkpoint file or a run instead"
        ) from error


def default_content(name: str) -> str:
    """What identifies the file behind `DEFAULT`: its address, the same before and after the download."""
    if name in torchvision_names():
        return f"{DEFAULT} {get_model_weights(name).DEFAULT.url}"
    source = timm.get_pretrained_cfg(name)
    repository = getattr(source, "hf_hub_id", None)
    if not repository:
        return f"{DEFAULT} {getattr(source, 'url', '')}"
    return f"{DEFAULT} {repository}"


def _where(name: str) -> str:
    if name in torchvision_names():
        url = get_model_weights(name).DEFAULT.url
        return f"put {url} in {Path(torch.hub.get_dir()) / 'checkpoints'}"
    source = timm.get_pretrained_cfg(name)
    repository = getattr(source, "hf_hub_id", None) or "its repository"
    return f"run `hf download {repository}` where there is a network and copy its HF_HOME folder here"


@dataclass(frozen=True)
class Found:
    """Tensors of a checkpoint under a network's names."""

    place: str
    """Where in the checkpoint they are, the prefix of their names included."""
    tensors: dict[str, Tensor]


def match(wanted: Mapping[str, Tensor], groups: Mapping[str, Mapping[str, Tensor]]) -> Found | str:
    """The tensors that a network wants, under whatever prefix their names have; or in a few words why there are none.

    Where no names fit, as between two libraries' versions of one architecture, the order of kinds and shapes decides.

    Args:
        wanted: tensors of the right shapes, by the network's names.
        groups: tensors by name, by their place in a checkpoint.

    Raises:
        ValueError: two groups fit and differ, or a tensor holds NaN or infinity.
    """
    first = next(iter(wanted))
    fits: list[Found] = []
    for place, tensors in groups.items():
        prefixes = [name.removesuffix(first) for name in tensors if f".{name}".endswith(f".{first}")]
        for prefix in prefixes:
            where = ".".join(filter(None, (place, prefix.removesuffix("."))))
            if not _misfit(wanted, tensors, prefix):
                fits.append(Found(where, {name: tensors[f"{prefix}{name}"] for name in wanted}))
    fits = fits or [fit for place, tensors in groups.items() for fit in _in_order(wanted, tensors, place)]
    if not fits:
        reason = _difference(wanted, groups)
        return f"its keys or shapes differ: {reason}; model.upstream.name must be the network that they are of"
    others = [fit.place for fit in fits[1:] if any(not torch.equal(fits[0].tensors[n], fit.tensors[n]) for n in wanted)]
    if others:
        places = " or ".join(f"::{place}" for place in (fits[0].place, *others))
        raise ValueError(f"{KEY}: must say which of several weights is meant, by {places} behind the file's name")
    for name, tensor in fits[0].tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{KEY}: must be finite numbers, but {name} has NaN or infinity")
    return fits[0]


def _in_order(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], place: str) -> Iterator[Found]:
    """Tensors of other names that are, one after the other, of the same kinds (`weight`, `bias`) and shapes."""
    given = [name for name in tensors if not name.endswith("num_batches_tracked")][: len(wanted)]
    kinds = [
        [(name.rpartition(".")[2], state[name].shape) for name in names]
        for state, names in ((wanted, list(wanted)), (tensors, given))
    ]
    if kinds[0] == kinds[1]:
        where = f"{place} its tensors in order, from {given[0]} to {given[-1]}".strip()
        yield Found(where, {name: tensors[other] for name, other in zip(wanted, given, strict=True)})


def _difference(wanted: Mapping[str, Tensor], groups: Mapping[str, Mapping[str, Tensor]]) -> str:
    """What does not fit where most of the names are there."""
    numbers = Counter(
        (place, given.removesuffix(name))
        for place, tensors in groups.items()
        for given in tensors
        for name in wanted
        if f".{given}".endswith(f".{name}")
    )
    if not numbers:
        return f"it has no {next(iter(wanted))}"
    ((place, prefix), _), *_ = numbers.most_common(1)
    return _misfit(wanted, groups[place], prefix)


def _misfit(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str) -> str:
    for name, tensor in wanted.items():
        found = tensors.get(f"{prefix}{name}")
        if found is None:
            return f"it has no {prefix}{name}"
        if found.shape != tensor.shape:
            return f"its {prefix}{name} is {tuple(found.shape)} instead of {tuple(tensor.shape)}"
    return ""
