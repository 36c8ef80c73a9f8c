"""Where: which tensor of the downstream model takes which slice of which tensor of the upstream model."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from paramtransfer.checks import choice
from paramtransfer.transfer.layout import Axis, Layer, LayerTensor, Layout
from paramtransfer.transfer.partners import Partners, by_block, by_depth
from paramtransfer.transfer.reader import read_layout

State = Mapping[str, Tensor]

UNITS = ("auto", "block", "layer")
CHANNELS = ("auto", "independent", "consistent")
BATCHNORM = ("inherit", "reset", "recalibrate")
_LITTLE = 0.1
"""Share of the downstream's numbers below which a plan is likely not what was meant."""


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """One tensor of the downstream model and where it may inherit from."""

    target: str
    shape: tuple[int, ...]
    upstream: str | None = None
    """The upstream's tensor; None leaves the target fresh."""
    upstream_shape: tuple[int, ...] = ()
    axes: tuple[Axis | None, ...] = ()
    """One for each dimension; None stands for a dimension that is copied whole."""
    upstream_axes: tuple[Axis | None, ...] = ()
    """Likewise, as the upstream's layout names them; empty where nothing asks for them."""
    role: str = ""
    """What the target is to its layer, as in `Layer.tensors`; empty where the layer is neither filters nor a norm."""
    groups: int = 1
    """Of a weight: how many groups its filters come in, each with inputs of its own; depthwise ones count as one."""
    reason: str = ""
    """Why the target stays fresh."""


Plan = list[Pairing]
"""One pairing for every tensor of the downstream model's state dict, in its order."""


def plan_nothing(downstream: nn.Module, *, reason: str = "nothing is inherited") -> Plan:
    """Everything stays fresh."""
    return [
        Pairing(target=name, shape=_shape(tensor), reason=reason) for name, tensor in downstream.state_dict().items()
    ]


def plan_filters(
    upstream: nn.Module,
    downstream: nn.Module,
    *,
    unit: str = "auto",
    channels: str = "auto",
    batchnorm: str = "inherit",
) -> Plan:
    """Pair the layers of two networks level by level, by kind. The head stays fresh: the label sets differ.

    Args:
        upstream: the trained model, of which only the architecture is read.
        downstream: the fresh model; likewise.
        unit: `block`: whole residual blocks, or, of networks without any, the layers between two poolings, from evenly
            spaced ones, first and last included; `layer`: each layer from the one at proportional depth; `auto`:
            blocks where both networks have blocks of one kind, otherwise layers.
        channels: `independent`: each layer chooses its own; `consistent`: the same channels along a residual stream or
            a chain, so that an inherited filter meets the inputs that it was trained on; `auto`: consistent with
            blocks.
        batchnorm: `inherit`: scale, shift and running statistics go with their channels; `reset`: all of them stay
            fresh; `recalibrate`: the statistics stay fresh, to be measured on the downstream's images.

    Raises:
        ValueError: an argument that is out of range, a network that is a transformer or cannot be traced, or no layer
            of the downstream model that has a partner.
    """
    choice("transfer.unit", unit, UNITS)
    choice("transfer.channels", channels, CHANNELS)
    choice("transfer.batchnorm", batchnorm, BATCHNORM)
    here, there = read_layout(downstream, consistent=True), read_layout(upstream, consistent=True)
    partners = None if unit == "layer" else by_block(here, there)
    if partners is None and unit == "block":
        names = " and ".join(type(model).__name__ for model in (upstream, downstream))
        raise ValueError(f"transfer.unit=block: must be auto or layer, {names} have no blocks of one kind")
    if channels == "independent" or (channels == "auto" and partners is None):
        here = read_layout(downstream)
    plan = _pair(here, partners or by_depth(here, there), (upstream.state_dict(), downstream.state_dict()), batchnorm)
    if all(pairing.upstream is None for pairing in plan):
        raise ValueError(
            f"transfer=filters: nothing could be inherited, no layer of {type(downstream).__name__} ({_names(here)}) "
            f"has a partner of its level and kind in {type(upstream).__name__} ({_names(there)})"
        )
    arrives = sum(
        math.prod(map(min, pairing.shape, pairing.upstream_shape)) for pairing in plan if pairing.upstream is not None
    )
    share = arrives / sum(math.prod(pairing.shape) for pairing in plan)
    if share < _LITTLE:
        warnings.warn(
            f"only {share:.0%} of {type(downstream).__name__}'s numbers could come from {type(upstream).__name__}: "
            "the two are built otherwise, or one is wrapped in something that hides it",
            stacklevel=2,
        )
    return plan


def _pair(here: Layout, partners: Partners, states: tuple[State, State], batchnorm: str) -> Plan:
    trained, fresh = states
    pairings = {
        name: Pairing(target=name, shape=_shape(fresh[name]), reason=reason) for name, reason in here.others.items()
    }
    for layer in here.layers:
        partner = partners[layer.name]
        for role, tensor in layer.tensors.items():
            shape = _shape(fresh[tensor.name])
            reason = _stays_fresh(role, partner, batchnorm)
            found = None if partner is None or reason else partner.tensors[role]
            reason = reason or _mismatch(tensor, shape, found, trained)
            known = role if layer.filters is not None or role.startswith("norm") else ""
            groups = layer.groups if role == "weight" else 1
            pairing = Pairing(
                target=tensor.name, shape=shape, axes=tensor.axes, role=known, groups=groups, reason=reason
            )
            if found is not None and not reason:
                pairing = replace(
                    pairing,
                    upstream=found.name,
                    upstream_shape=_shape(trained[found.name]),
                    upstream_axes=found.axes,
                )
            pairings[tensor.name] = pairing
    for name, other in here.same.items():
        pairings[name] = replace(pairings[other], target=name)
    return [pairings[name] for name in fresh]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """A single number is a row of one."""
    return tuple(tensor.shape) or (1,)


def _stays_fresh(role: str, partner: Layer | None, batchnorm: str) -> str:
    if partner is None:
        return "no upstream layer of its level and kind"
    if role.startswith("norm") and (batchnorm == "reset" or (batchnorm == "recalibrate" and "running" in role)):
        return f"transfer.batchnorm={batchnorm}"
    return "" if role in partner.tensors else f"its partner {partner.name} has none"


def _mismatch(tensor: LayerTensor, shape: tuple[int, ...], found: LayerTensor | None, trained: State) -> str:
    if found is None:
        return ""
    theirs = _shape(trained[found.name])
    alike = len(shape) == len(theirs) and all(
        axis is not None or ours == its for axis, ours, its in zip(tensor.axes, shape, theirs, strict=True)
    )
    return "" if alike else f"differs in shape from {found.name}"


def _names(layout: Layout) -> str:
    names = [layer.name for layer in layout.layers]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "it has no filters"
