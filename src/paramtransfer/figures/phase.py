"""The phase transition of Theorem 4.2 in its own regime."""

import itertools

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from paramtransfer.figures import style
from paramtransfer.figures.drawing import Drawing, SweepData
from paramtransfer.metrics import (
    ACCURACY,
    BASELINE_ACCURACY,
    CONDITION_HOLDS,
    SCRATCH_RATIO,
    TRANSFER_RATIO,
    sem_of,
)

_UNSEEN = 1e-7  # stands for an error too rare to be seen, in the order of the cells alone
_ERROR = 0.1  # what Theorem 4.2 says the error stays above where d is too large


class Phase:
    """Accuracy against A/(B d), a colour for each value of `size`; hollow where Condition 4.1 does not hold.

    Notes: for each size, the A/(B d) at which the error crosses 0.1, and the largest C_2 for which the bound
    exp(-C_2 A/(B d)) holds in the cells above it that show an error. Cells outside Condition 4.1 do not count.
    Standard errors come from cells redrawn within their own.

    Args:
        size: the swept key that the regime scales with.
    """

    keys = None

    def __init__(self, *, size: str) -> None:
        self.size = size

    def __call__(self, data: SweepData) -> Drawing:
        figure, axes = style.panels(2)
        notes, constants = [], []
        for colour, (size, cells) in zip(itertools.cycle(style.COLOURS), data.table.groupby(self.size), strict=False):
            for inside, group in cells.groupby(CONDITION_HOLDS):
                label = f"{style.symbol(self.size)} = {size}" + ("" if inside else ", outside Condition 4.1")
                look: style.Look = {"color": colour, "linestyle": "", "marker": "o", "label": label}
                if not inside:
                    look["markerfacecolor"] = "white"
                axes[0].errorbar(group[TRANSFER_RATIO], group[ACCURACY], group[sem_of(ACCURACY)], **look)
                scratch = group[SCRATCH_RATIO], group[BASELINE_ACCURACY]
                axes[1].errorbar(*scratch, group[sem_of(BASELINE_ACCURACY)], **look)
            row = _constants(cells[cells[CONDITION_HOLDS] == 1])
            constants.append({self.size: size, **row})
            notes.append(
                f"{self.size}={size}: the error crosses {_ERROR} at A/(B d) = {row['crossing']:.2f} ± "
                f"{row['crossing_sem']:.2f}; above it, -log(error) is at least {row['C_2']:.2f} ± {row['C_2_sem']:.2f} "
                f"A/(B d) in the {row['cells']} cells that show an error"
            )
        axes[0].set_xlabel(r"Theorem 4.2: $A/(B\,d)$")
        axes[1].set_xlabel(r"Theorem 4.3: $N_2 \|s_2\|^4/(\sigma_2^4\,d)$")
        for axis, title in zip(axes, ("with transfer", "without transfer"), strict=True):
            axis.set_xscale("log")
            axis.axhline(1 - _ERROR, color=style.BASELINE, linestyle=":")
            axis.set_title(title)
            axis.set_ylabel("test accuracy (mean ± s.e.)")
        axes[0].legend()
        return Drawing(figures={"figure": figure}, tables={"constants": pd.DataFrame(constants)}, notes=notes)


def _constants(cells: pd.DataFrame) -> dict[str, float]:
    """Crossing and C_2 with their standard errors, and the number of cells behind C_2; nan where there is none."""
    if len(cells) < 2:
        return {"crossing": np.nan, "crossing_sem": np.nan, "C_2": np.nan, "C_2_sem": np.nan, "cells": 0}
    cells = cells.sort_values(TRANSFER_RATIO)
    ratio, error = cells[TRANSFER_RATIO].to_numpy(), 1 - cells[ACCURACY].to_numpy()
    noise = np.random.default_rng(0).normal(size=(200, len(cells))) * cells[sem_of(ACCURACY)].to_numpy()
    estimates = [_fit(ratio, np.clip(error + redrawn, 0, 1)) for redrawn in noise]
    (crossing, exponent), (crossing_sem, exponent_sem) = _fit(ratio, error), np.std(estimates, axis=0, ddof=1)
    shown = int(((ratio > crossing) & (error > 0)).sum())
    return {
        "crossing": crossing,
        "crossing_sem": crossing_sem,
        "C_2": exponent,
        "C_2_sem": exponent_sem,
        "cells": shown,
    }


def _fit(ratio: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """The A/(B d) at which the error crosses 0.1, and the smallest -log(error) / (A/(B d)) above it.

    The crossing is that of the isotonic fit: cells of one A/(B d) but other signals scatter around one curve.
    """
    log_ratio, log_error = np.log(ratio), np.log(error.clip(min=_UNSEEN))
    fitted = IsotonicRegression(increasing=False).fit_transform(log_ratio, log_error)
    if not fitted[-1] < np.log(_ERROR) < fitted[0]:
        return np.nan, np.nan
    crossing = float(np.exp(np.interp(-np.log(_ERROR), -fitted, log_ratio)))
    above = (ratio > crossing) & (error > 0)
    return crossing, float((-np.log(error[above]) / ratio[above]).min()) if above.any() else np.nan
