"""Test errors too small to count: the Gaussian integral that a two-layer CNN's error is, by importance sampling.

A test point matters only through its label and its pre-activations on the noise patch, which are R g with g standard
normal: the error is P(margin(R g) < 0), given the filters. It is estimated with g ~ N(mu, I), each error weighted with
the ratio of densities exp(-mu.g + |mu|^2/2); mu, where errors are typical, is found by the cross-entropy method
(Rubinstein & Kroese, 2004): the mean of the tenth of points with the smallest margins, again and again, until those
are errors.

Shape letters: R replicates, N points, F filters (both signs).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from paramtransfer.dataset.signal_noise import FreshSamples
from paramtransfer.metrics import ERROR, ERROR_SAMPLING, LOG_ERROR, sem_of

_POINTS = 2**12  # drawn at once
_ROUNDS = (4, 16)  # at least, at most
_ENOUGH = 0.03  # relative standard error of a label's error at which no further round is drawn
_ELITE = 0.1
_LEVELS = 40  # more than any error above 1e-40 takes

Margins = Callable[[FreshSamples], Tensor]


class TailError(NamedTuple):
    """The error of each replicate, given its filters."""

    error_R: Tensor
    sem_R: Tensor
    """Of the sampling."""

    def metrics(self) -> dict[str, float]:
        """Mean error and mean log error over replicates, each with its standard error, and that of the sampling."""
        num, relative_R = len(self.error_R), self.sem_R / self.error_R

        def sem(values_R: Tensor, of_one: Tensor) -> float:
            return ((values_R.std() / math.sqrt(num)) if num > 1 else of_one[0]).item()

        log_R = self.error_R.log()
        values = {
            ERROR: self.error_R.mean().item(),
            sem_of(ERROR): sem(self.error_R, self.sem_R),
            LOG_ERROR: log_R.mean().item(),
            sem_of(LOG_ERROR): sem(log_R, relative_R),
            ERROR_SAMPLING: relative_R.max().item(),
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}


@torch.no_grad()
def tail_error(margins: Margins, points: FreshSamples, rngs: Sequence[np.random.Generator]) -> TailError:
    """P(margin < 0) over fresh points of both labels, of each replicate.

    Args:
        margins: of points, (R, N); negative for an error.
        points: any points of the task.
        rngs: one per replicate.
    """
    of_labels = [_of_label(label, margins, points, rngs) for label in (1.0, -1.0)]
    error_2R, variance_2R = (torch.stack(values) for values in zip(*of_labels, strict=True))
    return TailError(error_2R.mean(0), variance_2R.sum(0).sqrt() / 2)


def _of_label(
    label: float, margins: Margins, points: FreshSamples, rngs: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    """Error and variance of its estimate: (R,) each."""
    R, F = len(rngs), points.normals_RNF.shape[-1]
    mean_R1F = points.normals_RNF.new_zeros((R, 1, F))
    drawn_RNF = torch.empty((R, _POINTS, F))
    generators = [torch.Generator().manual_seed(int(rng.integers(2**63))) for rng in rngs]  # thrice as fast as NumPy's

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        """Shifted points, their margins and the logarithms of their weights."""
        for drawn_NF, generator in zip(drawn_RNF, generators, strict=True):
            drawn_NF.normal_(generator=generator)
        normals_RNF = mean_R1F + drawn_RNF.to(mean_R1F)
        shifted = points._replace(labels_RN=normals_RNF.new_full((R, _POINTS), label), normals_RNF=normals_RNF)
        log_weights_RN = (mean_R1F.square().sum(-1) / 2 - (normals_RNF @ mean_R1F.mT).squeeze(-1)).double()
        return normals_RNF, margins(shifted), log_weights_RN

    for _ in range(_LEVELS):
        normals_RNF, margins_RN, log_weights_RN = draw()
        level_R1 = margins_RN.quantile(_ELITE, dim=1, keepdim=True).clamp(min=0)
        elite_RN = torch.where(margins_RN <= level_R1, log_weights_RN, -math.inf).softmax(1).to(normals_RNF)
        mean_R1F = elite_RN[:, None] @ normals_RNF
        if not level_R1.any():
            break
    values_RN = log_weights_RN.new_empty((R, 0))
    for num_rounds in range(1, _ROUNDS[1] + 1):
        _, margins_RN, log_weights_RN = draw()
        values_RN = torch.cat([values_RN, (margins_RN < 0) * log_weights_RN.exp()], dim=1)
        error_R, variance_R = values_RN.mean(1), values_RN.var(1) / values_RN.shape[1]
        if num_rounds >= _ROUNDS[0] and (variance_R.sqrt() < _ENOUGH * error_R).all():
            break
    return error_R, variance_R
