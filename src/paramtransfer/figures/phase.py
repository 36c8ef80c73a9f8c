"""The phase transition of Theorem 4.2 in its own regime."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paramtransfer.figures import style
from paramtransfer.figures.drawing import Drawing, SweepData
from paramtransfer.figures.significance import gain_counts
from paramtransfer.metrics import (
    ACCURACY,
    BASELINE_ACCURACY,
    CONDITION_HOLDS,
    ERROR,
    GAIN,
    LOG_ERROR,
    LOSS_CURVE,
    SCRATCH_RATIO,
    TRANSFER_RATIO,
    sem_of,
)
from paramtransfer.statistics import Estimate, t_interval

_ERROR = 0.1  # what Theorem 4.2 says the error stays above where d is too large
_LINES = ((0, (1, 4)), ":", "--", "-.", "-")
_NAN = Estimate(np.nan, np.nan)


class Phase:
    """Test error against A/(B d), where it crosses 0.1, how fast it falls beyond, the gain and the training loss.

    A colour for each value of `family`, for the theorem's constants may differ from one make-up of the signal to
    another, and a line for each value of `size`. Errors are those of the integral where there is one
    (`task.tail_error=true`), counted otherwise. Cells outside Condition 4.1 are hollow, and do not count.

    Tables: for each family and size the crossing and the exponent -log(error) / (A/(B d)); for each family the trend of
    the crossing in the size.

    Args:
        size: the swept key that the regime scales with.
        family: the swept key that says how the signal is made up.
    """

    keys = None

    def __init__(self, *, size: str, family: str) -> None:
        self.size = size
        self.family = family

    def __call__(self, data: SweepData) -> Drawing:
        table = data.table.assign(**{key: data.table.get(key, 0) for key in (self.size, self.family)})
        table = _with_errors(table)
        rows = [
            {self.size: size, self.family: family, **_constants(cells[cells[CONDITION_HOLDS] == 1])}
            for (family, size), cells in table.groupby([self.family, self.size])
        ]
        constants = pd.DataFrame(rows)
        trend = pd.DataFrame(self._trends(constants), columns=[self.family, *Trend._fields])
        notes = [self._note(row) for row in rows] + [_trend_note(self.family, row) for _, row in trend.iterrows()]
        return Drawing(
            figures={"figure": self._draw(table, constants)},
            tables={"constants": constants, "trend": trend},
            notes=[*notes, *gain_counts(table)],
        )

    def _trends(self, constants: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
        for family, rows in constants.groupby(self.family):
            known = rows.dropna(subset="crossing")
            if len(known) > 2:
                yield family, *trend_in(known[self.size].to_numpy(), known["crossing"].to_numpy())

    def _note(self, row: dict[str, Any]) -> str:
        where = f"{self.family}={row[self.family]} {self.size}={row[self.size]}"
        crossed = (
            f"the error crosses {_ERROR} at A/(B d) = {row['crossing']:.3f} ± {row['crossing_sem']:.3f} "
            f"(C_3 = {row['C_3']:.2f})"
            if np.isfinite(row["crossing"])
            else f"no crossing of {_ERROR} between the cells"
        )
        if row["cells"] < 2:
            return f"{where}: {crossed}"
        return (
            f"{where}: {crossed}; beyond, -log(error) is at least {row['C_2']:.2f} ± {row['C_2_sem']:.2f} A/(B d), at "
            f"A/(B d) = {row['C_2_at']:.3g}, and grows by {row['slope']:.2f} of it at the end"
        )

    def _draw(self, table: pd.DataFrame, constants: pd.DataFrame) -> Any:
        figure, axes = style.panels(6)
        sizes = sorted(table[self.size].unique())
        lines = dict(zip(sizes, itertools.cycle(reversed(_LINES)), strict=False))
        for colour, (family, cells) in zip(itertools.cycle(style.COLOURS), table.groupby(self.family), strict=False):
            for size, group in cells.sort_values(TRANSFER_RATIO).groupby(self.size):
                look: style.Look = {"color": colour, "linestyle": lines[size], "marker": "."}
                axes[0].plot(group[TRANSFER_RATIO], group["error"], **look)
                small = group[_is_small(group)]
                outside = group[group[CONDITION_HOLDS] == 0]
                axes[0].plot(outside[TRANSFER_RATIO], outside["error"], "o", color=colour, markerfacecolor="white")
                axes[3].errorbar(small[TRANSFER_RATIO], small["exponent"], small["exponent_sem"], **look)
                axes[4].errorbar(group[TRANSFER_RATIO], group[GAIN], group[sem_of(GAIN)], **look)
                axes[5].plot(group[TRANSFER_RATIO], group[LOSS_CURVE], **look)
            axes[0].plot([], [], color=colour, label=f"{style.symbol(self.family)} = {family}")
            crossed = constants[constants[self.family] == family]
            fitted = crossed.dropna(subset="crossing")
            axes[2].errorbar(crossed[self.size], crossed["crossing"], crossed["crossing_sem"], color=colour, fmt="o")
            if len(fitted) > 1:
                power = np.polyfit(np.log(fitted[self.size]), np.log(fitted["crossing"]), 1)
                axes[2].plot(fitted[self.size], np.exp(np.polyval(power, np.log(fitted[self.size]))), color=colour)
        for size, group in table.drop_duplicates([self.size, SCRATCH_RATIO]).groupby(self.size):
            group = group.sort_values(SCRATCH_RATIO)
            look = {"color": style.BASELINE, "linestyle": lines[size], "label": f"{style.symbol(self.size)} = {size}"}
            axes[1].plot(group[SCRATCH_RATIO], 1 - group[BASELINE_ACCURACY], marker=".", **look)
        for axis in axes:
            axis.set_xscale("log")
            axis.set_xlabel(r"Theorem 4.2: $A/(B\,d)$")
        axes[1].set_xlabel(r"Theorem 4.3: $N_2 \|s_2\|^4/(\sigma_2^4\,d)$")
        axes[2].set_xlabel(style.label(self.size))
        axes[2].set_xticks(sizes, sizes)
        axes[2].minorticks_off()
        labels = (
            "test error, with transfer",
            "test error, without transfer",
            r"$A/(B\,d)$ where the error crosses 0.1 (± s.e.)",
            r"$-\log(\mathrm{error})\,/\,(A/(B\,d))$ (± s.e.)",
            "paired gain (mean ± s.e.)",
            "training loss reached, with transfer",
        )
        for axis, label in zip(axes, labels, strict=True):
            axis.set_ylabel(label)
        for axis in axes[:2]:
            axis.set_yscale("log")
            axis.axhline(_ERROR, color=style.BASELINE, linestyle=":")
            axis.legend()
        axes[4].axhline(0, color=style.BASELINE, linestyle="--")
        return figure


def _with_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The test error of each cell, its relative standard error, and -log(error) / (A/(B d))."""
    if ERROR in table:
        error, sem = table[ERROR], table[sem_of(ERROR)]
        log_error, log_sem = table[LOG_ERROR], table[sem_of(LOG_ERROR)]
    else:
        error, sem = 1 - table[ACCURACY], table[sem_of(ACCURACY)]
        with np.errstate(divide="ignore", invalid="ignore"):
            log_error, log_sem = np.log(error), sem / error
    return table.assign(
        error=error,
        error_sem=sem,
        exponent=-log_error / table[TRANSFER_RATIO],
        exponent_sem=log_sem / table[TRANSFER_RATIO],
    )


