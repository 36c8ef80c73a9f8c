"""A network as the layers and channels that transfer speaks of, read from its graph."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paramtransfer.errors import first_line

_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLING = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A dimension of a tensor along which channels are chosen."""

    name: str
    """Dimensions of one name choose the same channels."""
    filters: bool
    """Whether it counts filters, of which the share alpha is inherited; otherwise inputs, which all go with them."""
    unit: int = 1
    """Channels that are chosen together, such as those of an attention head."""
    repeats: int = 1
    """How often the same channels follow one another, such as query, key and value."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A tensor of a layer."""

    tensor: str
    """Its name in the state dict."""
    axes: tuple[Axis | None, ...]
    """One for each dimension; None stands for a dimension that is copied whole."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with filters, and what goes with their channels."""

    name: str
    stage: int
    """How often the network's top-level module or its resolution by pooling has changed before it."""
    kind: tuple[Any, ...]
    """What a partner must share: whether it is a shortcut, kernel size, grouping."""
    widens: int
    """Whether it has more filters than inputs (1), as many (0) or fewer (-1)."""
    parts: Mapping[str, Part]
    """`weight`, `bias`, and `norm.weight` and so on of the batch norm that follows it."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A network's layers in order of computation; the head, whose label set is the task's, is not among them."""

    layers: list[Layer]
    others: dict[str, str] = field(default_factory=dict)
    """Why each tensor that belongs to no layer cannot be inherited as filters."""


def is_transformer(model: nn.Module) -> bool:
    """Whether a model has blocks with attention, as timm builds vision transformers."""
    blocks = getattr(model, "blocks", None)
    return isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) > 0 and hasattr(blocks[0], "attn")


def read_layout(model: nn.Module, *, consistent: bool = False) -> Layout:
    """The layout of a network.

    Args:
        model: a convolutional network that can be traced, or one that declares `filter_dims`: the dimension that counts
            filters, by parameter.
        consistent: whether layers that write to one residual stream, and those that read it, share one axis of
            channels; otherwise each layer has two axes of its own.

    Raises:
        ValueError: the network cannot be traced.
    """
    declared = getattr(model, "filter_dims", None)
    if declared is not None:
        return _declared(model, declared)
    graph = _trace(model)
    return _Reader(model, graph, consistent=consistent).layout()


def _declared(model: nn.Module, filter_dims: Mapping[str, int]) -> Layout:
    layers = []
    for name, tensor in model.state_dict().items():
        if name in filter_dims:
            axis = Axis(name=name, filters=True)
            axes = tuple(axis if dim == filter_dims[name] else None for dim in range(tensor.dim()))
            parts = {"weight": Part(tensor=name, axes=axes)}
            layers.append(Layer(name=name, stage=0, kind=(name,), widens=0, parts=parts))
    others = {name: "has no filters" for name in model.state_dict() if name not in filter_dims}
    return Layout(layers=layers, others=others)


