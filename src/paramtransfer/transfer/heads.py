"""What of a network is its head: the layers that give the scores of classes."""

from collections.abc import Callable, Iterable

from torch import fx, nn

from paramtransfer.transfer.graph import CONVOLUTIONS, NORMS, Graph, has_filters

_TORCHVISION = ("classifier", "aux_classifier")
"""Where torchvision's networks without a last linear layer have a convolution for one."""


def find_head(model: nn.Module, graph: Graph) -> set[str]:
    """Names of the head's layers; none for a network that ends with its features.

    Args:
        model: what timm's networks are asked themselves.
        graph: what tells for others: their last linear layers.
    """
    own = timm_classifier(model)
    if own is not None:
        return own
    return {str(node.target) for node, normed in _last_layers(graph) if _is_head(graph.module(node), node, normed)}


def timm_classifier(model: nn.Module) -> set[str] | None:
    """As timm's networks tell it; None where they do not."""
    ask: Callable[[], nn.Module | Iterable[nn.Module] | None] | None = getattr(model, "get_classifier", None)
    if ask is None or not hasattr(model, "num_classes"):
        return None
    found = ask()
    modules = [] if found is None else [found] if isinstance(found, nn.Module) else list(found)
    inside = {part for module in modules for part in module.modules() if has_filters(part)}
    return {name for name, module in model.named_modules() if module in inside}


def _is_head(module: nn.Module | None, node: fx.Node, normed: bool) -> bool:
    if isinstance(module, CONVOLUTIONS):
        return not normed and str(node.target).partition(".")[0] in _TORCHVISION
    return isinstance(module, nn.Linear)


def _last_layers(graph: Graph) -> Iterable[tuple[fx.Node, bool]]:
    """Layers that no other one comes after, and whether a norm does."""
    ahead = [(each, False) for node in graph.nodes if node.op == "output" for each in node.all_input_nodes]
    found = set(ahead)
    while ahead:
        node, normed = ahead.pop()
        if graph.is_layer(node):
            yield node, normed
            continue
        normed = normed or isinstance(graph.module(node), NORMS)
        new = [(each, normed) for each in node.all_input_nodes if (each, normed) not in found]
        found.update(new)
        ahead += new