def _is_small(cells: pd.DataFrame) -> pd.Series:
    return cells["error"].between(0, _ERROR, inclusive="neither")


def _constants(cells: pd.DataFrame) -> dict[str, Any]:
    """What the cells of one family and size say of the theorem's constants; nan where they say nothing.

    C_1 and C_3 of `d <= C_1 A/B` and `d >= C_3 A/B` are inverses of the A/(B d) at which the error crosses 0.1.
    """
    cells = cells.sort_values(TRANSFER_RATIO)
    ratio, error = cells[TRANSFER_RATIO].to_numpy(), cells["error"].to_numpy()
    crossed = crossing(ratio, error, cells["error_sem"].to_numpy())
    small = cells[_is_small(cells)]
    constants: dict[str, Any] = {"crossing": crossed.mean, "crossing_sem": crossed.sem, "C_3": 1 / crossed.mean}
    if small.empty:
        return {**constants, **dict.fromkeys(("C_2", "C_2_sem", "C_2_at", "slope"), np.nan), "cells": 0}
    least = small.iloc[int(small["exponent"].argmin())]
    minus_log = (small["exponent"] * small[TRANSFER_RATIO]).to_numpy()[-2:]
    slope = np.diff(minus_log) / np.diff(small[TRANSFER_RATIO].to_numpy()[-2:])
    return {
        **constants,
        "C_2": least["exponent"],
        "C_2_sem": least["exponent_sem"],
        "C_2_at": least[TRANSFER_RATIO],
        "slope": slope.item() if len(slope) else np.nan,
        "cells": len(small),
    }


def crossing(ratio: NDArray[Any], error: NDArray[Any], sem: NDArray[Any]) -> Estimate:
    """The A/(B d) at which the error falls to 0.1, between the cells on either side of it; nan where there are none.

    Linear in both logarithms. The two cells share their draws: for the standard error, both errors move together.

    Args:
        ratio: A/(B d), ascending.
        error: of each cell.
        sem: its standard error.
    """
    above = np.flatnonzero(error > _ERROR)
    if not len(above) or above[-1] + 1 == len(error) or error[above[-1] + 1] <= 0:
        return _NAN
    two = slice(above[-1], above[-1] + 2)
    (x, y), relative = (np.log(ratio[two]), np.log(error[two])), (sem[two] / error[two]).mean()
    slope = (y[1] - y[0]) / (x[1] - x[0])
    at = np.exp(x[0] + (np.log(_ERROR) - y[0]) / slope)
    return Estimate(float(at), float(at * relative / abs(slope)))


class Trend(NamedTuple):
    """log(crossing) against log(size), least squares: its slope, and Student's t interval and p of no trend."""

    slope: float
    slope_sem: float
    low: float
    high: float
    p: float
    num: int


def trend_in(size: NDArray[Any], at: NDArray[Any]) -> Trend:
    """The trend of three or more crossings."""
    from scipy import stats

    fit = stats.linregress(np.log(size.astype(float)), np.log(at))
    low, high = t_interval(Estimate(fit.slope, fit.stderr), len(size) - 1)  # two parameters are fitted
    return Trend(float(fit.slope), float(fit.stderr), low, high, float(fit.pvalue), len(size))


def _trend_note(family: str, row: pd.Series) -> str:
    return (
        f"{family}={row[family]}: the crossing goes as the size to the power {row['slope']:+.3f} "
        f"(95 %: {row['low']:+.3f} to {row['high']:+.3f}, p = {row['p']:.2g}, {int(row['num'])} sizes)"
    )
