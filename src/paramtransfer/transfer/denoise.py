"""How, of a matrix: its singular values less noise, or put on the singular vectors of another one.

Matrices are (..., M, D): M filters of D numbers. The noise is white, of a level that the median singular value tells.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_STEPS = 10_000  # of the integral of the Marchenko-Pastur law


@lru_cache
def marchenko_pastur_median(ratio: float) -> float:
    """The median of the law that eigenvalues of X X'/n follow, X (m, n) of unit white noise, ratio = m/n <= 1.

    With t = 1 + ratio - 2 sqrt(ratio) cos(phi), phi from 0 to pi, the law's density is 2 sin^2(phi) / (pi t) in phi.
    """
    phi = np.linspace(0, np.pi, _STEPS + 1)
    eigenvalues = 1 + ratio - 2 * np.sqrt(ratio) * np.cos(phi)
    density = np.divide(2 * np.sin(phi) ** 2, np.pi * eigenvalues, out=np.zeros_like(phi), where=eigenvalues > 0)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.interp(below[-1] / 2, below, eigenvalues))


def noise_level(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """sigma of the white noise in a matrix of some shape, from its singular values (..., S): (..., 1).

    Gavish and Donoho, "The optimal hard threshold for singular values is 4/sqrt(3)", 2014, Section III-E.
    """
    small, large = sorted(shape)
    median = values.quantile(0.5, dim=-1, keepdim=True)
    return median / math.sqrt(large * marchenko_pastur_median(small / large))


def keep_largest(values: Tensor, rank: int) -> Tensor:
    """The largest singular values, the others 0: (..., S), in descending order."""
    return torch.where(torch.arange(values.shape[-1], device=values.device) < rank, values, 0)


def keep_above_noise(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Those above sigma (sqrt(m) + sqrt(n)), where the singular values of white noise end (Marchenko and Pastur)."""
    edge = noise_level(values, shape) * (shape[0] ** 0.5 + shape[1] ** 0.5)
    return _never_none(torch.where(values > edge, values, 0), values)


def shrink(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Each brought to what makes the expected squared error of the matrix smallest.

    Gavish and Donoho, "Optimal shrinkage of singular values", 2017, Equation (7): in units of sigma sqrt(n) and with
    b = m/n, y becomes sqrt((y^2 - b - 1)^2 - 4 b) / y, and 0 where y <= 1 + sqrt(b).
    """
    small, large = sorted(shape)
    ratio, unit = small / large, noise_level(values, shape) * large**0.5
    square = (values.square() - (ratio + 1) * unit.square()).square() - 4 * ratio * unit**4
    shrunk = square.clamp(min=0).sqrt() / values
    return _never_none(torch.where(values > unit * (1 + ratio**0.5), shrunk, 0), values)


def _never_none(kept: Tensor, values: Tensor) -> Tensor:
    """Where nothing stands out, the largest as it is: filters of zeros would never learn."""
    return torch.where(kept.any(dim=-1, keepdim=True), kept, keep_largest(values, 1))


def denoise(matrix: Tensor, *, rank: int | str | None, shrinkage: str | None, width: int | None = None) -> Tensor:
    """A matrix with fewer or smaller singular values.

    Args:
        matrix: (..., M, D).
        rank: how many are kept, those of a smaller matrix all; `noise`: see `keep_above_noise`; None: all.
        shrinkage: `frobenius`: see `shrink`; None: they stay as they are.
        width: numbers of a filter, where D coordinates stand for more; None: D.
    """
    if rank is None and shrinkage is None:
        return matrix
    shape = (matrix.shape[-2], width or matrix.shape[-1])

    def change(values: Tensor) -> Tensor:
        if shrinkage is not None:
            return shrink(values, shape)
        return keep_above_noise(values, shape) if rank == "noise" else keep_largest(values, int(rank or 0))

    return _with_values(matrix, change)


def with_spectrum_of(trained: Tensor, fresh: Tensor) -> Tensor:
    """U S V' with the singular vectors of a fresh matrix and the singular values of a trained one: (..., M, D)."""
    values = _left(_wide(trained))[0]
    return _with_values(fresh, lambda _: values)


def _with_values(matrix: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A matrix with other singular values in place of its own, in descending order; those that are 0 stay so."""
    wide = _wide(matrix)
    values, vectors = _left(wide)
    factors = torch.where(values > 0, change(values) / values, 0)
    made = (vectors * factors[..., None, :]) @ (vectors.mT @ wide)
    return (made if made.shape == matrix.shape else made.mT).to(matrix)


def _wide(matrix: Tensor) -> Tensor:
    return (matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix).double()


def _left(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (..., S) and left singular vectors (..., M, S), in descending order, from M x M numbers alone.

    A decomposition of the matrix itself takes many times as long where it is as wide as those of linear layers.
    """
    squares, vectors = torch.linalg.eigh(wide @ wide.mT)
    return squares.clamp(min=0).sqrt().flip(-1), vectors.flip(-1)
