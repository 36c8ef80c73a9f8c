"""Which channels of the upstream are worth most: the rules behind `transfer.select`.

Shape letters: B images of a batch, N images, C channels, K classes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramtransfer.checks import refusal
from paramtransfer.transfer.explained_variance import Labelled, testing
from paramtransfer.transfer.layout import Layer
from paramtransfer.transfer.plan import Plan, State
from paramtransfer.transfer.reader import read_layout
from paramtransfer.transfer.select import Scores
from paramtransfer.transfer.wrapped_models import unwrap


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a layer's channels, after their norm, do on the target's images."""

    strength_NC: Tensor
    """Mean absolute value over all places."""
    mean_NC: Tensor
    """Mean over all places."""
    labels_N: Tensor


Rule = Callable[[Layer, State, Seen | None], Tensor]
"""A score for each filter of a layer: (C,)."""


def norm(layer: Layer, state: State, seen: Seen | None) -> Tensor:
    """The Euclidean norm of the filter."""
    assert layer.filters is not None
    return state[layer.filters.name].flatten(1).square().sum(1).sqrt()


def batchnorm(layer: Layer, state: State, seen: Seen | None) -> Tensor:
    """The size of its scale in the batch norm that follows it; 0 where there is none."""
    assert layer.filters is not None
    scale = layer.tensors.get("norm1.weight")
    return state[scale.name].abs() if scale is not None else torch.zeros(len(state[layer.filters.name]))


def activation(layer: Layer, state: State, seen: Seen | None) -> Tensor:
    """Its mean absolute output on the target's images."""
    assert seen is not None
    return seen.strength_NC.mean(0)


def aligned(layer: Layer, state: State, seen: Seen | None) -> Tensor:
    """How far it tells the target's classes apart: the F statistic of an analysis of variance of its mean output."""
    assert seen is not None
    classes, labels_N = torch.unique(seen.labels_N, return_inverse=True)
    one_hot_NK = nn.functional.one_hot(labels_N, len(classes)).to(seen.mean_NC)
    counts_K1 = one_hot_NK.sum(0)[:, None]
    means_KC = one_hot_NK.T @ seen.mean_NC / counts_K1
    between_C = (counts_K1 * (means_KC - seen.mean_NC.mean(0)).square()).sum(0) / max(1, len(classes) - 1)
    within_C = (seen.mean_NC - means_KC[labels_N]).square().sum(0) / max(1, len(labels_N) - len(classes))
    return torch.where(within_C > 0, between_C / within_C, 0.0)


RULES: Mapping[str, Rule] = {"norm": norm, "batchnorm": batchnorm, "activation": activation, "aligned": aligned}
SELECT = ("random", *RULES)
NEEDS_IMAGES = ("activation", "aligned")


def score_channels(select: str, plan: Plan, upstream: nn.Module, images: Iterable[Labelled] | None) -> Scores:
    """A score for each upstream channel that a plan may take, summed over the layers that write to it.

    Args:
        select: one of `SELECT`; nothing is scored for `random`.
        plan: which says the upstream's axis behind each of the downstream's.
        upstream: the trained model.
        images: of the target, where the rule needs them.

    Raises:
        ValueError: a rule that needs images without any, or one for batch norms of a network that has none.
    """
    if select == "random":
        return {}
    if select in NEEDS_IMAGES and images is None:
        raise ValueError(f"transfer.select={select}: must be random, norm or batchnorm without images of the target")
    if select in NEEDS_IMAGES and hasattr(unwrap(upstream).network, "filter_dims"):
        raise refusal("transfer.select", select, f"random for {type(upstream).__name__}, which sees no images")
    state = upstream.state_dict()
    layers = [layer for layer in read_layout(upstream, consistent=True).layers if layer.filters is not None]
    if select == "batchnorm" and not any("norm1.weight" in layer.tensors for layer in layers):
        raise ValueError(f"transfer.select=batchnorm: {type(upstream).__name__} has no batch norms; use norm")
    seen = _watch(upstream, layers, images) if select in NEEDS_IMAGES and images is not None else {}
    by_axis: dict[str, Tensor] = {}
    for layer in layers:
        axis = layer.filters.axes[0] if layer.filters is not None else None
        if axis is not None:
            score = RULES[select](layer, state, seen.get(layer.name)).double().cpu()
            by_axis[axis.name] = by_axis.get(axis.name, torch.zeros(())) + score
    pairs: dict[tuple[str, int], set[str]] = {}
    for pairing in plan:
        for axis, theirs, size in zip(pairing.axes, pairing.upstream_axes, pairing.upstream_shape, strict=False):
            if axis is not None and theirs is not None and len(by_axis.get(theirs.name, ())) == size:
                pairs.setdefault((axis.name, size), set()).add(theirs.name)
    return {key: torch.stack([by_axis[name] for name in sorted(names)]).sum(0) for key, names in pairs.items()}


def _watch(model: nn.Module, layers: Iterable[Layer], images: Iterable[Labelled]) -> dict[str, Seen]:
    """What each layer's channels, after their norm, do on some images."""
    norms = {layer.name: layer.tensors.get("norm1.weight") for layer in layers}
    watched = {name: name if tensor is None else tensor.name.rpartition(".")[0] for name, tensor in norms.items()}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in watched}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            places = output.movedim(-1, 1) if isinstance(module, nn.Linear) else output
            values = places.flatten(2) if places.dim() > 2 else places[..., None]
            seen[name].append((values.abs().mean(2), values.mean(2)))

        return hook

    handles = [model.get_submodule(module).register_forward_hook(keep(name)) for name, module in watched.items()]
    labels = []
    try:
        with testing(model):
            for images_BCHW, labels_B in images:
                model(images_BCHW)
                labels.append(labels_B)
    finally:
        for handle in handles:
            handle.remove()
    labels_N = torch.cat(labels)
    return {
        name: Seen(strength_NC=torch.cat(strengths), mean_NC=torch.cat(means), labels_N=labels_N.to(means[0].device))
        for name, (strengths, means) in ((name, list(zip(*kept, strict=True))) for name, kept in seen.items() if kept)
    }
