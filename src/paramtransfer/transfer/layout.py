"""A network as the layers and channels that transfer speaks of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["main", "shortcut", "gate"]
Kind = tuple[str | int | tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A dimension of a tensor along which channels are chosen."""

    name: str
    """Dimensions of one name choose the same channels."""
    counted: bool
    """Whether its channels are filters, of which the share alpha is inherited; otherwise inputs, which all go along."""
    unit: int = 1
    """Channels that are chosen together, such as those of an attention head."""
    repeats: int = 1
    """How often the same channels follow one another, such as query, key and value."""


@dataclass(frozen=True, kw_only=True)
class LayerTensor:
    """A tensor of a layer."""

    name: str
    """In the state dict."""
    axes: tuple[Axis | None, ...]
    """One for each dimension; None stands for a dimension that is copied whole."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What is inherited together: filters with the norm behind them, or a norm or a scale that follows none."""

    name: str
    """Of the module."""
    level: int
    """How often the top-level module, or the resolution or width of blocks, has changed before it."""
    role: Role
    """On the main path, on the way around a residual block, or computing a gate of channels."""
    block: int | None
    """The residual block that it lies in, counted from 0."""
    kind: Kind
    """What a partner must share besides: kernel size and grouping, or the class of a norm."""
    widens: int
    """Whether it has more filters than inputs (1), as many (0) or fewer (-1)."""
    tensors: Mapping[str, LayerTensor]
    """`weight`, `bias`, and of what follows it `norm1.weight` and so on (batch norms), `scale2.gamma` (others)."""

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for a depthwise one, and for all others."""
        return next((part for part in self.kind if isinstance(part, int)), 1)

    @property
    def filters(self) -> LayerTensor | None:
        """The tensor that holds filters; a norm or a scale has none."""
        tensor = self.tensors.get("weight")
        return tensor if tensor is not None and len(tensor.axes) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A network's layers in order of computation; the head, whose label set is the task's, is not among them."""

    layers: list[Layer]
    others: Mapping[str, str] = field(default_factory=dict)
    """Why each tensor that belongs to no layer is not inherited."""
    same: Mapping[str, str] = field(default_factory=dict)
    """Tensors that are another one under a second name."""
    head: frozenset[str] = frozenset()
    """Names of the head's tensors."""
    level_ends: Mapping[int, str] = field(default_factory=dict)
    """For each level the module whose input is its output."""