class _Tracer(fx.Tracer):
    """Takes convolutions, batch norms and modules without parts as they are; guards on shapes count as passed."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*_CONVOLUTION, _BatchNorm)) or not list(m.children())

    def to_bool(self, obj: fx.Proxy) -> bool:
        return False


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:  # whatever a stranger's forward does with a proxy
        reason = first_line(error)
        raise ValueError(
            f"{type(model).__name__}: no plan can be made, its layers cannot be traced ({reason})"
        ) from error


class _Reader:
    """Walks a graph once and follows the channels."""

    def __init__(self, model: nn.Module, graph: fx.Graph, *, consistent: bool) -> None:
        self._modules = dict(model.named_modules())
        self._state = model.state_dict()
        self._consistent = consistent
        self._calls = [node for node in graph.nodes if node.op == "call_module"]
        self._nodes = list(graph.nodes)
        self._joined: dict[str, str] = {}
        self._stream: dict[fx.Node, str] = {}
        self._width: dict[str, int] = {}

    def layout(self) -> Layout:
        layers = [node for node in self._calls if self._has_filters(node)]
        head = layers[-1] if layers else None
        self._follow_channels()
        stages, shortcuts = self._stages(), self._shortcuts()
        norms = {_source(node): node for node in self._calls if isinstance(self._module(node), _BatchNorm)}
        found = [
            self._layer(node, norms.get(node), stages[node], node in shortcuts) for node in layers if node is not head
        ]
        inside = {part.tensor for layer in found for part in layer.parts.values()}
        others = {name: self._why_not(name, head) for name in self._state if name not in inside}
        return Layout(layers=found, others=others)

    def _module(self, node: fx.Node) -> nn.Module:
        module: nn.Module = self._modules[str(node.target)]
        return module

    def _has_filters(self, node: fx.Node) -> bool:
        return isinstance(self._module(node), (*_CONVOLUTION, nn.Linear))

    def _follow_channels(self) -> None:
        """Name the channels that each node puts out; a sum of two joins their names."""
        for node in self._nodes:
            if node.op == "call_module" and self._has_filters(node):
                self._stream[node] = str(node.target)
                self._width[str(node.target)] = len(self._state[f"{node.target}.weight"])
                if _is_depthwise(self._module(node)):
                    self._join(str(node.target), self._stream.get(_source(node), "input"))
            else:
                streams = [self._stream[source] for source in node.all_input_nodes if source in self._stream]
                self._stream[node] = streams[0] if streams else "input"
                if len(streams) > 1 and "cat" in str(node.target):
                    self._stream[node] = node.name
                else:
                    for other in streams[1:]:
                        self._join(streams[0], other)

    def _join(self, one: str, other: str) -> None:
        one, other = self._root(one), self._root(other)
        if one != other:
            self._joined[other] = one

    def _root(self, stream: str) -> str:
        while stream in self._joined:
            stream = self._joined[stream]
        return stream

    def _axis(self, stream: str, width: int, alone: str) -> str:
        """The name of an axis: the stream's where it is shared and as wide, otherwise the layer's own."""
        root = self._root(stream)
        return root if self._consistent and self._width.get(root) == width else alone

    def _layer(self, node: fx.Node, norm: fx.Node | None, stage: int, shortcut: bool) -> Layer:
        name, module = str(node.target), self._module(node)
        weight = self._state[f"{name}.weight"]
        outputs = Axis(name=self._axis(name, weight.shape[0], f"{name}:out"), filters=True)
        inputs = None
        if not _is_depthwise(module):
            stream = self._stream.get(_source(node), "input")
            inputs = Axis(name=self._axis(stream, weight.shape[1], f"{name}:in"), filters=False)
        parts = {"weight": Part(tensor=f"{name}.weight", axes=(outputs, inputs, *[None] * (weight.dim() - 2)))}
        names = {"bias": f"{name}.bias"}
        if norm is not None:
            names |= {f"norm.{part}": f"{norm.target}.{part}" for part in _NORM}
        parts |= {part: Part(tensor=tensor, axes=(outputs,)) for part, tensor in names.items() if tensor in self._state}
        groups = getattr(module, "groups", 1)
        grouping = "depthwise" if _is_depthwise(module) else groups
        return Layer(
            name=name,
            stage=stage,
            kind=("shortcut" if shortcut else "main", tuple(getattr(module, "kernel_size", ())), grouping),
            widens=(weight.shape[0] > weight.shape[1] * groups) - (weight.shape[0] < weight.shape[1] * groups),
            parts=parts,
        )

    def _stages(self) -> dict[fx.Node, int]:
        """A stage ends where the top-level module changes or a pooling is passed."""
        stages, key, stage, child = {}, None, -1, ""
        for node in self._calls:
            top = str(node.target).partition(".")[0]
            key = None if top != child or isinstance(self._module(node), _POOLING) else key
            child = top
            if self._has_filters(node):
                stage, key = (stage + 1, top) if key is None else (stage, key)
                stages[node] = stage
        return stages

    def _shortcuts(self) -> set[fx.Node]:
        """Layers on the short way around a block: what they read, the other summand's layer computes from."""
        shortcuts = set()
        for node in self._nodes:
            pair = [self._last_layer(source) for source in node.all_input_nodes]
            if node.op != "call_module" and len(pair) == 2 and None not in pair:
                for one, other in (pair, pair[::-1]):
                    if _source(one) in _ancestors(other) and _source(other) not in _ancestors(one):  # type: ignore[arg-type]
                        shortcuts.add(one)
        return shortcuts  # type: ignore[return-value]

    def _last_layer(self, node: fx.Node) -> fx.Node | None:
        """The layer whose output arrives at a node with no more than a norm on its way."""
        while node.op == "call_module" and not self._has_filters(node):
            if not isinstance(self._module(node), (_BatchNorm, nn.Identity)):
                return None
            node = _source(node)
        return node if node.op == "call_module" else None

    def _why_not(self, name: str, head: fx.Node | None) -> str:
        module = name.rpartition(".")[0]
        if head is not None and module == head.target:
            return "head: the label sets differ"
        if name.endswith("num_batches_tracked"):
            return "counts batches: has no channels"
        if isinstance(self._modules[module], _BatchNorm):
            return "batch norm that follows no layer with filters"
        return f"{type(self._modules[module]).__name__}: has no filters"


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _CONVOLUTION) and 1 < module.groups == module.in_channels


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    ahead = [node]
    while ahead:
        for source in ahead.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                ahead.append(source)
    return found
