"""Where: which tensor of the downstream model takes which slice of which tensor of the upstream model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from paramtransfer.transfer.layout import Axis, Layer, Layout, is_transformer, read_layout

State = Mapping[str, Tensor]

CHANNELS = ("independent", "consistent")
BATCHNORM = ("inherit", "reset", "recalibrate")


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """One tensor of the downstream model and where it may inherit from."""

    target: str
    shape: tuple[int, ...]
    source: str | None = None
    """The upstream tensor; None leaves the target fresh."""
    source_shape: tuple[int, ...] = ()
    axes: tuple[Axis | None, ...] = ()
    """One for each dimension; None stands for a dimension that is copied whole."""
    reason: str = ""
    """Why the target stays fresh."""


Plan = list[Pairing]
"""One pairing for every tensor of the downstream model's state dict, in its order."""


def plan_nothing(downstream: nn.Module) -> Plan:
    """Everything stays fresh."""
    return [
        Pairing(target=name, shape=tuple(tensor.shape), reason="nothing is inherited")
        for name, tensor in downstream.state_dict().items()
    ]


def plan_filters(
    upstream: nn.Module, downstream: nn.Module, *, channels: str = "independent", batchnorm: str = "inherit"
) -> Plan:
    """Pair the layers of two networks stage by stage, by kind, at proportional depth.

    A layer's partner is of the same stage, kernel size and grouping, on a shortcut if the layer is, and widens or
    narrows as it does where there is such a one. The head stays fresh: the label sets differ.

    Args:
        upstream: the trained model, of which only the architecture is read.
        downstream: the fresh model; likewise.
        channels: `independent`: each layer chooses its own; `consistent`: the same channels along a residual stream or
            a chain, so that an inherited filter meets the inputs that it was trained on.
        batchnorm: `inherit`: scale, shift and running statistics go with their channels; `reset`: all of them stay
            fresh; `recalibrate`: the statistics stay fresh, to be measured on the downstream's images.

    Raises:
        ValueError: a network is a transformer or cannot be traced, or no layer of the downstream model has a partner.
    """
    for model in (upstream, downstream):
        if is_transformer(model):
            raise ValueError(f"transfer=filters: {type(model).__name__} has blocks, not filters; use transfer=layers")
    consistent = channels == "consistent"
    here, there = read_layout(downstream, consistent=consistent), read_layout(upstream, consistent=consistent)
    fresh, trained = downstream.state_dict(), upstream.state_dict()
    pairings = {
        name: Pairing(target=name, shape=tuple(fresh[name].shape), reason=why) for name, why in here.others.items()
    }
    for layer, partner in _partners(here, there):
        for name, part in layer.parts.items():
            shape = tuple(fresh[part.tensor].shape)
            reason = _stays_fresh(name, partner, batchnorm)
            if partner is not None and not reason:
                source = partner.parts[name].tensor
                source_shape = tuple(trained[source].shape)
                reason = _mismatch(part.axes, shape, source, source_shape)
            pairings[part.tensor] = (
                Pairing(target=part.tensor, shape=shape, axes=part.axes, reason=reason)
                if reason
                else Pairing(target=part.tensor, shape=shape, source=source, source_shape=source_shape, axes=part.axes)
            )
    if all(pairing.source is None for pairing in pairings.values()):
        raise ValueError(
            f"transfer=filters: nothing could be inherited, no layer of {type(downstream).__name__} ({_names(here)}) "
            f"has a partner of its stage and kind in {type(upstream).__name__} ({_names(there)})"
        )
    return [pairings[name] for name in fresh]


def _partners(here: Layout, there: Layout) -> Iterator[tuple[Layer, Layer | None]]:
    """Each layer with the one at the same share of the way through those that could be its partner."""
    for layer in here.layers:
        for key in (lambda of: (of.stage, of.kind, of.widens), lambda of: (of.stage, of.kind)):
            ours = [other for other in here.layers if key(other) == key(layer)]
            theirs = [other for other in there.layers if key(other) == key(layer)]
            if theirs:
                yield layer, theirs[ours.index(layer) * len(theirs) // len(ours)]
                break
        else:
            yield layer, None


def _stays_fresh(part: str, partner: Layer | None, batchnorm: str) -> str:
    if partner is None:
        return "no upstream layer of its stage and kind"
    if part.startswith("norm.") and (batchnorm == "reset" or (batchnorm == "recalibrate" and "running" in part)):
        return f"transfer.batchnorm={batchnorm}"
    return "" if part in partner.parts else f"its partner {partner.name} has none"


def _mismatch(axes: tuple[Axis | None, ...], shape: tuple[int, ...], source: str, source_shape: tuple[int, ...]) -> str:
    whole = [(ours, theirs) for axis, ours, theirs in zip(axes, shape, source_shape, strict=True) if axis is None]
    return f"differs in shape from {source}" if any(ours != theirs for ours, theirs in whole) else ""


def _names(layout: Layout) -> str:
    names = [layer.name for layer in layout.layers]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "it has no filters"
