"""What the gains of a sweep say when there are many of them, and where the theory speaks of their sign."""

from typing import Any

import pandas as pd
from numpy.typing import NDArray

from paramtransfer.metrics import GAIN, HARM_PREDICTED, sem_of
from paramtransfer.statistics import benjamini_hochberg, p_values

LEVEL = 0.05


def gain_p(table: pd.DataFrame) -> NDArray[Any]:
    """Two-sided p of no gain in each row, by Student's t over its n repetitions."""
    return p_values(table[GAIN], table[sem_of(GAIN)], table["n"])


def clear_gains(table: pd.DataFrame) -> NDArray[Any]:
    """Which rows have a gain, of either sign, after Benjamini and Hochberg."""
    return benjamini_hochberg(gain_p(table), LEVEL)


def gain_counts(table: pd.DataFrame) -> list[str]:
    """How many settings gain and lose: each alone, and all together; nothing for a single setting."""
    if len(table) < 2:
        return []
    (raw_up, raw_down), (up, down) = (
        [int((table[GAIN][chosen] * sign > 0).sum()) for sign in (1, -1)]
        for chosen in (gain_p(table) < LEVEL, clear_gains(table))
    )
    return [
        f"{len(table)} settings: a gain in {raw_up} and a loss in {raw_down} at p < {LEVEL} each (t test; of one "
        "repetition, over its test points, normal); after "
        f"Benjamini-Hochberg at a false discovery rate of {LEVEL}, in {up} and {down}. The settings share their random "
        "streams: their errors are not independent."
    ]


def harm_prediction(table: pd.DataFrame) -> str:
    """How often there is harm where Proposition 4.4 predicts it; where it does not, it says nothing."""
    if HARM_PREDICTED not in table:
        return ""
    predicted = table[table[HARM_PREDICTED] > 0]
    harmed = predicted[GAIN] < 0
    clear = int((harmed & clear_gains(predicted)).sum()) if len(predicted) else 0
    silent = table[table[HARM_PREDICTED] == 0]
    return (
        f"Proposition 4.4 predicts harm in {len(predicted)} of {len(table)} settings, and the gain is below 0 in "
        f"{int(harmed.sum())} of them (in {clear} clearly, after Benjamini-Hochberg). Of the other {len(silent)} it "
        f"says nothing: the gain is below 0 in {int((silent['test/gain'] < 0).sum())}."
    )
