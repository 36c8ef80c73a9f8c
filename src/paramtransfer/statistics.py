"""Means and standard errors from hits: which of N test points each of R replicates has right, (R, N) of bool."""

from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A mean with its standard error."""

    mean: float
    sem: float


def accuracy(hits_RN: Tensor) -> Estimate:
    """Test accuracy; standard error over replicates, binomial where there is one."""
    return _estimate(hits_RN.double())


def paired_gain(hits_RN: Tensor, baseline_hits_RN: Tensor) -> Estimate:
    """Accuracy above the baseline's on the same points; standard error over replicates, or over the points of one."""
    return _estimate(hits_RN.double() - baseline_hits_RN.double())


def _estimate(values_RN: Tensor) -> Estimate:
    independent = values_RN.mean(1) if len(values_RN) > 1 else values_RN[0]
    sem = independent.std() / len(independent) ** 0.5 if len(independent) > 1 else independent.new_zeros(())
    return Estimate(independent.mean().item(), sem.item())
