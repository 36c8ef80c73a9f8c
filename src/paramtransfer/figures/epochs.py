"""Accuracy against the epoch, with and without transfer (Figure 4)."""

import itertools
from collections.abc import Iterable

import pandas as pd

from paramtransfer.figures import style
from paramtransfer.figures.drawing import Drawing, SweepData
from paramtransfer.metrics import TEST_CURVE, VALIDATION_CURVE


class Epochs:
    """Acc@1 after each epoch, mean and standard error over seeds: the baseline, and a curve for each value of `lines`.

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
        figure, (axis,) = style.panels(1)
        looks = itertools.chain([(style.BASELINE, "--")], zip(itertools.cycle(style.COLOURS), itertools.repeat("-")))
        curves = [("without transfer", rows["baseline_run_id"])]
        for value, group in groups:
            label = str(value) if self.lines is None else f"{style.symbol(self.lines)} = {value}"
            curves.append((label, group["downstream_run_id"]))
        tables, notes = [], []
        for (colour, line), (label, run_ids) in zip(looks, curves, strict=False):
            table = self._average(data, metric, run_ids.unique()).assign(curve=label)
            mean, sem = table["mean"], table["sem"]
            axis.plot(table["epoch"], mean, color=colour, linestyle=line, label=label)
            axis.fill_between(table["epoch"], mean - sem, mean + sem, color=colour, alpha=0.25, linewidth=0)
            tables.append(table)
            error = f" ± {sem.iloc[-1]:.4f}" if len(run_ids.unique()) > 1 else ""
            notes.append(f"{label}, after epoch {len(table)}: {mean.iloc[-1]:.4f}{error}")
        which = "test" if metric == TEST_CURVE else "validation"
        num_seeds = int(tables[0]["n"].iloc[0])
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"{which} Acc@1 (mean ± s.e., n = {num_seeds} seeds)")
        axis.legend()
        notes.insert(0, f"Acc@1 on {which} images, n = {num_seeds} seeds:")
        return Drawing(figures={"figure": figure}, tables={"curves": pd.concat(tables)}, notes=notes)

    def _average(self, data: SweepData, metric: str, run_ids: Iterable[str]) -> pd.DataFrame:
        """Mean and standard error over runs after each epoch."""
        curves = pd.DataFrame([data.history(run_id, metric).to_numpy() for run_id in run_ids])
        return pd.DataFrame(
            {
                "epoch": range(1, len(curves.columns) + 1),
                "mean": curves.mean(),
                "sem": curves.sem(),
                "n": len(curves),
            }
        )
