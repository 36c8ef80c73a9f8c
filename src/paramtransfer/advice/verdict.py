"""What an advisor ends with, in words and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pandas as pd

from paramtransfer.advice.policy import FRESH, Decision
from paramtransfer.advice.settings import Question
from paramtransfer.statistics import Estimate

COLUMNS = ("candidate", "k-NN", "LogME", "epochs", "gain", "s.e.", "n", "images", "state")
_FEW = 100  # validation images, one of which is a point of accuracy


class Row(NamedTuple):
    """One candidate."""

    candidate: str
    knn: float
    logme: float
    epochs: int
    """The most that it was trained for."""
    gain: float
    """Mean difference to the fresh start on validation images, after so many epochs; NaN without a training."""
    sem: float
    """Of that mean, over seeds, at least that of its images; NaN for one seed."""
    num: int
    """Seeds."""
    num_images: int
    """To choose by, of each seed."""
    state: str


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What an advice has cost."""

    seconds: float
    """Of all trainings, the reused included."""
    trainings: int
    reused: int
    """Of the trainings, those that were in the store already."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The end of an advice."""

    question: Question
    decision: Decision
    rows: Sequence[Row]
    settings: Mapping[str, object]
    """What the rule of the best candidate sets."""
    on_test: Estimate | None
    """Its mean gain on test images, which no choice has looked at, where its whole trainings have not diverged."""
    num_test: int
    """Seeds behind it."""
    num_diverged: int
    """Its whole trainings that have."""
    seen: Sequence[str]
    """Upstreams that have probably seen the target's classes."""
    spent: Spent

    @property
    def start(self) -> str:
        """The candidate whose start is kept: FRESH unless the verdict is to inherit."""
        best = self.decision.best
        return best if self.decision.verdict == "inherit" and best is not None else FRESH

    def table(self) -> pd.DataFrame:
        """A row for each candidate."""
        return pd.DataFrame(self.rows).set_axis(list(COLUMNS), axis=1)

    def sentences(self) -> list[str]:
        """The verdict first."""
        found = [_VERDICTS[self.decision.verdict].format(best=self.decision.best, worth=self.question.worth)]
        found += [*self._on_images(), *self._on_best(), *self._on_others(), *self._on_seen()]
        minutes = f"{self.spent.seconds / 60:.2g} of {self.question.minutes:g} minutes"
        found.append(f"Spent: {minutes}, {self.spent.trainings} trainings, {self.spent.reused} of them reused.")
        return found

    def _on_images(self) -> list[str]:
        num = self.rows[0].num_images
        if self.decision.verdict != "unclear" or num >= _FEW:
            return []
        return [
            f"There were only {num} validation images for each seed, each of which is {1 / num:.2g} of accuracy: a "
            "larger task.val_share, or more images, would tell more than minutes or seeds."
        ]

    def _on_best(self) -> list[str]:
        belief, best = self.decision.belief, self.decision.best
        if belief is None:
            return []
        rule = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        found = [f"Best candidate: {best} ({rule})."]
        if self.on_test is not None:
            seeds = f"n = {self.num_test} seed{'s' * (self.num_test != 1)}"
            found.append(f"Its gain on test images, not used to choose: {_gain(self.on_test)} ({seeds}).")
        if self.num_diverged:
            num = self.num_test + self.num_diverged
            found.append(
                f"Of its {num} whole trainings {self.num_diverged} diverged: counted as wrong on all validation "
                "images, left out on test images."
            )
        found.append(
            f"Its expected gain on validation images, after shrinkage: {_gain(Estimate(belief.mean, belief.sem))} (n = "
            f"{belief.num}, {self.rows[0].num_images} images each); chance of harm {_chance(self.decision.harm)}."
        )
        return found

    def _on_others(self) -> list[str]:
        tied = [f"the {FRESH} start" if name == FRESH else name for name in self.decision.tied]
        found = []
        if tied:
            leading = f"the {FRESH} start" if self.decision.leading == FRESH else self.decision.leading
            found.append(f"Not told apart from {leading}: {', '.join(tied)}.")
        if untried := [row.candidate for row in self.rows if row.epochs == 0]:
            found.append(f"Not tried, for lack of time: {', '.join(untried)}.")
        return found

    def _on_seen(self) -> list[str]:
        if self.seen:
            return [
                f"{self.seen[0]} has probably seen the target's classes, or is far better than the others: the k-NN "
                "accuracy on its features is far above theirs. Its gain need not carry over to new classes."
            ]
        if len(self.question.sources) == 1:
            return ["Whether the upstream has seen the target's classes was not looked into: there is no other."]
        return []

    def as_dict(self) -> dict[str, object]:
        """All of it, as plain values."""
        return {
            "verdict": self.decision.verdict,
            "sentences": self.sentences(),
            "start": self.start,
            "decision": {**asdict(self.decision), "belief": self.decision.belief and self.decision.belief._asdict()},
            "settings": dict(self.settings),
            "gain_on_test": self.on_test and {**self.on_test._asdict(), "n": self.num_test},
            "num_diverged": self.num_diverged,
            "probably_seen": list(self.seen),
            "candidates": self.table().astype(object).where(self.table().notna(), None).to_dict("records"),
            "spent": asdict(self.spent),
            "question": asdict(self.question),
        }


_VERDICTS = {
    "inherit": "Inherit, from {best}.",
    "fresh": "Do not inherit: none of the candidates that were left gains {worth:g} or more.",
    "unclear": "Cannot tell within this budget: start fresh, or ask again with more advise.minutes or advise.seeds.",
}


def _gain(gain: Estimate) -> str:
    return f"{gain.mean:+.4f} ± {gain.sem:.4f}"


def _chance(harm: float) -> str:
    return f"{harm:.2f}" if harm >= 0.01 else "below 0.01"
