"""Accuracy over two swept keys."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paramtransfer.figures import style


class Heatmap:
    """Test accuracy with transfer and the gain over `x` and `y`.

    Args:
        x: the swept key on the horizontal axis.
        y: the swept key on the vertical axis.
    """

    def __init__(self, *, x: str, y: str) -> None:
        self.x = x
        self.y = y

    def __call__(self, table: pd.DataFrame) -> Figure:
        figure, axes = style.panels(2)
        for axis, column, title, colours in zip(
            axes, ("test/acc", "test/gain"), ("test accuracy with transfer", "gain"), ("viridis", "PuOr"), strict=True
        ):
            grid = table.pivot(index=self.y, columns=self.x, values=column)
            limit = np.nanmax(np.abs(grid.to_numpy())) if column == "test/gain" else None
            image = axis.pcolormesh(
                range(len(grid.columns) + 1),
                range(len(grid.index) + 1),
                grid.to_numpy(),
                cmap=colours,
                vmin=None if limit is None else -limit,
                vmax=limit,
            )
            figure.colorbar(image, ax=axis)
            axis.set_xticks(np.arange(len(grid.columns)) + 0.5, [_tick(value) for value in grid.columns])
            axis.set_yticks(np.arange(len(grid.index)) + 0.5, [_tick(value) for value in grid.index])
            axis.set_xlabel(style.label(self.x))
            axis.set_ylabel(style.label(self.y))
            axis.set_title(title)
        return figure


def _tick(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
