"""Means, standard errors, intervals and tests.

Hits are which of N test points each of R replicates has right, (R, N) of bool.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class Estimate(NamedTuple):
    """A mean with its standard error."""

    mean: float
    sem: float


def accuracy(hits_RN: Tensor) -> Estimate:
    """Test accuracy; standard error over replicates, binomial where there is one."""
    return _estimate(hits_RN.double())


def balanced_accuracy(hits_N: Tensor, labels_N: Tensor) -> Estimate:
    """The mean accuracy of the classes, whatever their sizes, of one replicate; standard error over its test points."""
    classes = [hits_N[labels_N == label].double() for label in set(labels_N.tolist())]
    variance = sum(hits.var(correction=0) / len(hits) for hits in classes)
    mean = torch.stack([hits.mean() for hits in classes]).mean()
    return Estimate(mean.item(), float(variance) ** 0.5 / len(classes))


def paired_gain(hits_RN: Tensor, baseline_hits_RN: Tensor) -> Estimate:
    """Accuracy above the baseline's on the same points; standard error over replicates, or over the points of one."""
    return _estimate(hits_RN.double() - baseline_hits_RN.double())


def _estimate(values_RN: Tensor) -> Estimate:
    independent = values_RN.mean(1) if len(values_RN) > 1 else values_RN[0]
    sem = independent.std() / len(independent) ** 0.5 if len(independent) > 1 else independent.new_zeros(())
    return Estimate(independent.mean().item(), sem.item())


def pooled(means_J: ArrayLike, sems_J: ArrayLike, sizes_J: ArrayLike) -> Estimate:
    """The mean over all replicates of several jobs, and its standard error, as if each replicate were at hand.

    The variance of a replicate is s^2 = (sum of n_j (x_j - x)^2 + sum of (n_j - 1) n_j sem_j^2) / (n - 1), n = sum of
    n_j: between and within jobs. A job of one replicate has the error of its test points instead, which s^2 contains
    already, for each seed is tested on points of its own. Where all jobs are such, s^2 is the sum of two components,
    that of the test points, v = mean of sem_j^2, and that of the seeds, max(s^2 - v, 0): few seeds that happen to agree
    do not make the test set larger.

    Args:
        means_J: x_j.
        sems_J: over a job's replicates, or over the test points of its only one.
        sizes_J: n_j.
    """
    means_J, sems_J, sizes_J = np.asarray(means_J), np.asarray(sems_J), np.asarray(sizes_J)
    num = int(sizes_J.sum())
    mean = float((sizes_J * means_J).sum() / num)
    if len(means_J) == 1:
        return Estimate(mean, float(sems_J[0]))
    within = (sizes_J - 1) * sizes_J * sems_J**2
    variance = (sizes_J * (means_J - mean) ** 2 + within).sum() / (num - 1)
    if (sizes_J == 1).all():
        variance = max(variance, (sems_J**2).mean())
    return Estimate(mean, float(np.sqrt(variance / num)))


def t_interval(estimate: Estimate, num: int, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds the true mean with probability `level`, by Student's t with `num` - 1 degrees of freedom.

    Args:
        estimate: a mean and its standard error.
        num: independent repetitions behind it; of one, the normal interval of its test points.
    """
    from scipy import stats  # imported here alone: most processes do not need it

    half = float(stats.t.ppf((1 + level) / 2, np.inf if num == 1 else num - 1)) * estimate.sem
    return estimate.mean - half, estimate.mean + half


def p_values(means: ArrayLike, sems: ArrayLike, nums: ArrayLike) -> NDArray[Any]:
    """Two-sided p of a mean of 0, by Student's t with `nums` - 1 degrees of freedom; of one repetition, normal."""
    from scipy import stats

    nums = np.asarray(nums)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(means) / np.asarray(sems, dtype=float)
    freedom = np.where(nums > 1, nums - 1.0, np.inf)
    values: NDArray[Any] = np.where(np.isnan(errors), 1.0, 2 * stats.t.sf(errors, freedom))
    return values


def benjamini_hochberg(p_values: ArrayLike, rate: float = 0.05) -> NDArray[np.bool_]:
    """Which of several hypotheses to reject so that at most a share `rate` of the rejected is expected to be true."""
    from scipy import stats

    rejected: NDArray[np.bool_] = stats.false_discovery_control(p_values) <= rate
    return rejected
