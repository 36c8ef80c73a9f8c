"""From a network to its layout."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from paramtransfer.transfer.graph import CONVOLUTIONS, Graph, has_filters, is_depthwise
from paramtransfer.transfer.heads import find_head, timm_classifier
from paramtransfer.transfer.layout import Axis, Kind, Layer, LayerTensor, Layout
from paramtransfer.transfer.wrapped_models import check_filters, unwrap

_COUNTER = "num_batches_tracked"
HEAD = "head: the label sets differ"


def read_layout(model: nn.Module, *, consistent: bool = False) -> Layout:
    """The layout of a network.

    Args:
        model: a convolutional network that can be traced, or one that declares `filter_dims`: the dimension that counts
            filters, by parameter.
        consistent: whether layers that write to one residual stream, and those that read it, share one axis of
            channels; otherwise each layer has two axes of its own.

    Raises:
        ValueError: a transformer, or a network that cannot be traced or whose weights are computed from others.
    """
    core = unwrap(model)
    network = core.network
    check_filters(network)
    declared: Mapping[str, int] | None = getattr(network, "filter_dims", None)
    layout = _declared(network, declared) if declared is not None else _Reader(network, consistent).layout()
    return _with_prefix(layout, core.prefix) if core.prefix else layout


def _with_prefix(layout: Layout, prefix: str) -> Layout:
    layers = [
        replace(
            layer,
            name=f"{prefix}{layer.name}",
            tensors={role: replace(tensor, name=f"{prefix}{tensor.name}") for role, tensor in layer.tensors.items()},
        )
        for layer in layout.layers
    ]
    return Layout(
        layers=layers,
        others={f"{prefix}{name}": why for name, why in layout.others.items()},
        same={f"{prefix}{name}": f"{prefix}{other}" for name, other in layout.same.items()},
        head=frozenset(f"{prefix}{name}" for name in layout.head),
        level_ends={level: f"{prefix}{name}" for level, name in layout.level_ends.items()},
    )


def _declared(model: nn.Module, filter_dims: Mapping[str, int]) -> Layout:
    layers = []
    for name, tensor in model.state_dict().items():
        if name in filter_dims:
            axis = Axis(name=name, counted=True)
            axes = tuple(axis if dim == filter_dims[name] else None for dim in range(tensor.dim()))
            tensors = {"weight": LayerTensor(name=name, axes=axes)}
            layers.append(Layer(name=name, level=0, role="main", block=None, kind=(name,), widens=0, tensors=tensors))
    others = {name: "has no filters" for name in model.state_dict() if name not in filter_dims}
    return Layout(layers=layers, others=others)


class _Reader:
    """Walks a graph once and gathers what belongs to each layer."""

    def __init__(self, model: nn.Module, consistent: bool) -> None:
        self._graph = Graph(model)
        self._consistent = consistent
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._state: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self._head = find_head(model, self._graph)
        self._entries = {self._graph.blocks.get(node) for node in self._graph.nodes if self._enters(node)} - {None}

    def layout(self) -> Layout:
        """Layers in order of computation, each once."""
        levels = self._levels()
        gathered: dict[fx.Node, dict[str, LayerTensor]] = {}
        followers: Counter[fx.Node] = Counter()
        taken: set[str] = set()
        for node in self._graph.nodes:
            own = self._tensors_of(node)
            if not own or str(node.target) in taken | self._head:
                continue
            taken.add(str(node.target))
            owner = self._graph.owner(node)
            if self._graph.is_layer(node):
                gathered[node] = self._filters(node)
            elif owner in gathered and all(self._fits(tensor, owner) for tensor in own.values()):
                axis = gathered[owner]["weight"].axes[0]
                number = followers[owner] = followers[owner] + 1
                what = "norm" if isinstance(self._graph.module(node), _NormBase) else "scale"
                gathered[owner] |= {
                    f"{what}{number}.{part}": self._along(str(node.target), part, tensor, axis)
                    for part, tensor in own.items()
                }
            else:
                gathered[node] = self._alone(node, own)
        layers = [self._layer(node, tensors, levels[node]) for node, tensors in gathered.items()]
        layers += self._unseen({tensor.name for layer in layers for tensor in layer.tensors.values()}, levels)
        inside = {tensor.name for layer in layers for tensor in layer.tensors.values()}
        same = {name: other for name, other in self._second_names().items() if other in inside}
        others = {name: self._why_not(name) for name in self._state if name not in inside | same.keys()}
        head = frozenset(name for name in self._state if name.rpartition(".")[0] in self._head)
        return Layout(layers=layers, others=others, same=same, head=head, level_ends=self._level_ends(levels))

    def _tensors_of(self, node: fx.Node) -> dict[str, Tensor]:
        """The tensors that a node computes with, by their name in its module; "" for one that it is itself."""
        name = str(node.target)
        if node.op == "get_attr" and name in self._state and self._state[name].is_floating_point():
            return {"": self._state[name]}
        if node.op != "call_module":
            return {}
        inside = {part: self._state.get(f"{name}.{part}") for part, _ in self._named(name)}
        return {part: tensor for part, tensor in inside.items() if tensor is not None and tensor.is_floating_point()}

    def _named(self, name: str) -> Iterable[tuple[str, Tensor]]:
        module = self._modules[name]
        return [*module.named_parameters(), *module.named_buffers()]

    def _filters(self, node: fx.Node) -> dict[str, LayerTensor]:
        name, module = str(node.target), self._graph.module(node)
        weight = self._state[f"{name}.weight"]
        outputs = Axis(name=self._axis(self._graph.stream(node), weight.shape[0], f"{name}:out"), counted=True)
        inputs = None
        if not is_depthwise(module):
            stream = self._graph.stream(node.all_input_nodes[0])
            inputs = Axis(name=self._axis(stream, weight.shape[1], f"{name}:in"), counted=False)
        axes = (outputs, inputs, *[None] * (weight.dim() - 2))
        tensors = {"weight": LayerTensor(name=f"{name}.weight", axes=axes)}
        others = {part: tensor for part, tensor in self._tensors_of(node).items() if part != "weight"}
        return tensors | {
            part: self._along(name, part, tensor, outputs)
            for part, tensor in others.items()
            if tensor.numel() == len(weight)
        }

    def _axis(self, stream: str, width: int, alone: str) -> str:
        """The name of an axis: the stream's where it is shared and as wide, otherwise the layer's own."""
        return stream if self._consistent and self._graph.width(stream) == width else alone

    def _fits(self, tensor: Tensor, owner: fx.Node) -> bool:
        """Whether a tensor has one number for each channel of a layer."""
        return tensor.numel() == self._graph.width(str(owner.target))

    def _along(self, module: str, part: str, tensor: Tensor, axis: Axis | None) -> LayerTensor:
        """A tensor that has one number for each channel of an axis."""
        axes = tuple(axis if size == tensor.numel() else None for size in tensor.shape)
        return LayerTensor(name=f"{module}.{part}" if part else module, axes=axes)

    def _alone(self, node: fx.Node, own: Mapping[str, Tensor]) -> dict[str, LayerTensor]:
        """A norm, a scale or a parameter that follows no layer: its channels are those that it is given."""
        name, tensors = str(node.target), {}
        inputs = [each for each in node.all_input_nodes if each in self._graph.streams]
        stream = self._graph.stream(inputs[0]) if inputs else ""
        width = self._graph.width(stream)
        for part, tensor in own.items():
            shape = tuple(tensor.shape) or (1,)
            dim = shape.index(width) if width in shape else next((d for d, size in enumerate(shape) if size > 1), 0)
            axis = Axis(name=self._axis(stream, shape[dim], f"{name}:out"), counted=True)
            role = f"norm0.{part}" if isinstance(self._graph.module(node), _NormBase) else part or "itself"
            axes = tuple(axis if d == dim else None for d in range(len(shape)))
            tensors[role] = LayerTensor(name=f"{name}.{part}" if part else name, axes=axes)
        return tensors

    def _unseen(self, seen: set[str], levels: Mapping[fx.Node, int]) -> Iterator[Layer]:
        """Parameters of modules that take part, used where the trace does not see it, such as a table of biases."""
        for name, tensor in self._state.items():
            module, _, part = name.rpartition(".")
            node = next((each for each in self._graph.nodes if str(each.target).startswith(f"{module}.")), None)
            if node is None or name in seen or module in self._head or not isinstance(tensor, nn.Parameter):
                continue
            shape = tuple(tensor.shape) or (1,)
            dim = next((d for d, size in enumerate(shape) if size > 1), 0)
            axes = tuple(Axis(name=f"{name}:out", counted=True) if d == dim else None for d in range(len(shape)))
            yield Layer(
                name=name,
                level=levels[node],
                role=self._graph.roles.get(node, "main"),
                block=self._graph.blocks.get(node),
                kind=(part,),
                widens=0,
                tensors={"itself": LayerTensor(name=name, axes=axes)},
            )

    def _layer(self, node: fx.Node, tensors: Mapping[str, LayerTensor], level: int) -> Layer:
        name, module = str(node.target), self._graph.module(node)
        kind: Kind = (type(module).__name__ if module is not None else name.rpartition(".")[2],)
        widens = 0
        if has_filters(module):
            shape, groups = self._state[f"{name}.weight"].shape, getattr(module, "groups", 1)
            grouping = "depthwise" if is_depthwise(module) else groups
            kind = (tuple(getattr(module, "kernel_size", ())), grouping)
            widens = (shape[0] > shape[1] * groups) - (shape[0] < shape[1] * groups)
        return Layer(
            name=name,
            level=level,
            role=self._graph.roles.get(node, "main"),
            block=self._graph.blocks.get(node),
            kind=kind,
            widens=widens,
            tensors=tensors,
        )

    def _enters(self, node: fx.Node) -> bool:
        """Whether a layer takes strides, or stands for the identity on a shortcut: what comes next is another level."""
        role, module = self._graph.roles.get(node, "main"), self._graph.module(node)
        strides = isinstance(module, CONVOLUTIONS) and role == "main" and max(module.stride) > 1
        return strides or (self._graph.is_layer(node) and role == "shortcut")

    def _levels(self) -> dict[fx.Node, int]:
        """A level ends where the top-level module changes, a pooling is passed, or another one is entered."""
        levels: dict[fx.Node, int] = {}
        level, waiting, child, block = -1, True, "", None
        for node in self._graph.nodes:
            if node.op == "call_module":
                top = str(node.target).partition(".")[0]
                waiting = waiting or top != child or self._graph.pools(node)
                child = top
            if self._graph.is_layer(node):
                here = self._graph.blocks.get(node)
                begins = here != block and here in self._entries if here is not None else self._enters(node)
                level, waiting, block = level + (waiting or begins), False, here
            levels[node] = level + waiting
        return levels

    def _level_ends(self, levels: Mapping[fx.Node, int]) -> dict[int, str]:
        """The first layer of the next level is given a level's output; the last one's, the head."""
        first: dict[int, str] = {}
        for node in self._graph.nodes:
            if self._graph.is_layer(node) and str(node.target) not in self._head:
                first.setdefault(levels[node], str(node.target))
        heads = [str(node.target) for node in self._graph.nodes if str(node.target) in self._head]
        ends = {level - 1: name for level, name in first.items() if level > 0}
        return ends | ({max(first): heads[0]} if heads and first else {})

    def _second_names(self) -> dict[str, str]:
        names = defaultdict(list)
        for name, tensor in self._state.items():
            names[id(tensor)].append(name)
        called = {str(node.target) for node in self._graph.nodes}
        second: dict[str, str] = {}
        for group in names.values():
            own = next((name for name in group if {name, name.rpartition(".")[0]} & called), group[0])
            second |= {name: own for name in group if name != own}
        return second

    def _why_not(self, name: str) -> str:
        module = name.rpartition(".")[0]
        if module in self._head:
            return HEAD
        if name.endswith(_COUNTER):
            return "counts batches"
        if not any(f"{node.target}.".startswith(f"{module}.") for node in self._graph.nodes):
            return "takes no part in the scores: an auxiliary head or its like"
        return f"{type(self._modules.get(module)).__name__}: has no filters"


def head_of(model: nn.Module) -> frozenset[str]:
    """Names of the tensors of a network's head."""
    core = unwrap(model)
    own = timm_classifier(core.network)
    names = find_head(core.network, Graph(core.network)) if own is None else own
    state = core.network.state_dict()
    return frozenset(f"{core.prefix}{name}" for name in state if name.rpartition(".")[0] in names)
