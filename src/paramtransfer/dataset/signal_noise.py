"""The data of Definitions 3.1 and 3.2: one patch carries the signal y (u + v_k), the other Gaussian noise.

Shape letters: R replicates, N samples, P patches (2), V vectors of a stage, F filters (both signs, +1 first),
D coordinates, S signals of a task (u and v_k).
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from paramtransfer.checks import choice, number, refusal, whole
from paramtransfer.dataset.reduced_coordinates import NUM_SIGNALS, Ambient, Coordinates, Reduced
from paramtransfer.randomness import stream
from paramtransfer.stage import SIDES, Side, Stage

_OWN_SIGNAL: dict[Side, int] = {"upstream": 1, "downstream": 2}  # u is 0
_TEST_NUMBERS = 2**23  # drawn at once for testing: bounds memory, never changes a draw
_KEPT_NUMBERS = 2**26  # normals that are kept for the next stage that asks for the same


class Samples(NamedTuple):
    """Labelled samples of one task, the two patches kept apart."""

    labels_RN: Tensor
    signal_RD: Tensor  # s_k = u + v_k
    noise_RND: Tensor
    signal_first_RN: Tensor  # which of the two patches carries the signal

    def to(self, where: torch.device | torch.dtype, non_blocking: bool = False) -> Self:
        return type(self)(*(tensor.to(where, non_blocking=non_blocking) for tensor in self))

    def patches(self) -> Tensor:
        """The samples x as a network receives them: (R, N, P, D)."""
        signal_RND = self.labels_RN[..., None] * self.signal_RD[:, None]
        first_RN1 = self.signal_first_RN[..., None].bool()
        patches = (
            torch.where(first_RN1, signal_RND, self.noise_RND),
            torch.where(first_RN1, self.noise_RND, signal_RND),
        )
        return torch.stack(patches, dim=2)

    @property
    def standard_noise(self) -> Tensor:
        """What `noise_map` is applied to: (R, N, D)."""
        return self.noise_RND

    def noise_map(self, filters_RFD: Tensor) -> Tensor:
        """From noise to <w, xi>: (R, F, D)."""
        return filters_RFD


class FreshSamples(NamedTuple):
    """Fresh samples of one task, drawn through the only thing that a network sees of them: its pre-activations.

    On the noise patch these are Gaussian with covariance sigma^2 W' W'^T, W' being the filters off the task's signals.
    """

    labels_RN: Tensor
    signal_RD: Tensor
    normals_RNF: Tensor
    directions_RSD: Tensor  # unit vectors of the task's signals; zero where the signal is absent
    sigma: Tensor

    def to(self, where: torch.device | torch.dtype, non_blocking: bool = False) -> Self:
        return type(self)(*(tensor.to(where, non_blocking=non_blocking) for tensor in self))

    @property
    def standard_noise(self) -> Tensor:
        """What `noise_map` is applied to: (R, N, F)."""
        return self.normals_RNF

    def noise_map(self, filters_RFD: Tensor) -> Tensor:
        """From standard normals to <w, xi>: (R, F, F)."""
        return self.sigma * _root(_off(filters_RFD, self.directions_RSD))


class Draw(NamedTuple):
    """All that a stage draws before it trains, one entry per replicate."""

    samples: Samples
    initial_RFD: Tensor  # standard normal filters; the model scales them by its init_std
    directions_RSD: Tensor


class SignalNoise:
    """Signals u, v_1, v_2 and Gaussian noise.

    A subclass with a `standard_noise` of its own changes the noise's law, in ambient coordinates.

    Args:
        dim: d, at least 4.
        u_norm: norm of the universal signal u.
        v1_norm: norm of task 1's own signal; None derives it from `signal_norm`.
        v2_norm: norm of task 2's own signal; None derives it from `signal_norm`.
        signal_norm: ||u + v_k||, from which the norms left out are derived.
        noise_scale: whether a task's `noise` is the variance or the standard deviation of each noise coordinate.
        coordinates: `reduced` draws only what training and testing can see, at a cost that does not grow with d;
            `ambient` draws all d coordinates.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(
        self,
        *,
        dim: int,
        u_norm: float,
        v1_norm: float | None = None,
        v2_norm: float | None = None,
        signal_norm: float | None = 3.0,
        noise_scale: str = "variance",
        coordinates: str = "reduced",
    ) -> None:
        self.dim = whole("dataset.dim", dim, at_least=NUM_SIGNALS + 1)
        self.u_norm = number("dataset.u_norm", u_norm, at_least=0)
        self.v_norm: dict[Side, float] = {
            "upstream": self._own_norm("v1_norm", v1_norm, signal_norm),
            "downstream": self._own_norm("v2_norm", v2_norm, signal_norm),
        }
        self.noise_scale = choice("dataset.noise_scale", noise_scale, ("variance", "std"))
        self.coordinates = choice("dataset.coordinates", coordinates, ("ambient", "reduced"))
        self.is_gaussian = type(self).standard_noise is SignalNoise.standard_noise
        if coordinates == "reduced" and not self.is_gaussian:
            allowed = f"ambient for {type(self).__name__}: reduced coordinates exist for Gaussian noise only"
            raise refusal("dataset.coordinates", coordinates, allowed)

    def _own_norm(self, key: str, norm: float | None, signal_norm: float | None) -> float:
        """||v_k||: as given, or what u leaves of ||u + v_k||."""
        if norm is not None:
            return number(f"dataset.{key}", norm, at_least=0)
        whole_norm = number("dataset.signal_norm", signal_norm, at_least=0)
        if self.u_norm > whole_norm:
            allowed = (
                f"at most dataset.signal_norm={whole_norm:g}, from which dataset.{key} is derived where it is null"
            )
            raise refusal("dataset.u_norm", self.u_norm, allowed)
        return math.sqrt(whole_norm**2 - self.u_norm**2)

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on; the norms of its own signals alone."""
        sides = (*SIDES.values(),) if stage == "downstream" else (SIDES[stage],)
        return {
            "dim": self.dim,
            "u_norm": self.u_norm,
            **{f"v{_OWN_SIGNAL[side]}_norm": self.v_norm[side] for side in sides},
            "noise_scale": self.noise_scale,
            "coordinates": self.coordinates,
        }

    def sigma(self, noise: float) -> float:
        """The standard deviation of one noise coordinate under the chosen reading of sigma_p."""
        return noise if self.noise_scale == "std" else noise**0.5

    def standard_noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Noise in ambient coordinates before projection and scaling: (..., D)."""
        return rng.standard_normal(shape, dtype=np.float32)

    def coordinates_of(self, *, num_samples: int, num_filters: int) -> Coordinates:
        """The coordinates of a stage with that many samples, and filters of both signs."""
        num_vectors = num_samples + num_filters
        if self.coordinates == "ambient":
            return Ambient(dim=self.dim, num_vectors=num_vectors)
        return Reduced(dim=self.dim, num_vectors=num_vectors, num_filters=num_filters)

    def draw(
        self, side: Side, coordinates: Coordinates, *, num_samples: int, noise: float, seed: int, replicates: int
    ) -> Draw:
        """Training samples and standard normal filters of one side."""
        noise_RND, initial_RFD = self._vectors(side, coordinates, num_samples, seed, replicates)
        rngs = [stream("signals", seed=seed, replicate=r) for r in range(replicates)]
        frame_RSD = torch.stack([coordinates.frame(rng)[[0, _OWN_SIGNAL[side]]] for rng in rngs])
        norms_S = torch.tensor([self.u_norm, self.v_norm[side]], dtype=torch.float32)
        directions_RSD = frame_RSD * (norms_S > 0)[:, None]

        rngs = [stream(f"{side} labels", seed=seed, replicate=r) for r in range(replicates)]
        samples = Samples(
            labels_RN=torch.stack([_signs(rng, num_samples) for rng in rngs]),
            signal_RD=norms_S @ frame_RSD,
            noise_RND=_off(noise_RND, directions_RSD).mul_(self.sigma(noise)),
            signal_first_RN=torch.from_numpy(np.stack([rng.random(num_samples) < 0.5 for rng in rngs])),
        )
        return Draw(samples, initial_RFD, directions_RSD)

    def _vectors(
        self, side: Side, coordinates: Coordinates, num_samples: int, seed: int, replicates: int
    ) -> tuple[Tensor, Tensor]:
        """Noise before projection and scaling (R, N, D), and standard normal filters (R, F, D)."""
        if self.is_gaussian:
            size = replicates * coordinates.num_vectors * coordinates.dim
            draw_vectors = _kept_vectors if size <= _KEPT_NUMBERS else _fresh_vectors
            vectors_RVD = draw_vectors(f"{side} vectors", coordinates, seed, replicates)
            return vectors_RVD[:, :num_samples], vectors_RVD[:, num_samples:]
        noises, filters = [], []
        for r in range(replicates):
            rng = stream(f"{side} vectors", seed=seed, replicate=r)
            filters.append(coordinates.vectors(rng)[num_samples:])
            noises.append(torch.from_numpy(self.standard_noise((num_samples, coordinates.dim), rng)).float())
        return torch.stack(noises), torch.stack(filters)

    def test_chunk(self, replicates: int) -> int:
        """Test samples drawn at once."""
        return 2**14 if self.is_gaussian else max(1, _TEST_NUMBERS // (replicates * self.dim))

    def test_points(
        self, side: Side, draw: Draw, *, num_test: int, noise: float, seed: int
    ) -> Iterator[FreshSamples | Samples]:
        """Fresh samples of the same task, in chunks; the same for every model and solver."""
        replicates, num_filters, dim = draw.initial_RFD.shape
        rngs = [stream(f"{side} test", seed=seed, replicate=r) for r in range(replicates)]
        normals = _normals(f"{side} test", seed, (replicates, num_test, num_filters), self.test_chunk(replicates))
        label_rngs = [stream(f"{side} test labels", seed=seed, replicate=r) for r in range(replicates)]
        sigma = torch.tensor(self.sigma(noise))
        chunk = self.test_chunk(replicates)
        for start in range(0, num_test, chunk):
            num_points = min(chunk, num_test - start)
            labels_RN = torch.stack([_signs(rng, num_points) for rng in label_rngs])
            if self.is_gaussian:
                yield FreshSamples(labels_RN, draw.samples.signal_RD, next(normals), draw.directions_RSD, sigma)
            else:
                drawn = [self.standard_noise((num_points, dim), rng) for rng in rngs]
                noise_RND = sigma * _off(torch.from_numpy(np.stack(drawn)).float(), draw.directions_RSD)
                yield Samples(
                    labels_RN, draw.samples.signal_RD, noise_RND, torch.ones_like(labels_RN, dtype=torch.bool)
                )


def _fresh_vectors(name: str, coordinates: Coordinates, seed: int, replicates: int) -> Tensor:
    """All standard normal vectors of a stage, (R, V, D): one stream for each replicate.

    They do not depend on the signals: a sweep over these asks for the same ones at every stage.
    """
    return torch.stack([coordinates.vectors(stream(name, seed=seed, replicate=r)) for r in range(replicates)])


_kept_vectors = lru_cache(maxsize=2)(_fresh_vectors)  # of both sides


def _normals(name: str, seed: int, shape: tuple[int, int, int], chunk: int) -> Iterator[Tensor]:
    """Standard normals in chunks of points, (R, chunk, F): one stream for each replicate.

    They do not depend on the setting: a sweep asks for the same ones at every stage.
    """
    if chunk < shape[1] and math.prod(shape) <= _KEPT_NUMBERS:
        kept_RNF = _kept_normals(name, seed, shape)
        return (kept_RNF[:, start : start + chunk] for start in range(0, shape[1], chunk))
    return _fresh_normals(name, seed, shape, chunk)


@lru_cache(maxsize=2)  # of both sides
def _kept_normals(name: str, seed: int, shape: tuple[int, int, int]) -> Tensor:
    return next(_fresh_normals(name, seed, shape, shape[1]))


def _fresh_normals(name: str, seed: int, shape: tuple[int, int, int], chunk: int) -> Iterator[Tensor]:
    replicates, num_points, num_filters = shape
    rngs = [stream(name, seed=seed, replicate=r) for r in range(replicates)]

    def fill(r: int) -> None:
        rngs[r].standard_normal(dtype=np.float32, out=drawn[r])

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # NumPy draws outside the interpreter's lock
        for start in range(0, num_points, chunk):
            drawn = np.empty((replicates, min(chunk, num_points - start), num_filters), dtype=np.float32)
            list(threads.map(fill, range(replicates)))
            yield torch.from_numpy(drawn)


def _signs(rng: np.random.Generator, num: int) -> Tensor:
    """Uniform labels in {-1, +1}: (num,)."""
    return torch.from_numpy(2.0 * rng.integers(0, 2, num) - 1).float()


def _off(vectors_RVD: Tensor, directions_RSD: Tensor) -> Tensor:
    """Vectors less their components along orthogonal unit (or zero) vectors: (R, V, D)."""
    return torch.baddbmm(vectors_RVD, vectors_RVD @ directions_RSD.mT, directions_RSD, alpha=-1)


def _root(filters_RFD: Tensor) -> Tensor:
    """Lower triangular A (R, F, F) with A A^T = W W^T, the same for every isometric picture of the filters W.

    A breath of white noise, 1e-6 of the filters' size, keeps it defined where they are linearly dependent.
    """
    gram_RFF = filters_RFD.double() @ filters_RFD.double().mT
    breath = 1e-12 * gram_RFF.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-300
    gram_RFF.diagonal(dim1=-2, dim2=-1).add_(breath[..., None])
    root: Tensor = torch.linalg.cholesky(gram_RFF)
    return root.to(filters_RFD.dtype)
