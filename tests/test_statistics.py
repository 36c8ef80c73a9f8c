"""Means, standard errors, intervals and tests, against values worked out by hand."""

import math

import pytest
import torch

from paramtransfer.statistics import (
    Estimate,
    accuracy,
    balanced_accuracy,
    benjamini_hochberg,
    p_values,
    paired_gain,
    pooled,
    t_interval,
)

HITS = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
BASELINE = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1]]).bool()


def test_over_replicates() -> None:
    """Accuracies 3/4, 1/4, 1 and paired gains 1/4, 0, 1/4: spread over the root of three."""
    assert accuracy(HITS) == pytest.approx((2 / 3, (7 / 48) ** 0.5 / 3**0.5))
    assert paired_gain(HITS, BASELINE) == pytest.approx((1 / 6, (1 / 48) ** 0.5 / 3**0.5))


def test_one_replicate_uses_its_test_points() -> None:
    """Hits 1, 1, 0, 1, binomial; differences 0, 1, 0, 0 of pairs."""
    assert accuracy(HITS[:1]) == pytest.approx((0.75, 0.5 / 2))
    assert paired_gain(HITS[:1], BASELINE[:1]) == pytest.approx((0.25, 0.5 / 2))


@pytest.mark.parametrize(
    ("jobs", "mean", "sem"),
    [
        # replicates 1, 2, 6 | 3 | 4, 8: 4 +- s/root 6 with s^2 = (9 + 4 + 4 + 1 + 0 + 16)/5
        ([(3.0, math.sqrt(7 / 3), 3), (3.0, 0.1, 1), (6.0, 2.0, 2)], 4.0, math.sqrt(34 / 5 / 6)),
        # one replicate each, spread (1 + 0 + 1)/2 = 1, above that of their test points
        ([(1.0, 0.5, 1), (2.0, 0.5, 1), (3.0, 0.5, 1)], 2.0, math.sqrt(1 / 3)),
        # they happen to agree: the error of their test points, mean of 9, 16 and 25 over 3
        ([(2.0, 3.0, 1), (2.0, 4.0, 1), (2.0, 5.0, 1)], 2.0, math.sqrt(50 / 3 / 3)),
        ([(2.0, 3.0, 1)], 2.0, 3.0),
        ([(2.0, 0.3, 5)], 2.0, 0.3),
    ],
    ids=["mixed", "spread", "agreement", "one seed", "one job"],
)
def test_jobs_are_pooled(jobs: list[tuple[float, float, int]], mean: float, sem: float) -> None:
    """The same as from all replicates at once; seeds that agree leave the error of their test points."""
    assert pooled(*zip(*jobs, strict=True)) == pytest.approx((mean, sem))


def test_student_for_few_seeds() -> None:
    """t = 2 with 2 degrees of freedom: p = 1 - 2/sqrt(2 + 4) = 0.18, where a normal has 0.046; 95 % needs 4.303."""
    assert p_values([2.0, 0.0, 0.0, 2.0], [1.0, 0.0, 1.0, 1.0], [3, 3, 3, 1]) == pytest.approx(
        [1 - 2 / math.sqrt(6), 1, 1, math.erfc(math.sqrt(2))]
    )
    assert t_interval(Estimate(1.0, 1.0), 3) == pytest.approx((1 - 4.302653, 1 + 4.302653))
    assert t_interval(Estimate(1.0, 0.0), 3) == (1, 1)
    assert t_interval(Estimate(1.0, 1.0), 1) == pytest.approx((1 - 1.959964, 1 + 1.959964))


def test_pairs_by_hand() -> None:
    """Accuracies of three seeds at two alphas, paired: differences 1, 2 and 3 are 2 +- 1/root 3, t = 2 root 3."""
    gains = Estimate(2.0, 1 / math.sqrt(3))
    t = 2 * math.sqrt(3)
    assert p_values(*gains, 3).item() == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_benjamini_and_hochberg() -> None:
    """Sorted p up to the last with p <= 0.05 k/5, in any order: 0.01, 0.02 and 0.03, for 0.05 is above 0.04."""
    assert benjamini_hochberg([0.05, 0.03, 0.6, 0.01, 0.02]).tolist() == [False, True, False, True, True]


def test_classes_count_alike() -> None:
    """Three of four points of one class and neither of the other two: (3/4 + 0) / 2, binomial in each class."""
    hits, labels = torch.tensor([1, 1, 0, 1, 0, 0]).bool(), torch.tensor([0, 0, 0, 0, 1, 1])
    assert balanced_accuracy(hits, labels) == pytest.approx((3 / 8, (3 / 16 / 4) ** 0.5 / 2))
