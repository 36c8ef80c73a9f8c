"""Errors too small to count, against closed forms, quadrature and counting."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from small_stages import accuracies, inherit, make_tasks, train
from torch import Tensor

from paramtransfer.dataset.signal_noise import FreshSamples, SignalNoise
from paramtransfer.model.two_layer_cnn import TwoLayerCNN
from paramtransfer.training.full_batch import Margins, margins
from paramtransfer.training.tail_error import TailError, tail_error

SIGNAL, SIGMA = 2.0, 0.5


def integral(filters_JMD: Tensor) -> TailError:
    """The error of a network on task with signal (2, 0, ...) and noise of standard deviation 1/2 off it."""
    J, M, D = filters_JMD.shape
    signal_RD = torch.tensor([[SIGNAL] + [0.0] * (D - 1)])
    points = FreshSamples(
        labels_RN=torch.ones(1, 1),
        signal_RD=signal_RD,
        normals_RNF=torch.zeros(1, 1, J * M),
        directions_RSD=signal_RD[:, None] / SIGNAL,
        sigma=torch.tensor(SIGMA),
    )
    model = TwoLayerCNN(filters_JMD[None])
    return tail_error(Margins(model, points), points, [np.random.default_rng(0)])


@pytest.mark.parametrize("deviations", [0.5, 3.0, 5.0, 7.0])
def test_opposite_filters_have_a_closed_form(deviations: float) -> None:
    """w_+ = -w_-/2 on the noise: wrong for label 1 where <w_-, xi> exceeds the margin on the signal; 1e-12 at 7.

    For label -1 the same holds of w_+, whose noise is half as large.
    """
    scales = torch.tensor([0.5, 1.0, 1.5])
    filters = torch.zeros(2, 3, 4)
    filters[0, :, 1], filters[1, :, 1] = -scales / 2, scales
    filters[0, :, 0] = deviations * SIGMA / SIGNAL  # on the signal: mean of 3 equal margins, deviations standard ones
    filters[1, :, 0] = -deviations * SIGMA / SIGNAL
    estimate = integral(filters)
    expected = (stats.norm.sf(deviations) + stats.norm.sf(2 * deviations)) / 2
    assert estimate.error_R.item() == pytest.approx(expected, abs=4 * estimate.sem_R.item())
    assert estimate.sem_R.item() < 0.03 * expected


def test_independent_filters_against_quadrature() -> None:
    """One filter of each sign, orthogonal: P(z_- - relu(z_+) > a) by a sum over z_+, at 1e-10."""
    deviations = 6.2
    filters = torch.zeros(2, 1, 3)
    filters[0, 0, 1], filters[1, 0, 2] = 1.0, 1.0
    filters[0, 0, 0], filters[1, 0, 0] = deviations * SIGMA / SIGNAL, -deviations * SIGMA / SIGNAL
    estimate = integral(filters)
    above, _ = integrate.quad(lambda x: stats.norm.pdf(x) * stats.norm.sf(deviations + x), 0, 10, epsabs=0)
    expected = stats.norm.sf(deviations) / 2 + above  # the same for both labels
    assert 1e-10 < expected < 3e-10
    assert estimate.error_R.item() == pytest.approx(expected, abs=4 * estimate.sem_R.item())
    assert estimate.sem_R.item() < 0.03 * expected


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_counting_agrees_where_it_can(shift: float) -> None:
    """Twenty random filters of each sign with correlated noise: errors of 0.4 and 0.004 among 200,000 points."""
    generator = torch.Generator().manual_seed(3)
    filters = torch.randn(2, 20, 30, generator=generator)
    filters[:, :, 1] += torch.tensor([[3.0], [-3.0]])
    filters[:, :, 0] = shift * torch.tensor([[1.0], [-1.0]])
    estimate = integral(filters)
    rng = np.random.default_rng(1)
    wrong = 0
    for label in (1, -1):
        noise = SIGMA * rng.standard_normal((100_000, 30)) * (np.arange(30) > 0)
        f = sum(
            sign * np.maximum(patch @ w.numpy().T, 0).mean(-1)
            for sign, w in zip((1, -1), filters.double(), strict=True)
            for patch in (noise, label * SIGNAL * np.eye(30)[:1])
        )
        wrong += int((label * f < 0).sum())
    counted, sem = wrong / 2e5, math.sqrt(wrong) / 2e5
    assert wrong > 300
    assert estimate.error_R.item() == pytest.approx(counted, abs=4 * math.hypot(sem, estimate.sem_R.item()))


def test_replicates_of_a_trained_job_agree_with_counting() -> None:
    """Each replicate's own error, after transfer, on 200,000 points each."""
    data, model, *_ = inherit(make_tasks(num_test=200_000), 0.5)
    train(model, data)
    points = next(iter(data.test_dataloader()))
    estimate = tail_error(Margins(model, points), points, data.streams("tail"))
    counted = 1 - accuracies(model, data)
    assert (counted[0] - counted[1]).abs() > 0.01
    assert estimate.error_R.numpy() == pytest.approx(counted.numpy(), abs=0.005)


