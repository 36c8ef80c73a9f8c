"""From evidence to a decision: inherit or start fresh, from which candidate, and what cannot be told.

Gains are differences in accuracy to the fresh start, which is a candidate with a gain of 0. What is believed of a
candidate's true gain is a Student t distribution; where it comes from is the caller's business: `believe` makes it of
paired trainings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean, variance
from typing import Literal, NamedTuple

from scipy import stats

FRESH = "fresh"
"""The name of the candidate that inherits nothing."""
LEAST_PAIRS = 2
"""Paired trainings that a verdict needs of every candidate it speaks of."""
Verdict = Literal["inherit", "fresh", "unclear"]


class Belief(NamedTuple):
    """What is believed of a true gain: `mean` + `sem` · t with `freedom` degrees of freedom."""

    mean: float
    sem: float
    freedom: float
    num: int
    """Independent observations behind it."""

    def below(self, value: float) -> float:
        """The probability that the true gain is below a value."""
        return float(stats.t.cdf((value - self.mean) / self.sem, self.freedom))


_FRESH_GAIN = Belief(0.0, 0.0, inf, 0)


class Pair(NamedTuple):
    """A candidate's training and the fresh start's of the same seed."""

    gain: float
    num_images: int
    """That the accuracies are over."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a verdict keeps to."""

    risk: float
    """The largest chance of being wrong that a verdict may have."""
    worth: float
    """The smallest gain in accuracy that would be worth inheriting."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows from the evidence."""

    verdict: Verdict
    """`inherit` the leading candidate; start `fresh`, for no candidate gains what is worth it; or neither is told."""
    leading: str
    """The candidate with the largest expected gain; FRESH where none is expected to gain."""
    best: str | None
    """The same among those that inherit; None where there is no evidence of any."""
    belief: Belief | None
    """Of the true gain of `best`."""
    harm: float
    """The chance that `best` truly loses; 1/2 without evidence."""
    tied: Sequence[str]
    """Who may be better than `leading` with a chance above the risk."""


def believe(pairs: Mapping[str, Sequence[Pair]], *, prior: float) -> dict[str, Belief]:
    """Beliefs of paired trainings; candidates without any are left out.

    A difference has the same variance for all candidates, pooled over them, and at least what its images alone give: of
    a gain g on N images no fewer than |g| N pairs of answers differ, so that it is at least (|g| - g²)/N, and at least
    that of one image. True gains are N(0, prior²) before anything is seen, which draws the best of several back to
    where it would have been without the luck that made it the best.

    Args:
        pairs: of each candidate.
        prior: standard deviation of true gains.
    """
    seen = {name: found for name, found in pairs.items() if found}
    freedom = sum(len(found) - 1 for found in seen.values())
    of_one = variance_of_a_pair(list(seen.values())) if seen else 0.0
    beliefs = {}
    for name, found in seen.items():
        of_mean = of_one / len(found)
        kept = prior**2 / (prior**2 + of_mean)
        mean = fmean(pair.gain for pair in found)
        beliefs[name] = Belief(kept * mean, (kept * of_mean) ** 0.5, freedom or 1, len(found))
    return beliefs


def variance_of_a_pair(candidates: Sequence[Sequence[Pair]]) -> float:
    """Of one pair's difference, from the pairs of each candidate, one or more; see `believe`."""
    gains = [[pair.gain for pair in found] for found in candidates]
    freedom = sum(len(found) - 1 for found in gains)
    within = sum((len(found) - 1) * variance(found) for found in gains if len(found) > 1)
    floor = fmean(_least_variance(pair) for found in candidates for pair in found)
    return max(within / freedom if freedom else 0.0, floor)


def _least_variance(pair: Pair) -> float:
    gain = abs(pair.gain)
    return max((gain - gain**2) / pair.num_images, 1 / pair.num_images**2)


def decide(beliefs: Mapping[str, Belief], limits: Thresholds) -> Decision:
    """The decision that follows from what is believed of each candidate that inherits.

    The leading one of m has been chosen among m, so that its chance of harm may be at most risk/m for `inherit`. For
    `fresh` every candidate's chance to gain what is worth it must be at most the risk.
    """
    if not beliefs:
        return Decision(verdict="unclear", leading=FRESH, best=None, belief=None, harm=0.5, tied=[FRESH])
    best = max(beliefs, key=lambda name: beliefs[name].mean)
    belief, harm = beliefs[best], beliefs[best].below(0.0)
    is_enough = all(each.num >= LEAST_PAIRS for each in beliefs.values())
    verdict: Verdict = "unclear"
    if belief.num >= LEAST_PAIRS and harm <= limits.risk / len(beliefs):
        verdict = "inherit"
    elif is_enough and all(1 - each.below(limits.worth) <= limits.risk for each in beliefs.values()):
        verdict = "fresh"
    leading = best if belief.mean > 0 else FRESH
    bar = belief if leading == best else _FRESH_GAIN
    tied = [name for name, other in beliefs.items() if name != leading and _may_beat(other, bar, limits.risk)]
    if leading == best and harm > limits.risk:
        tied.append(FRESH)
    return Decision(verdict=verdict, leading=leading, best=best, belief=belief, harm=harm, tied=tied)


def _may_beat(other: Belief, leading: Belief, risk: float) -> bool:
    """As if both were independent, which candidates that share fresh starts are less apart than."""
    sem = (other.sem**2 + leading.sem**2) ** 0.5
    difference = Belief(other.mean - leading.mean, sem, min(other.freedom, leading.freedom), 0)
    return 1 - difference.below(0.0) > risk
