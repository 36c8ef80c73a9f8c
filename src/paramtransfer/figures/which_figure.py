"""Which figure a sweep gets, and whether that figure can show it."""

from collections.abc import Sequence

from paramtransfer.figures import style
from paramtransfer.figures.curves import Curves
from paramtransfer.figures.drawing import Draw, Drawing, SweepData
from paramtransfer.figures.heatmap import Heatmap


def choose(keys: Sequence[str]) -> Draw | None:
    """What the swept keys are drawn by where the configuration names no figure: one by curves, two by a heatmap.

    None for any other number of keys.
    """
    match keys:
        case [x]:
            return Curves(x=x)
        case [x, y]:
            return Heatmap(x=x, y=y)
    return None


def mixed_keys(draw: Draw, keys: Sequence[str]) -> list[str]:
    """The swept keys whose values the figure would draw over one another."""
    return [] if draw.keys is None else [key for key in keys if key not in draw.keys]


def draw_in_style(draw: Draw, data: SweepData) -> Drawing:
    """The sweep as that figure, in the style of all figures."""
    with style.applied():
        return draw(data)