def test_splitting_agrees_on_a_trained_network() -> None:
    """Forty trained filters with an error of 6e-10: level by level, with a Markov chain and no shifted Gaussian."""
    law = {"u_norm": 9.0, "signal_norm": 9.0, "noise_scale": "std"}
    tasks = make_tasks(dim=10_000, filters=20, init_std=5e-4, lr=5e-3, num1=100, num2=10, noise=1, steps=300, **law)
    data, model, *_ = inherit(tasks, 0.5, replicates=1)
    train(model, data)
    points = next(iter(data.test_dataloader()))
    estimate = tail_error(Margins(model, points), points, data.streams("tail"))

    rng = np.random.default_rng(0)
    by_splitting = (_split(model, points, 1.0, rng) + _split(model, points, -1.0, rng)) / 2
    assert 1e-10 < by_splitting < 1e-8  # told within a quarter
    assert estimate.error_R.item() == pytest.approx(by_splitting, rel=0.5)


def _split(model: TwoLayerCNN, points: FreshSamples, label: float, rng: np.random.Generator, num: int = 4000) -> float:
    """P(margin < 0) as a product of shares; in between, steps that leave the normal law below a level as it is."""

    @torch.no_grad()
    def margin(normals_NF: np.ndarray) -> np.ndarray:
        normals = torch.from_numpy(normals_NF.astype(np.float32))[None]
        return margins(model, points._replace(labels_RN=torch.full((1, num), label), normals_RNF=normals))[0].numpy()

    g, probability, size = rng.standard_normal((num, points.normals_RNF.shape[-1])), 1.0, 0.4
    while True:
        now = margin(g)
        level = max(np.quantile(now, 0.1), 0.0)
        probability *= (now <= level).mean()
        if level == 0:
            return probability
        g = g[rng.choice(np.flatnonzero(now <= level), num)]
        for _ in range(25):
            proposed = np.sqrt(1 - size**2) * g + size * rng.standard_normal(g.shape)
            kept = margin(proposed) <= level
            g[kept] = proposed[kept]
            size = float(np.clip(size * np.exp(kept.mean() - 0.3), 0.02, 1))


def test_other_noise_is_refused() -> None:
    """Before anything is drawn."""

    class Laplace(SignalNoise):
        def standard_noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
            return rng.laplace(size=shape)

    with pytest.raises(ValueError, match=r"^task\.tail_error=true: must be false for Laplace: .* Gaussian noise only"):
        make_tasks(dataset=Laplace, coordinates="ambient", tail_error=True)


def test_metrics_over_replicates_by_hand() -> None:
    """Errors 0.1 and 0.4: mean 0.25 +- 0.15, mean logarithm log 0.2 +- log 2; one replicate: the sampling's own."""
    two = TailError(torch.tensor([0.1, 0.4]), torch.tensor([0.001, 0.008])).metrics()
    assert two == pytest.approx(
        {
            "test/error_tail": 0.25,
            "test/error_tail_sem": 0.15,
            "test/log_error_tail": math.log(0.2),
            "test/log_error_tail_sem": math.log(2),
            "test/error_tail_sampling": 0.02,
        }
    )
    one = TailError(torch.tensor([0.4]), torch.tensor([0.008])).metrics()
    assert (one["test/error_tail_sem"], one["test/log_error_tail_sem"]) == pytest.approx((0.008, 0.02))
