"""Accuracy against the epoch, with and without transfer (Figure 4)."""

import itertools
from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes

from paramtransfer.figures import style
from paramtransfer.figures.drawing import Drawing, SweepData
from paramtransfer.metrics import TEST_CURVE, VALIDATION_CURVE
from paramtransfer.statistics import Estimate, t_interval


class Epochs:
    """Acc@1 after each epoch, mean and standard error over seeds, and the gain, paired by seed.

    The baseline, and a curve for each value of `lines`.

    On the test images where they were looked at after each epoch (`trainer.test_every_epoch=true`), otherwise on the
    validation images.

    Args:
        lines: the swept key that tells the curves with transfer apart, or None.
    """

    def __init__(self, *, lines: str | None = None) -> None:
        self.lines = lines
        self.keys = [] if lines is None else [lines]

    def __call__(self, data: SweepData) -> Drawing:
        rows = data.rows
        groups = [("with transfer", rows)] if self.lines is None else list(rows.groupby(self.lines, sort=False))
        metric = TEST_CURVE if len(data.history(rows["downstream_run_id"].iloc[0], TEST_CURVE)) else VALIDATION_CURVE

        def curves(run_ids: Iterable[str]) -> pd.DataFrame:
            return pd.DataFrame([data.history(run_id, metric).to_numpy() for run_id in run_ids])

        which = "test" if metric == TEST_CURVE else "validation"
        figure, axes = style.panels(2)
        baseline = _average(curves(rows["baseline_run_id"].unique()), "without transfer")
        _draw(axes[0], baseline, style.BASELINE, "--")
        tables = [baseline]
        for colour, (value, group) in zip(itertools.cycle(style.COLOURS), groups, strict=False):
            label = str(value) if self.lines is None else f"{style.symbol(self.lines)} = {value!s}"
            inherited = curves(group["downstream_run_id"])
            gain = _average(inherited - curves(group["baseline_run_id"]), f"gain, {label}, paired by seed")
            tables += [_average(inherited, label), gain]
            _draw(axes[0], tables[-2], colour, "-")
            _draw(axes[1], gain, colour, "-")
        num_seeds = int(baseline["n"].iloc[0])
        axes[0].set_ylabel(f"{which} Acc@1 (mean ± s.e., n = {num_seeds} seeds)")
        axes[0].legend()
        axes[1].axhline(0, color=style.BASELINE, linestyle="--")
        axes[1].set_ylabel("paired gain (mean ± s.e.)")
        for axis in axes:
            axis.set_xlabel("epoch")
        notes = [f"Acc@1 on {which} images, n = {num_seeds} seeds, after the last epoch:", *map(_last, tables)]
        return Drawing(figures={"figure": figure}, tables={"curves": pd.concat(tables)}, notes=notes)


def _average(curves: pd.DataFrame, name: str) -> pd.DataFrame:
    """Mean and standard error over runs after each epoch."""
    return pd.DataFrame(
        {
            "epoch": range(1, len(curves.columns) + 1),
            "mean": curves.mean(),
            "sem": curves.sem(),
            "n": len(curves),
            "curve": name,
        }
    )


def _draw(axis: Axes, table: pd.DataFrame, colour: str, line: str) -> None:
    mean, sem = table["mean"], table["sem"]
    axis.plot(table["epoch"], mean, color=colour, linestyle=line, label=table["curve"].iloc[0])
    axis.fill_between(table["epoch"], mean - sem, mean + sem, color=colour, alpha=0.25, linewidth=0)


def _last(table: pd.DataFrame) -> str:
    """The end of a curve in words, with the interval by Student's t over seeds."""
    last = table.iloc[-1]
    if last["n"] < 2:
        return f"{last['curve']}: {last['mean']:.4f}"
    low, high = t_interval(Estimate(last["mean"], last["sem"]), int(last["n"]))
    return f"{last['curve']}: {last['mean']:.4f} ± {last['sem']:.4f} (95 %: {low:.4f} to {high:.4f})"
