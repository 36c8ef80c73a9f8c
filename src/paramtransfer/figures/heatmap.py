"""Accuracy over two swept keys, with contours of the theory."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from numpy.typing import ArrayLike

from paramtransfer.figures import style
from paramtransfer.figures.curves import Curves
from paramtransfer.figures.drawing import Drawing, SweepData
from paramtransfer.figures.significance import clear_gains, gain_counts, harm_prediction
from paramtransfer.metrics import ACCURACY, GAIN, TRANSFER_RATIO


class Heatmap:
    """Test accuracy with transfer, paired gain, and the maps truncated at given accuracies; over all, A/(B d) = const.

    Where one of the keys has a single value, curves over the other.

    Args:
        x: the swept key on the horizontal axis.
        y: the swept key on the vertical axis.
        truncate: accuracies; a map each of where the measured accuracy reaches it.
    """

    def __init__(self, *, x: str, y: str, truncate: Sequence[float] = ()) -> None:
        self.x = x
        self.y = y
        self.keys = [x, y]
        self.truncate = truncate

    def __call__(self, data: SweepData) -> Drawing:
        if data.table[self.y].nunique() < 2:
            return Curves(x=self.x)(data)
        if data.table[self.x].nunique() < 2:
            return Curves(x=self.y)(data)
        accuracy, gain = self._grid(data.table, ACCURACY), self._grid(data.table, GAIN)
        limit = np.nanmax(np.abs(gain.to_numpy()))
        figure, axes = style.panels(2 + len(self.truncate))
        figure.colorbar(self._draw(axes[0], accuracy, "test accuracy with transfer", "viridis"), ax=axes[0])
        signed = self._draw(axes[1], gain, "gain over no transfer", "PuOr", between=(-limit, limit))
        figure.colorbar(signed, ax=axes[1])
        for axis, level in zip(axes[2:], self.truncate, strict=True):
            reached = (accuracy >= level).astype(float).where(accuracy.notna())
            self._draw(axis, reached, f"accuracy at least {level:g}", "cividis", between=(0, 1))
        unclear = self._grid(data.table.assign(unclear=~clear_gains(data.table)), "unclear").eq(True)
        (x, y), (rows, columns) = (map(np.asarray, _positions(unclear)), np.nonzero(unclear))
        axes[1].plot(x[columns], y[rows], "x", color=style.BASELINE, markersize=3)
        if TRANSFER_RATIO in data.table:
            for axis in axes:
                self._draw_contours(axis, self._grid(data.table, TRANSFER_RATIO))
        notes = ["A cross marks a gain that is not told from 0.", *gain_counts(data.table)]
        return Drawing(figures={"figure": figure}, notes=[*notes, *filter(None, [harm_prediction(data.table)])])

    def _grid(self, table: pd.DataFrame, column: str) -> pd.DataFrame:
        return table.pivot(index=self.y, columns=self.x, values=column)

    def _draw(
        self,
        axis: Axes,
        grid: pd.DataFrame,
        title: str,
        colours: str,
        between: tuple[float | None, float | None] = (None, None),
    ) -> QuadMesh:
        low, high = between
        mesh = axis.pcolormesh(
            *_positions(grid),
            grid.to_numpy(),
            shading="nearest",
            rasterized=True,
            cmap=colours,
            vmin=low,
            vmax=high,
        )
        for set_ticks, values in ((axis.set_xticks, grid.columns), (axis.set_yticks, grid.index)):
            if not pd.api.types.is_numeric_dtype(values):
                set_ticks(range(len(values)), values)
        axis.set_xlabel(style.label(self.x))
        axis.set_ylabel(style.label(self.y))
        axis.set_title(title)
        return mesh

    def _draw_contours(self, axis: Axes, ratio: pd.DataFrame) -> None:
        if min(ratio.shape) < 2:
            return
        levels = [level for level in (0.01, 0.03, 0.1, 0.3, 1, 3, 10) if ratio.min().min() < level < ratio.max().max()]
        lines = axis.contour(*_positions(ratio), ratio.to_numpy(), levels=levels, colors="white", linewidths=1)
        for text in axis.clabel(lines, fmt=lambda level: f"{level:g}", fontsize=7):
            text.set_color("white")
        for artist in (lines, *lines.labelTexts):
            artist.set_path_effects(style.OUTLINE)


def _positions(grid: pd.DataFrame) -> tuple[ArrayLike, ArrayLike]:
    """Where columns and rows lie: at their values, or evenly spaced where these are no numbers."""
    axes = (grid.columns, grid.index)
    x, y = (values if pd.api.types.is_numeric_dtype(values) else np.arange(len(values)) for values in axes)
    return x, y
