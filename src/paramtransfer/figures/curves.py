"""Accuracy against one swept key, the theory beside it."""

import itertools
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from paramtransfer import theory
from paramtransfer.figures import style
from paramtransfer.figures.drawing import Drawing, SweepData
from paramtransfer.figures.significance import clear_gains, gain_counts, gain_p, harm_prediction
from paramtransfer.metrics import ACCURACY, BASELINE_ACCURACY, GAIN, HARM_PREDICTED, TRANSFER_RATIO, sem_of


class Curves:
    """Against `x`: test accuracy, the baseline as a band; the paired gain; A/(B d). A curve for each value of `lines`.

    Where A/(B d) is above 1, the bound of Theorem 4.2 on accuracy, 1 - exp(-A/(B d)), is drawn over the measurement.

    Args:
        x: the swept key on the axis.
        lines: another swept key, or None.
    """

    def __init__(self, *, x: str, lines: str | None = None) -> None:
        self.x = x
        self.lines = lines
        self.keys = [x] if lines is None else [x, lines]

    def __call__(self, data: SweepData) -> Drawing:
        table = data.table
        numeric = pd.api.types.is_numeric_dtype(table[self.x])
        table = table.sort_values(self.x) if numeric else table.assign(**{self.x: table[self.x].map(str)})  # mixed
        has_theory = TRANSFER_RATIO in table
        figure, axes = style.panels(2 + has_theory)
        self._draw_baseline(axes[0], table)
        looks = itertools.cycle(zip(style.COLOURS, "osD^vP", strict=True))
        for (colour, marker), (name, curve) in zip(looks, self._curves(table), strict=False):
            look: style.Look = {"color": colour, "marker": marker, "label": name}
            axes[0].errorbar(curve[self.x], curve[ACCURACY], curve[sem_of(ACCURACY)], **look)
            axes[1].errorbar(curve[self.x], curve[GAIN], curve[sem_of(GAIN)], **look)
            if has_theory:
                axes[2].plot(curve[self.x], curve[TRANSFER_RATIO], **look)
                bound = 1 - pd.Series(theory.error_bound(curve[TRANSFER_RATIO].to_numpy()), index=curve.index)
                axes[0].plot(curve[self.x], bound.where(curve[TRANSFER_RATIO] >= 1), color=colour, linestyle=":")
        axes[0].set_ylabel("test accuracy (mean ± s.e.)")
        axes[0].legend()
        axes[1].axhline(0, color=style.BASELINE, linestyle="--")
        axes[1].set_ylabel("paired gain (mean ± s.e.)")
        if has_theory:
            axes[2].axhline(1, color=style.BASELINE, linestyle=":")
            axes[2].set_yscale("log")
            axes[2].set_ylabel(r"Theorem 4.2: $A/(B\,d)$")
        for axis in axes:
            axis.set_xlabel(style.label(self.x))
            if numeric and style.is_log(table[self.x].tolist()):
                axis.set_xscale("log")
        return Drawing(figures={"figure": figure}, notes=[*gain_counts(table), *_harm(table, data.keys)])

    def _draw_baseline(self, axis: Axes, table: pd.DataFrame) -> None:
        baseline = table.drop_duplicates(self.x)
        mean, sem = baseline[BASELINE_ACCURACY], baseline[sem_of(BASELINE_ACCURACY)]
        axis.plot(baseline[self.x], mean, color=style.BASELINE, linestyle="--", label="without transfer")
        axis.fill_between(baseline[self.x], mean - sem, mean + sem, color=style.BASELINE, alpha=0.25, linewidth=0)

    def _curves(self, table: pd.DataFrame) -> Sequence[tuple[str, pd.DataFrame]]:
        if self.lines is None:
            return [("with transfer", table)]
        return [(f"{style.symbol(self.lines)} = {value}", curve) for value, curve in table.groupby(self.lines)]


def _harm(table: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Where transfer did harm, or Proposition 4.4 predicts harm and there is a gain, many settings allowed for."""
    if HARM_PREDICTED not in table:
        return []
    notes = []
    for (_, row), p, clear in zip(table.iterrows(), gain_p(table), clear_gains(table), strict=True):
        predicted, gain = bool(row[HARM_PREDICTED]), row[GAIN]
        if clear and (gain < 0 or predicted):
            setting = " ".join(f"{key}={row[key]}" for key in keys)
            verb = "predicts" if predicted else "does not predict"
            notes.append(f"{setting}: gain {gain:+.4f} (p = {p:.2g}); Proposition 4.4 {verb} harm")
    return [*notes, harm_prediction(table)]
