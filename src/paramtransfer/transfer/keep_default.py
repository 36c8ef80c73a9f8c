"""Which of several starts is kept: the default, unless another does better on samples that no training has seen.

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
    """What was compared, and what is kept."""

    index: int
    """The candidate that is kept."""
    inherits: bool
    """Whether it inherits."""
    differences: list[tuple[float, float]]
    """Of each candidate's score to the default's, and their standard errors."""
    p: float
    """One-sided, of the lead over the default, times the number of others, among which the best has been looked for
    (Bonferroni); 1 where the default is kept."""
    verdict: str
    """Of what inherits against the default: `inherit`, `start fresh` or `cannot tell`, the first two wrong in at most
    5 % of cases; `no verdict` where the scores cannot carry one."""


def choose(
    scores_CN: Tensor,
    inherits: Sequence[bool],
    *,
    inflation: float = 1.0,
    training_variance: float = 0.0,
    finalists: Sequence[int] = (),
    is_claim: bool = True,
) -> Choice:
    """Keep the default unless another is better by more than one standard error of their paired difference.

    That standard error takes the samples as independent: to keep a start claims nothing. p and the verdict do, and take
    `inflation` into account.

    Args:
        scores_CN: of each candidate on each sample; larger is better.
        inherits: which of the candidates inherit; the default does not.
        inflation: of the standard errors, where the samples are not independent.
        training_variance: of a difference, from one training to the next; 0 where there is none.
        finalists: those that may be kept; none named: all.
        is_claim: whether the scores can carry a verdict.
    """
    chances = _chances(scores_CN, inflation, training_variance)
    mean_C, sem_C, _ = chances
    may_win_C = torch.tensor([not finalists or index in finalists for index in range(len(mean_C))])
    better_C = torch.where((mean_C > sem_C / inflation) & may_win_C, mean_C, 0.0)
    index = int(better_C.argmax())
    judged = [other for other, one in enumerate(inherits) if one and may_win_C[other]]
    return Choice(
        index=index,
        inherits=inherits[index],
        differences=list(zip(mean_C.tolist(), sem_C.tolist(), strict=True)),
        p=min(1.0, (len(mean_C) - 1) * _p(chances, index)) if index else 1.0,
        verdict=_verdict(chances, judged, sum(inherits)) if is_claim else "no verdict",
    )


def _chances(scores_CN: Tensor, inflation: float, training_variance: float) -> Chances:
    difference_CN = (scores_CN - scores_CN[:1]).double()
    num = difference_CN.shape[1]
    sem_C = inflation * (difference_CN.var(dim=1) / num + training_variance).sqrt()
    return Chances(difference_CN.mean(dim=1), sem_C, num - 1)


def _verdict(chances: Chances, judged: Sequence[int], num_compared: int) -> str:
    """Whether any that inherits is better than the default, or all are worse, or neither can be told."""
    p = [_p(chances, index) for index in judged]
    if num_compared * min(p) <= _RISK:
        return "inherit"
    if all(1 - each <= _RISK for each in p):
        return "start fresh"
    return "cannot tell"


def _p(chances: Chances, index: int) -> float:
    """One-sided p of a candidate's lead over the default, by Student's t."""
    from scipy import stats  # imported here alone: most processes do not need it

    mean, sem = float(chances.mean_C[index]), float(chances.sem_C[index])
    if sem == 0:
        return 0.5 if mean == 0 else float(mean < 0)
    return float(stats.t.sf(mean / sem, chances.freedom))
