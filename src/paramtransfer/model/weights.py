"""Upstream weights from elsewhere: a file, or what torchvision and timm offer."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from paramtransfer.errors import first_line
from paramtransfer.model.networks import library_network, torchvision_names

KEY = "model.upstream.weights"
DEFAULT = "DEFAULT"


def read_file(path: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint: a plain one, one below `state`, `state_dict` or `model`, or safetensors.

    Raises:
        ValueError: no such file, or no tensors in it.
    """
    try:
        content: Any = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # whatever a file that is no checkpoint leads to
        reason = first_line(error)
        if type(error).__name__ == "UnpicklingError":  # torch's own reason is an essay
            reason = "it holds more than tensors: save model.state_dict(), not the model"
        raise ValueError(f"{KEY}={path}: cannot be read as a checkpoint of tensors ({reason})") from error
    for key in ("state", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{KEY}={path}: must be a checkpoint of tensors by name")
    prefix = "model." if all(name.startswith("model.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def hash_file(path: str) -> str:
    """Of its content.

    Raises:
        ValueError: no such file.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(
            f"{KEY}={path}: must be a run id, a checkpoint file that can be read ({error.strerror}), or {DEFAULT}"
        ) from error


def pretrained(name: str) -> nn.Module:
    """A network as torchvision or timm have trained it, head included.

    Raises:
        ValueError: its weights are neither here nor to be had; says which file to put where.
    """
    try:
        return library_network(name, pretrained=True)
    except (URLError, OSError, RuntimeError, LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        reason = first_line(error)
        raise ValueError(
            f"{KEY}={DEFAULT}: the weights of {name} could not be downloaded ({reason}); {_where(name)}, or name "
            "a checkpoint file or a run instead"
        ) from error


def _where(name: str) -> str:
    if name in torchvision_names():
        url = get_model_weights(name).DEFAULT.url
        return f"put {url} in {Path(torch.hub.get_dir()) / 'checkpoints'}"
    source = timm.get_pretrained_cfg(name)
    repository = getattr(source, "hf_hub_id", None) or "its repository"
    return f"run `hf download {repository}` where there is a network and copy its HF_HOME folder here"


def num_classes(network: nn.Module, state: Mapping[str, Tensor]) -> int:
    """How many classes a state has: the size of what has two in a network of two."""
    sizes = [
        len(state[name])
        for name, tensor in network.state_dict().items()
        if name in state and tensor.dim() and len(tensor) == 2 and state[name].dim()
    ]
    return sizes[-1] if sizes else 2


def load(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Load a state dict, or say in a few words why it does not fit."""
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            return f"it has no {name}"
        if state[name].shape != tensor.shape:
            return f"its {name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
    for name in state:
        if name not in wanted:
            return f"it has {name} too"
    network.load_state_dict(state)
    return ""
