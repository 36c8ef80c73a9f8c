"""Coordinates of R^d in which the vectors of a synthetic stage are drawn: all d of them, or only those that matter.

Training and testing the two-layer CNN see its vectors (signals, noise, filters) through inner products alone, so any
isometric picture of them serves. `Ambient` is R^d itself. `Reduced` keeps the three signal directions and the span of
the stage's own vectors: its cost does not grow with d.

Shape letters: V vectors, F filters (both signs), D coordinates.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

NUM_SIGNALS = 3  # u, v_1, v_2


class Coordinates(ABC):
    """The picture of R^d that one stage uses; equal to another that draws the same."""

    dim: int
    num_vectors: int

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    @abstractmethod
    def frame(self, rng: np.random.Generator) -> Tensor:
        """Unit vectors along u, v_1 and v_2, orthogonal: (3, D). Both stages draw them from the same stream."""

    @abstractmethod
    def vectors(self, rng: np.random.Generator) -> Tensor:
        """All vectors of the stage, standard normal in R^d and independent: (V, D)."""

    @abstractmethod
    def carry(self, upstream: "Coordinates", filters: Tensor, rng: np.random.Generator) -> Tensor:
        """The upstream's trained filters (F, D_upstream), expressed in these coordinates: (F, D)."""


class Ambient(Coordinates):
    """R^d as it is."""

    def __init__(self, *, dim: int, num_vectors: int) -> None:
        self.dim = dim
        self.num_vectors = num_vectors

    def frame(self, rng: np.random.Generator) -> Tensor:
        """Gram-Schmidt on three random vectors, as in Section 5."""
        basis: list[np.ndarray] = []
        for vector in rng.standard_normal((NUM_SIGNALS, self.dim)):
            for _ in range(2):  # the second pass removes what rounding left
                for unit in basis:
                    vector = vector - (vector @ unit) * unit
            basis.append(vector / np.linalg.norm(vector))
        return torch.from_numpy(np.stack(basis)).float()

    def vectors(self, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.standard_normal((self.num_vectors, self.dim), dtype=np.float32))

    def carry(self, upstream: Coordinates, filters: Tensor, rng: np.random.Generator) -> Tensor:
        return filters


class Reduced(Coordinates):
    """[u, v_1, v_2 | the span of the stage's vectors | spare directions for what inherited filters have outside it].

    Off the signals, V standard normal vectors of R^{d-3} are the rows of a Bartlett factor in an orthonormal basis of
    their span. Exact at every d, and never more coordinates than d.
    """

    def __init__(self, *, dim: int, num_vectors: int, num_filters: int) -> None:
        self.ambient_dim = dim - NUM_SIGNALS
        self.num_vectors = num_vectors
        self.rank = min(num_vectors, self.ambient_dim)
        self.num_spare = min(num_filters, self.ambient_dim - self.rank)
        self.dim = NUM_SIGNALS + self.rank + self.num_spare

    def frame(self, rng: np.random.Generator) -> Tensor:
        return torch.eye(NUM_SIGNALS, self.dim)

    def vectors(self, rng: np.random.Generator) -> Tensor:
        along_signals = rng.standard_normal((self.num_vectors, NUM_SIGNALS))
        in_span = bartlett_factor(self.num_vectors, self.ambient_dim, rng)
        spare = np.zeros((self.num_vectors, self.num_spare))
        return torch.from_numpy(np.hstack([along_signals, in_span, spare])).float()

    def carry(self, upstream: Coordinates, filters: Tensor, rng: np.random.Generator) -> Tensor:
        """The two spans lie in Haar position to each other.

        In the upstream's span the filters are B Q, the rows of Q orthonormal and in Haar position to this span: their
        inner products with a basis of it are a block of a Haar frame. A frame of as many vectors is G S^{-1} with
        S'S = G'G and a standard normal G: the part in this span is drawn; the rest matters through its Gram matrix
        alone, so that its Bartlett factor stands for it. B is the symmetric root of the filters' Gram matrix, which
        changes as little as they do; where they are more than the span has dimensions, it is they themselves.
        """
        assert isinstance(upstream, Reduced)
        wide = filters.double().numpy()
        along_signals, own = wide[:, :NUM_SIGNALS], wide[:, NUM_SIGNALS : NUM_SIGNALS + upstream.rank]
        left = own if upstream.rank <= len(own) else _symmetric_root(own @ own.T)
        inside = rng.standard_normal((self.rank, left.shape[1]))
        outside = bartlett_factor(left.shape[1], self.ambient_dim - self.rank, rng).T
        frame, scale = np.linalg.qr(np.vstack([inside, outside]))
        in_span = left @ (frame[: self.rank] * np.sign(np.diagonal(scale))).T
        # What lies outside this span meets the other filters only: any vectors with the same inner products will do.
        variances, axes = np.linalg.eigh(own @ own.T - in_span @ in_span.T)
        spare = (axes * np.sqrt(variances.clip(min=0)))[:, len(axes) - self.num_spare :]
        return torch.from_numpy(np.hstack([along_signals, in_span, spare])).to(filters.dtype)


def _symmetric_root(gram: np.ndarray) -> np.ndarray:
    variances, axes = np.linalg.eigh(gram)
    root: np.ndarray = (axes * np.sqrt(variances.clip(min=0))) @ axes.T
    return root


def bartlett_factor(num_vectors: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Lower triangular L, (V, min(V, dim)), with L L' distributed as the Gram matrix of V standard normals in R^dim."""
    rank = min(num_vectors, dim)
    factor = np.tril(rng.standard_normal((num_vectors, rank)), -1)
    np.fill_diagonal(factor, np.sqrt(rng.chisquare(dim - np.arange(rank))))
    return factor
