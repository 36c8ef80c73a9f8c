"""A choice among upstreams on outcomes that were not produced here: the table of the Visual Task Adaptation Benchmark.

    python scripts/choose_upstream.py PATH/vtab-results.csv                 print it
    python scripts/choose_upstream.py PATH/vtab-results.csv --out FILE      write it as CSV, too

The table (google-research/task_adaptation, docs/data/results.csv, Apache-2.0) has the test accuracy of ResNet-50 from
15 upstreams and from scratch on 19 targets, with 1,000 training images and with all. One target is left out at a time:
an advisor sees the others whole, of the left-out one the gains at 1,000 images of a few upstreams, those that are the
best on average over the other targets, and decides for all images by `paramtransfer.advice.policy`. What it believes of
a gain is the line that predicts the gain with all images from the gain at 1,000 on the other targets. Once with all
upstreams at hand, of which the best seldom harm, and once with the generative models alone, which often do.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paramtransfer.advice.policy import FRESH, Belief, Decision, Thresholds, decide

SCRATCH = "From-Scratch"
SUPERVISED = "Sup-100%"
ON_AVERAGE = "always the best on average"
LIMITS = Thresholds(risk=0.05, worth=0.01)
BUDGETS = range(1, 6)
POOLS = {"all": ".", "generative": "GAN|VAE|WAE"}
"""Which upstreams are at hand: a pattern of their names."""


class Gains(NamedTuple):
    """Gains in accuracy over training from scratch, a row for each target and a column for each upstream."""

    cheap: pd.DataFrame
    """With 1,000 training images."""
    full: pd.DataFrame
    """With all."""


class Choice(NamedTuple):
    """What is inherited from on one target, or FRESH."""

    upstream: str
    decision: Decision | None = None
    looked_at: Sequence[str] = ()


Chooser = Callable[[Gains, pd.Series, Sequence[str]], Choice]
"""From the other targets, the left-out one's gains at 1,000 images, and upstreams by their mean gain on the others."""


def read_gains(path: Path) -> Gains:
    """The table's two halves.

    Raises:
        ValueError: it is not that table.
    """
    table = pd.read_csv(path, header=[0, 1], index_col=0)
    halves: list[pd.DataFrame] = []
    for size in ("1000", "full"):
        if size not in table.columns.get_level_values(0) or SCRATCH not in table.index:
            raise ValueError(f"{path}: must be VTAB's table, with columns 1000 and full and a row {SCRATCH}")
        accuracy = pd.DataFrame(table[size]).astype(float).T / 100
        halves.append(accuracy.drop(columns=SCRATCH).sub(accuracy[SCRATCH], axis=0))
    return Gains(*halves)


def believed(others: Gains, cheap: pd.Series, looked_at: Sequence[str]) -> dict[str, Belief]:
    """Of each upstream's gain with all images, from its gain at 1,000 and how both go together on the other targets.

    One line through the origin for all upstreams looked at, so that who does not gain at 1,000 images is not expected
    to with all, and the best guess is the largest gain at 1,000 images. The error of a prediction is that of the line's
    points, whose independent ones are the targets.
    """
    x, y = (half[list(looked_at)].to_numpy().ravel() for half in others)
    slope, num = float((x * y).sum() / (x * x).sum()), len(others.cheap)
    error = float((((y - slope * x) ** 2).mean() * num / (num - 1)) ** 0.5)
    return {name: Belief(slope * float(cheap[name]), error, num - 1, num) for name in looked_at}


def by_policy(num: int, *, only_when_told: bool) -> Chooser:
    """The policy with some upstreams looked at: its best guess, or scratch unless it says to inherit."""

    def choose(others: Gains, cheap: pd.Series, order: Sequence[str]) -> Choice:
        decision = decide(believed(others, cheap, order[:num]), LIMITS)
        is_told = decision.verdict == "inherit" or not only_when_told
        return Choice(decision.leading if is_told else FRESH, decision, order[:num])

    return choose


CHOOSERS: dict[tuple[str, int], Chooser] = {
    **{("policy: best guess", num): by_policy(num, only_when_told=False) for num in BUDGETS},
    **{("policy: only when told", num): by_policy(num, only_when_told=True) for num in BUDGETS},
    (ON_AVERAGE, 0): lambda others, cheap, order: Choice(order[0]),
    (f"always {SUPERVISED}", 0): lambda others, cheap, order: Choice(SUPERVISED),
    ("always scratch", 0): lambda others, cheap, order: Choice(FRESH),
}


def compare(gains: Gains) -> pd.DataFrame:
    """A row for each way to choose: regret in points against the best there is, harm, and wrong words."""
    rows = []
    for pool, pattern in POOLS.items():
        at_hand = Gains(*(half.filter(regex=pattern) for half in gains))
        usual = _outcomes(at_hand, list(_choices(at_hand, CHOOSERS[ON_AVERAGE, 0])))
        for (rule, num), choose in CHOOSERS.items():
            if SUPERVISED not in rule or SUPERVISED in at_hand.full:
                choices = list(_choices(at_hand, choose))
                rows.append({"upstreams": pool, "rule": rule, "looked_at": num, **_row(at_hand, choices, usual)})
    return pd.DataFrame(rows)


def _choices(gains: Gains, choose: Chooser) -> Iterator[Choice]:
    """Of each target, left out in turn."""
    for target in gains.full.index:
        others = Gains(*(half.drop(index=target) for half in gains))
        order = others.full.mean().sort_values(ascending=False, kind="stable").index
        yield choose(others, gains.cheap.loc[target], list(order))


def _outcomes(gains: Gains, choices: Sequence[Choice]) -> NDArray[np.float64]:
    """The gain with all images that each choice comes to."""
    full = gains.full.assign(**{FRESH: 0.0})
    found = [full.loc[target, choice.upstream] for target, choice in zip(full.index, choices, strict=True)]
    return np.array(found, dtype=float)


def _row(gains: Gains, choices: Sequence[Choice], usual: NDArray[np.float64]) -> dict[str, object]:
    got = _outcomes(gains, choices)
    regret = 100 * (gains.full.max(axis=1).clip(lower=0).to_numpy() - got)
    row: dict[str, object] = {
        "regret_mean": regret.mean(),
        "regret_sem": regret.std(ddof=1) / len(regret) ** 0.5,
        "regret_max": regret.max(),
        "n": len(regret),
        "harmed": int((got < 0).sum()),
        "harm_avoided": int(((usual < 0) & (got >= 0)).sum()),
    }
    if not choices[0].looked_at:
        return row
    pairs = list(zip(gains.full.index, choices, strict=True))
    to_gain = (
        np.array([gains.full.loc[target, list(choice.looked_at)].max() for target, choice in pairs]) > LIMITS.worth
    )
    row["misses_a_gain"] = int((np.array([choice.upstream == FRESH for choice in choices]) & to_gain).sum())
    decisions = [choice.decision for choice in choices if choice.decision is not None]
    if decisions:
        verdicts = np.array([decision.verdict for decision in decisions])
        row |= {f"says_{word}": int((verdicts == word).sum()) for word in ("inherit", "fresh", "unclear")}
        row["false_do_not_inherit"] = int(((verdicts == "fresh") & to_gain).sum())
        row["harm_expected"] = sum(decision.harm for decision in decisions if decision.leading != FRESH)
    return row


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="vtab-results.csv")
    parser.add_argument("--out", type=Path, help="a CSV file to write")
    arguments = parser.parse_args()
    table = compare(read_gains(arguments.table))
    if arguments.out:
        table.to_csv(arguments.out, index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.3g", na_rep="–"))


if __name__ == "__main__":
    main()
