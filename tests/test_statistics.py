"""Means and standard errors."""

import pytest
import torch

from paramtransfer.statistics import accuracy, paired_gain

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
