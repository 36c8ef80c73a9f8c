"""What a choice among starts is worth: the chosen one against each of those that it was chosen from, in hindsight."""

from collections.abc import Sequence
from math import nan

import pandas as pd
from matplotlib.axes import Axes

from paramtransfer.figures import style
from paramtransfer.figures.drawing import Drawing, SweepData
from paramtransfer.metrics import (
    ABOVE,
    ACCURACY,
    BASELINE_ACCURACY,
    GAIN,
    HINDSIGHT,
    INHERITING,
    of_candidate,
    sem_of,
)

_NOTHING = "nothing inherited"
"""The baseline, which every job has."""


class Better:
    """Against `x`, a curve for each of `lines`: the chosen start, and it less the best fresh, the paper's, the best.

    Args:
        x: the swept key on the axis.
        fresh: the candidates that inherit nothing; the baseline is one more.
        paper: the candidate that is the paper's rule.
        lines: another key of the sweep.
    """

    def __init__(self, *, x: str, lines: str, fresh: Sequence[str], paper: str) -> None:
        self.x = x
        self.lines = lines
        self.keys = [x, lines]
        self._fresh, self._paper = list(fresh), paper

    def __call__(self, data: SweepData) -> Drawing:
        if not any(str(name).startswith(HINDSIGHT) for name in data.table):
            return Drawing(notes=["No figure: it needs what transfer.hindsight=true looks up."])
        cells = self.judged(data.table)
        figure, axes = style.panels(4)
        groups = dict(list(cells.groupby(self.lines)))
        colours = style.ordered(len(groups))
        for colour, (name, curve) in zip(colours, groups.items(), strict=True):
            shown = curve.sort_values(self.x)
            look: style.Look = {"color": colour, "marker": "o", "label": str(name)}
            axes[0].errorbar(shown[self.x], shown[ACCURACY], shown[sem_of(ACCURACY)], **look)
            for axis, title in zip(axes[1:], ("over fresh", "over paper", "regret"), strict=True):
                axis.errorbar(shown[self.x], shown[title], shown[sem_of(title)], **look)
        self._label(axes)
        return Drawing(figures={"figure": figure}, tables={"better": cells}, notes=_verdicts(cells))

    def judged(self, table: pd.DataFrame) -> pd.DataFrame:
        """Of each setting: the best fresh start and the best of all, by their means, and the choice against them."""
        prefix = f"{HINDSIGHT}/"
        names = [str(name).removeprefix(prefix) for name in table if str(name).startswith(prefix)]
        fresh = [_NOTHING, *(of_candidate("", name).removeprefix("/") for name in self._fresh)]
        paper = of_candidate("", self._paper).removeprefix("/")
        rows = []
        for _, row in table.iterrows():
            mean = {_NOTHING: row[BASELINE_ACCURACY], **{name: row[prefix + name] for name in names}}
            best_fresh, best = (
                max((name for name in fresh if name in mean), key=mean.__getitem__),
                max(mean, key=mean.__getitem__),
            )
            judged = {key: row[key] for key in (*self.keys, "n", ACCURACY, sem_of(ACCURACY), INHERITING)}
            judged |= {"best fresh": best_fresh, "best": best, "paper's gain": mean.get(paper, nan) - mean[_NOTHING]}
            for title, name, sign in (("over fresh", best_fresh, 1), ("over paper", paper, 1), ("regret", best, -1)):
                above = GAIN if name == _NOTHING else f"{ABOVE}/{name}"
                judged[title], judged[sem_of(title)] = sign * row.get(above, nan), row.get(sem_of(above), nan)
            rows.append(judged)
        return pd.DataFrame(rows)

    def _label(self, axes: Sequence[Axes]) -> None:
        titles = (
            "test accuracy, chosen (mean ± s.e.)",
            "less the best fresh start, paired",
            f"less {self._paper}, paired",
            "best single start less chosen, paired",
        )
        for axis, title in zip(axes, titles, strict=True):
            axis.set_ylabel(title)
            axis.set_xlabel(style.label(self.x))
        for axis in axes[1:]:
            axis.axhline(0, color=style.BASELINE, linestyle="--")
        axes[0].legend(title=style.symbol(self.lines), ncols=2)


def _verdicts(cells: pd.DataFrame) -> list[str]:
    """How often the choice is worse than the best fresh start, and better than the paper's rule where that gains."""
    worse = (cells["over fresh"] < -2 * cells[sem_of("over fresh")]).sum()
    gains = cells[cells["paper's gain"] > 0]
    clearly = (gains["over paper"] > 3 * gains[sem_of("over paper")]).sum()
    return [
        f"Below the best fresh start by more than 2 s.e. in {worse} of {len(cells)} settings.",
        f"Above the paper's rule by more than 3 s.e. in {clearly} of the {len(gains)} settings where that gains.",
        f"Regret: {cells['regret'].mean():.4f} in the mean, {cells['regret'].max():.4f} at most (best single start).",
    ]
