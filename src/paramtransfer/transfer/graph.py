"""A network's graph: what computes what, which channels go where, and where its residual blocks are."""

from collections.abc import Iterator

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from paramtransfer.errors import first_line
from paramtransfer.transfer.layout import Role

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
_ADDITIONS = ("add", "iadd", "add_")
_PRODUCTS = ("mul", "imul", "mul_")
_MIXING = ("cat", "concat", "stack", "matmul", "bmm", "einsum", "scaled_dot_product_attention")
"""Functions whose output channels are not those of an input."""


def has_filters(module: nn.Module | None) -> bool:
    """Whether a module is a convolution or a linear layer."""
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def is_depthwise(module: nn.Module | None) -> bool:
    """Whether each filter of a convolution reads a channel of its own."""
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels


class _Tracer(fx.Tracer):
    """Takes convolutions, norms and modules without parts as they are; guards on shapes count as passed."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*CONVOLUTIONS, *NORMS)) or not list(m.children())

    def to_bool(self, obj: fx.Proxy) -> bool:
        return False


def trace(model: nn.Module) -> list[fx.Node]:
    """The nodes of what a network computes when it is tested, in order.

    Raises:
        ValueError: the network cannot be traced.
    """
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        return list(_Tracer().trace(model).nodes)
    except Exception as error:  # whatever a stranger's forward does with a proxy
        reason = first_line(error)
        raise ValueError(
            f"{type(model).__name__}: no plan can be made, its layers cannot be traced ({reason})"
        ) from error
    finally:
        for module in training:
            module.training = True


class Graph:
    """What a network's nodes say of its layers."""

    def __init__(self, model: nn.Module) -> None:
        self.nodes = trace(model)
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._state = model.state_dict()
        self.streams: dict[fx.Node, str] = {}
        """The channels that a node puts out, named after the layer that made them."""
        self.widths: dict[str, int] = {}
        """How many channels a stream has."""
        self._joined: dict[str, str] = {}
        self._follow_channels()
        self.blocks: dict[fx.Node, int] = {}
        self.roles: dict[fx.Node, Role] = {}
        self._find_blocks()

    def module(self, node: fx.Node) -> nn.Module | None:
        """What a node calls, if it calls a module."""
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def is_layer(self, node: fx.Node) -> bool:
        """Whether a node has filters."""
        return has_filters(self.module(node))

    def stream(self, node: fx.Node) -> str:
        """The channels that a node puts out; nodes whose outputs are added put out the same."""
        name = self.streams.get(node, "")
        while name in self._joined:
            name = self._joined[name]
        return name

    def width(self, name: str) -> int:
        """Channels of a stream; 0 where that is not known."""
        return self.widths.get(name, 0)

    def owner(self, node: fx.Node) -> fx.Node | None:
        """The layer whose channels a node sees one by one, with no sum, product or mixture in between."""
        while not self.is_layer(node):
            inputs = [each for each in node.all_input_nodes if each in self.streams]
            if len(inputs) != 1 or self.streams[inputs[0]] != self.streams.get(node):
                return None
            (node,) = inputs
        return node

    def pools(self, node: fx.Node) -> bool:
        """Whether a node is a pooling of neighbouring places on the way from block to block."""
        return node not in self.blocks and isinstance(self.module(node), _POOLINGS)

    def _follow_channels(self) -> None:
        for node in self.nodes:
            streams = [self.streams[each] for each in node.all_input_nodes if each in self.streams]
            if self.is_layer(node):
                name = str(node.target)
                self.streams[node] = name
                weight: Tensor = self._modules[name].weight
                self.widths[name] = len(weight)
                if is_depthwise(self.module(node)) and streams:
                    self._join(name, streams[0])
            elif node.op == "placeholder":
                self.streams[node] = "input"
            elif len(streams) > 1 and _function(node) in _MIXING:
                self.streams[node] = node.name
            elif streams:
                self.streams[node] = streams[0]
                for other in streams[1:]:
                    self._join(streams[0], other)

    def _join(self, one: str, other: str) -> None:
        while one in self._joined:
            one = self._joined[one]
        while other in self._joined:
            other = self._joined[other]
        if one != other:
            self._joined[other] = one

    def _find_blocks(self) -> None:
        """A sum of two ways from one node is a residual block; a product of a node with what comes of it, a gate."""
        number = 0
        for node in self.nodes:
            sides = [each for each in node.all_input_nodes if each in self.streams]
            if len(sides) != 2 or _function(node) not in (*_ADDITIONS, *_PRODUCTS):
                continue
            ways = _ways(sides[0], sides[1], self.nodes)
            short, long = sorted(ways, key=lambda way: sum(self.is_layer(each) for each in way))
            if not any(self.is_layer(each) for each in long):
                continue
            if _function(node) in _PRODUCTS:
                if not short:
                    self.roles |= dict.fromkeys(long, "gate")
                continue
            if sum(map(self.is_layer, short)) < sum(map(self.is_layer, long)):
                self.roles |= dict.fromkeys(short, "shortcut")
            inside = [each for each in (*long, *short) if each not in self.blocks]
            self.blocks |= dict.fromkeys(inside, number)
            number += 1


def _ways(one: fx.Node, other: fx.Node, nodes: list[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes on each of two ways since they parted."""
    first, second = (set(_with_ancestors(side)) for side in (one, other))
    common = first & second
    fork = next((node for node in reversed(nodes) if node in common), None)
    before = set(_with_ancestors(fork)) if fork is not None else set[fx.Node]()
    return [node for node in nodes if node in first - before], [node for node in nodes if node in second - before]


def _with_ancestors(node: fx.Node) -> Iterator[fx.Node]:
    found, ahead = {node}, [node]
    while ahead:
        node = ahead.pop()
        yield node
        new = [each for each in node.all_input_nodes if each not in found]
        found.update(new)
        ahead += new


def _function(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target) if node.op == "call_method" else ""
