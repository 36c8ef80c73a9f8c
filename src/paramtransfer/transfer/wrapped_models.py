"""The network inside a model, and which kinds of networks have filters to inherit."""

from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention

_ATTENTION = (nn.MultiheadAttention, RelativePositionalMultiHeadAttention, ShiftedWindowAttention)


@dataclass(frozen=True)
class Core:
    """The network inside what wraps it: `nn.Sequential(net)`, DataParallel, a compiled or a Lightning module."""

    network: nn.Module
    prefix: str
    """What the wrapper puts before the names of its tensors."""


def unwrap(model: nn.Module) -> Core:
    """The network that holds all tensors of a model."""
    prefix = ""
    while not hasattr(model, "filter_dims"):
        holders = [(name, child) for name, child in model.named_children() if child.state_dict()]
        alone = len(holders) == 1 and len(holders[0][1].state_dict()) == len(model.state_dict())
        if not alone or not list(holders[0][1].children()):
            break
        prefix, model = f"{prefix}{holders[0][0]}.", holders[0][1]
    return Core(model, prefix)


def is_transformer(model: nn.Module) -> bool:
    """Whether a model has blocks with attention, as timm builds vision transformers."""
    blocks = getattr(model, "blocks", None)
    return isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) > 0 and hasattr(blocks[0], "attn")


def check_filters(network: nn.Module) -> None:
    """Refuse networks that `transfer=filters` is not for.

    Raises:
        ValueError: a transformer, or weights that are computed from other tensors.
    """
    if is_transformer(network):
        raise ValueError(f"transfer=filters: {type(network).__name__} has blocks, not filters; use transfer=layers")
    for name, module in network.named_modules():
        if isinstance(module, _ATTENTION):
            raise ValueError(
                f"transfer=filters: {type(network).__name__} has attention ({name}), not filters alone; use "
                "transfer=layers with a vision transformer of timm"
            )
        if is_parametrized(module) or hasattr(module, "weight_g") or hasattr(module, "weight_orig"):
            raise ValueError(
                f"{type(network).__name__}: the weight of {name} is computed from other tensors (weight_norm, "
                "spectral_norm and their like): must be removed first, by torch.nn.utils.parametrize."
                "remove_parametrizations or remove_weight_norm"
            )
