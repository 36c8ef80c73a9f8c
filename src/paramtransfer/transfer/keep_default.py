"""Which of several starts does best on samples that it was not trained on, and what that is worth.

Shape letters: C candidates, the default first, N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_RISK = 0.05  # of a verdict


class Chances(NamedTuple):
    """What the samples say of every candidate's difference to the default."""

    mean_C: Tensor
    sem_C: Tensor
    freedom: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was compared, and what is kept.

    Attributes:
        index: the candidate that is kept.
        differences: of each candidate's score to the default's, and their standard errors.
        wrong: the chance that the default is no worse after all, or, where it is kept, that the best other is better;
            the best of several has been looked for, which Bonferroni's factor allows for.
        inherits: whether the candidate that is kept does.
        verdict: `inherit`, `start fresh` or `cannot tell`, each wrong in at most 5 % of cases.
    """

    index: int
    differences: list[tuple[float, float]]
    wrong: float
    verdict: str
    inherits: bool


def choose(
    scores_CN: Tensor, inherits: Sequence[bool], *, inflation: float = 1.0, finalists: Sequence[int] = ()
) -> Choice:
    """Keep the default unless another is better by more than one standard error of their paired difference.

    That standard error takes the samples as independent: to keep a start claims nothing. The chance that the choice is
    wrong and the verdict do, and take `inflation` into account.

    Args:
        scores_CN: of each candidate on each sample; larger is better.
        inherits: which of the candidates inherit; the default does not.
        inflation: of the standard errors, where the samples are not independent.
        finalists: those that may be kept; none named: all.
    """
    chances = _chances(scores_CN, inflation)
    mean_C, sem_C, _ = chances
    may_win_C = torch.tensor([not finalists or index in finalists for index in range(len(mean_C))])
    better_C = torch.where((mean_C > sem_C / inflation) & may_win_C, mean_C, 0.0)
    index = int(better_C.argmax())
    num = len(mean_C) - 1
    if index:
        wrong = min(1.0, num * _below(chances, index))
    else:
        wrong = max((1 - _below(chances, other) for other in range(1, num + 1)), default=0.0)
    return Choice(
        index=index,
        differences=list(zip(mean_C.tolist(), sem_C.tolist(), strict=True)),
        wrong=wrong,
        verdict=_verdict(chances, inherits),
        inherits=inherits[index],
    )


def _chances(scores_CN: Tensor, inflation: float) -> Chances:
    difference_CN = (scores_CN - scores_CN[:1]).double()
    num = difference_CN.shape[1]
    sem_C = inflation * difference_CN.std(dim=1) / num**0.5
    return Chances(difference_CN.mean(dim=1), sem_C, num - 1)


def _verdict(chances: Chances, inherits: Sequence[bool]) -> str:
    """Whether any that inherits is better than the default, or all are worse, or neither can be told."""
    below = [_below(chances, index) for index, one in enumerate(inherits) if one]
    if below and len(below) * min(below) <= _RISK:
        return "inherit"
    if all(1 - each <= _RISK for each in below):
        return "start fresh"
    return "cannot tell"


def _below(chances: Chances, index: int) -> float:
    """The chance that a candidate is no better than the default, by Student's t."""
    from scipy import stats  # imported here alone: most processes do not need it

    mean, sem = float(chances.mean_C[index]), float(chances.sem_C[index])
    if sem == 0:
        return 0.0 if mean > 0 else 1.0
    return float(stats.t.sf(mean / sem, chances.freedom))
