"""Accuracy against one swept key."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from paramtransfer.figures import style


class Curves:
    """Test accuracy against `x`, the baseline as a band, one curve for each value of `lines`.

    Args:
        x: the swept key on the axis.
        lines: another swept key, or None.
    """

    def __init__(self, *, x: str, lines: str | None = None) -> None:
        self.x = x
        self.lines = lines

    def __call__(self, table: pd.DataFrame) -> Figure:
        figure, (axis,) = style.panels(1)
        numeric = pd.api.types.is_numeric_dtype(table[self.x])
        table = table.sort_values(self.x) if numeric else table
        baseline = table.drop_duplicates(self.x)
        mean, sem = baseline["test/acc_without_transfer"], baseline["test/acc_without_transfer_sem"]
        axis.plot(baseline[self.x], mean, color=style.BASELINE, linestyle="--", label="without transfer")
        axis.fill_between(baseline[self.x], mean - sem, mean + sem, color=style.BASELINE, alpha=0.25, linewidth=0)
        for colour, marker, (name, curve) in zip(style.COLOURS, "osD^vP", self._curves(table), strict=False):
            axis.errorbar(
                curve[self.x], curve["test/acc"], curve["test/acc_sem"], color=colour, marker=marker, label=name
            )
        if numeric and style.is_log(table[self.x].tolist()):
            axis.set_xscale("log")
        axis.set_xlabel(style.label(self.x))
        axis.set_ylabel("test accuracy (mean ± s.e.)")
        axis.legend()
        return figure

    def _curves(self, table: pd.DataFrame) -> Sequence[tuple[str, pd.DataFrame]]:
        if self.lines is None:
            return [("with transfer", table)]
        return [(f"{style.symbol(self.lines)} = {value}", curve) for value, curve in table.groupby(self.lines)]
