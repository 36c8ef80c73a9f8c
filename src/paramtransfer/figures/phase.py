"""The phase transition of Theorem 4.2 in its own regime."""

import itertools
from typing import Any

import numpy as np
import pandas as pd

from paramtransfer.figures import style
from paramtransfer.figures.curves import RATIO
from paramtransfer.figures.drawing import Drawing, SweepData

_UNSEEN = 1e-7  # stands for an error too rare to be seen, in the order of the cells alone
_ERROR = 0.1  # what Theorem 4.2 says the error stays above where d is too large


class Phase:
    """Accuracy against A/(B d), a colour for each value of `size`; hollow where Condition 4.1 does not hold.

    Notes: for each size, the A/(B d) at which the error crosses 0.1, and the largest C_2 for which the bound
    exp(-C_2 A/(B d)) holds above it. Cells outside Condition 4.1 do not count; for C_2, nor cells without an error.

    Args:
        size: the swept key that the regime scales with.
    """

    def __init__(self, *, size: str) -> None:
        self.size = size

    def __call__(self, data: SweepData) -> Drawing:
        figure, axes = style.panels(2)
        notes, crossings = [], []
        for colour, (size, cells) in zip(itertools.cycle(style.COLOURS), data.table.groupby(self.size), strict=False):
            look: dict[str, Any] = {"color": colour, "linestyle": "", "marker": "o"}
            for inside, group in cells.groupby("theory/condition_holds"):
                fill = {} if inside else {"markerfacecolor": "white"}
                label = f"{style.symbol(self.size)} = {size}" + ("" if inside else ", outside Condition 4.1")
                axes[0].errorbar(group[RATIO], group["test/acc"], group["test/acc_sem"], **look, **fill, label=label)
                scratch = group["theory/scratch_ratio"], group["test/acc_without_transfer"]
                axes[1].errorbar(*scratch, group["test/acc_without_transfer_sem"], **look, **fill)
            crossing, exponent = _constants(cells[cells["theory/condition_holds"] == 1])
            crossings.append({self.size: size, "error 0.1 at A/(B d)": crossing, "C_2": exponent})
            notes.append(
                f"{self.size}={size}: the error crosses {_ERROR} at A/(B d) = {crossing:.2f}; above it "
                f"-log(error) is at least {exponent:.2f} A/(B d)"
            )
        axes[0].set_xlabel(r"Theorem 4.2: $A/(B\,d)$")
        axes[1].set_xlabel(r"Theorem 4.3: $N_2 \|s_2\|^4/(\sigma_2^4\,d)$")
        for axis, title in zip(axes, ("with transfer", "without transfer"), strict=True):
            axis.set_xscale("log")
            axis.axhline(1 - _ERROR, color=style.BASELINE, linestyle=":")
            axis.set_title(title)
            axis.set_ylabel("test accuracy (mean ± s.e.)")
        axes[0].legend()
        return Drawing(figures={"figure": figure}, tables={"constants": pd.DataFrame(crossings)}, notes=notes)


def _constants(cells: pd.DataFrame) -> tuple[float, float]:
    """The A/(B d) at which the error crosses 0.1, and the smallest exponent above it; nan where there is none.

    The crossing is that of the isotonic fit: cells of one A/(B d) but other signals scatter around one curve.
    """
    from sklearn.isotonic import IsotonicRegression

    if len(cells) < 2:
        return np.nan, np.nan
    cells = cells.sort_values(RATIO)
    log_ratio = np.log(cells[RATIO].to_numpy())
    log_error = np.log((1 - cells["test/acc"]).clip(lower=_UNSEEN).to_numpy())
    fitted = IsotonicRegression(increasing=False).fit_transform(log_ratio, log_error)
    if not fitted[-1] < np.log(_ERROR) < fitted[0]:
        return np.nan, np.nan
    crossing = float(np.exp(np.interp(-np.log(_ERROR), -fitted, log_ratio)))
    above = cells[(cells[RATIO] > crossing) & (cells["test/acc"] < 1)]
    return crossing, float((-np.log(1 - above["test/acc"]) / above[RATIO]).min())
