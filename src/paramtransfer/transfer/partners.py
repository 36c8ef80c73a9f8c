"""Which layer of the upstream network a layer of the downstream network may inherit from."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from paramtransfer.transfer.layout import Layer, Layout

Partners = dict[str, Layer | None]
"""By the name of each downstream layer."""

T = TypeVar("T")


def by_depth(here: Layout, there: Layout) -> Partners:
    """Each layer with the one at the same share of the way through those of its level and kind."""
    keys: list[Callable[[Layer], Hashable]] = [
        lambda of: (of.level, of.role, of.kind, of.widens),
        lambda of: (of.level, of.role, of.kind),
    ]
    partners: Partners = {}
    for layer in here.layers:
        partners[layer.name] = None
        for key in keys:
            ours = [other for other in here.layers if key(other) == key(layer)]
            theirs = [other for other in there.layers if key(other) == key(layer)]
            if theirs:
                partners[layer.name] = theirs[ours.index(layer) * len(theirs) // len(ours)]
                break
    return partners


@dataclass(frozen=True)
class _Cell:
    """A residual block, or a layer outside of any."""

    layers: Sequence[Layer]

    @property
    def kind(self) -> Hashable:
        """What a partner must share: level, and the layers of the main path."""
        main = tuple(layer.kind for layer in self.layers if layer.role == "main" and layer.filters is not None)
        return self.layers[0].level, self.layers[0].block is None, main or self.layers[0].kind

    @property
    def enters(self) -> bool:
        """Whether it changes the width of what it is given."""
        if self.layers[0].block is None:
            return self.layers[0].widens != 0
        return any(layer.role == "shortcut" for layer in self.layers)


def by_block(here: Layout, there: Layout) -> Partners | None:
    """Whole residual blocks, or layers of plain networks, with evenly spaced ones of their level and kind.

    The first and the last stay first and last, so that between equal networks, and between a network and one with
    more blocks that change nothing, what is inherited computes what it computed upstream. None where one network has
    residual blocks and the other has none of their kind.
    """
    ours, theirs = _cells(here), _cells(there)
    residual = [any(cell.layers[0].block is not None for cell in cells) for cells in (ours, theirs)]
    if residual[0] != residual[1]:
        return None
    partners = by_depth(here, there)
    found = False
    for kind in dict.fromkeys(cell.kind for cell in ours):
        mine, its = ([cell for cell in cells if cell.kind == kind] for cells in (ours, theirs))
        second = _follows_its_like(mine[0], ours)
        for position, cell in enumerate(mine):
            partner = _spaced(cell, position + second, len(mine) + second, its, second)
            if partner is not None:
                partners |= _within(cell, partner)
                found = found or cell.layers[0].block is not None or not residual[0]
    return partners if found else None


def _cells(layout: Layout) -> list[_Cell]:
    cells: dict[Hashable, list[Layer]] = {}
    for layer in layout.layers:
        cells.setdefault(layer.name if layer.block is None else layer.block, []).append(layer)
    return [_Cell(layers) for layers in cells.values()]


def _follows_its_like(block: _Cell, cells: Sequence[_Cell]) -> bool:
    """Whether a level begins with the layers of such a block, but for its sum: the strided first one of MobileNets."""
    first = block.layers[0]
    if first.block is None:
        return False
    index = cells.index(block)
    before = {
        cell.layers[0].kind
        for cell in cells[:index]
        if cell.layers[0].level == first.level and cell.layers[0].filters is not None
    }
    return bool(before) and before <= {layer.kind for layer in block.layers}


def _spaced(cell: _Cell, position: int, count: int, theirs: Sequence[_Cell], second: bool) -> _Cell | None:
    """The cell at the same share of the way from the first to the last, of those that change the width as it does.

    Args:
        second: whether position 0 is that of a block which is not among them, on both sides.
    """
    last = len(theirs) - 1 + second
    ideal = position * last / (count - 1) - second if count > 1 else 0
    alike = [index for index, other in enumerate(theirs) if other.enters == cell.enters]
    return theirs[min(alike, key=lambda index: (abs(index - ideal), index))] if alike else None


def _within(cell: _Cell, partner: _Cell) -> Partners:
    """The layers of two blocks of one kind, in order; those of a way that is built otherwise have no partner."""
    partners: Partners = {}
    for group in dict.fromkeys((layer.role, layer.filters is None) for layer in cell.layers):
        ours, theirs = (
            [layer for layer in of.layers if (layer.role, layer.filters is None) == group] for of in (cell, partner)
        )
        alike = [layer.kind for layer in ours] == [layer.kind for layer in theirs]
        partners |= {layer.name: theirs[index] if alike else None for index, layer in enumerate(ours)}
    return partners
