"""The data of Definitions 3.1 and 3.2, in ambient and in reduced coordinates."""

import numpy as np
import pytest
import torch
from scipy import stats
from small_stages import accuracies, fresh, inherit, make_tasks, samples_of, train

from paramtransfer.dataset import signal_noise


@pytest.mark.parametrize("coordinates", ["ambient", "reduced"])
def test_signals_and_noise_are_orthogonal_and_of_the_right_size(coordinates: str) -> None:
    """Norms and angles are those of the definitions, whatever the coordinates."""
    tasks = make_tasks(dim=60, v1_norm=1.5, v2_norm=0.5, coordinates=coordinates)
    up, down = (samples_of(fresh(tasks, side)[0]) for side in ("upstream", "downstream"))
    for samples, v_norm in ((up, 1.5), (down, 0.5)):
        assert torch.allclose(samples.signal_RD.norm(dim=-1), torch.tensor((2.5**2 + v_norm**2) ** 0.5), atol=1e-5)
        assert (samples.noise_RND @ samples.signal_RD[..., None]).abs().max() < 1e-4
    if coordinates == "ambient":  # the two tasks' coordinates are the same ones
        assert torch.allclose((up.signal_RD * down.signal_RD).sum(-1), torch.tensor(2.5**2), atol=1e-4)


def test_patches_carry_signal_and_noise_in_random_order() -> None:
    """One patch is y s, the other the noise, and either comes first."""
    samples = samples_of(fresh(make_tasks(num1=200), "upstream", replicates=1)[0])
    first, second = samples.patches()[0].unbind(dim=1)
    signal = samples.labels_RN[0, :, None] * samples.signal_RD[0]
    in_first = (first == signal).all(-1)
    assert ((second == signal).all(-1) == ~in_first).all()
    assert torch.equal(torch.where(in_first[:, None], second, first), samples.noise_RND[0])
    assert 0.35 < in_first.double().mean() < 0.65
    assert 0.35 < (samples.labels_RN > 0).double().mean() < 0.65


@pytest.mark.parametrize(("scale", "sigma"), [("variance", 3.0), ("std", 9.0)])
def test_noise_scale_has_both_readings(scale: str, sigma: float) -> None:
    """Noise 9 is the variance or the standard deviation of a coordinate."""
    samples = samples_of(fresh(make_tasks(dim=500, num1=400, noise=9, noise_scale=scale), "upstream", replicates=1)[0])
    per_coordinate = samples.noise_RND.square().sum(-1).mean() / (500 - 2)
    assert per_coordinate.sqrt().item() == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize("coordinates", ["ambient", "reduced"])
def test_the_projection_of_an_absent_signal_is_absent(coordinates: str) -> None:
    """With |u| = 0 and |v_1| = 0 nothing is projected out: |xi|^2 has mean d, not d - 2."""
    tasks = make_tasks(dim=6, num1=4000, noise=1, u_norm=0, v1_norm=0, v2_norm=1, coordinates=coordinates)
    noise = samples_of(fresh(tasks, "upstream", replicates=1)[0]).noise_RND[0]
    assert noise.square().sum(-1).mean().item() == pytest.approx(6, abs=0.3)


def test_replicates_are_independent_and_do_not_depend_on_their_number() -> None:
    """Replicate 1 of 2 is replicate 1 of 3, and differs from replicate 0."""
    tasks = make_tasks()
    two, three = (fresh(tasks, "downstream", replicates=replicates)[0] for replicates in (2, 3))
    for a, b in zip(samples_of(two), samples_of(three), strict=True):
        assert torch.equal(a, b[:2])
    assert torch.equal(two.initial_RFD, three.initial_RFD[:2])
    assert not torch.equal(two.initial_RFD[0], two.initial_RFD[1])


@pytest.mark.parametrize("coordinates", ["ambient", "reduced"])
def test_a_stage_changes_no_later_draw(coordinates: str) -> None:
    """Vectors are kept for the next stage of their size: a training leaves them, and so do other signals."""
    signal_noise._kept_vectors.cache_clear()
    data, model = fresh(make_tasks(coordinates=coordinates), "downstream")
    before = [tensor.clone() for tensor in (*samples_of(data), data.initial_RFD)]
    train(model, data)
    train(*reversed(fresh(make_tasks(coordinates=coordinates, u_norm=0), "downstream")))
    again, _ = fresh(make_tasks(coordinates=coordinates), "downstream")
    assert signal_noise._kept_vectors.cache_info().hits == 2
    for a, b in zip(before, (*samples_of(again), again.initial_RFD), strict=True):
        assert torch.equal(a, b)


def test_baseline_does_not_depend_on_task_1_nor_upstream_on_task_2() -> None:
    """What the fingerprints leave out changes no draw."""
    base = make_tasks(dim=90)
    for side, other in (
        ("downstream", make_tasks(dim=90, num1=7, v1_norm=9.0)),
        ("upstream", make_tasks(dim=90, num2=7, v2_norm=9.0)),
    ):
        ours, theirs = (fresh(tasks, side)[0] for tasks in (base, other))  # type: ignore[arg-type]
        for a, b in zip(samples_of(ours), samples_of(theirs), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(ours.initial_RFD, theirs.initial_RFD)


@pytest.mark.parametrize(("num", "dim"), [(4, 9), (9, 4)])
def test_bartlett_factor_has_the_moments_of_gaussian_vectors(num: int, dim: int) -> None:
    """L L' has the mean and variance of the Gram matrix of standard normal vectors, and its rank."""
    from paramtransfer.dataset.reduced_coordinates import bartlett_factor

    rng = np.random.default_rng(0)
    grams = np.stack([factor @ factor.T for factor in (bartlett_factor(num, dim, rng) for _ in range(20000))])
    off = ~np.eye(num, dtype=bool)
    assert np.abs(grams.mean(0) - dim * np.eye(num)).max() < 0.15
    assert np.abs(grams.var(0)[off] - dim).max() < 0.6
    assert np.abs(np.diagonal(grams.var(0)) - 2 * dim).max() < 1.5
    assert np.linalg.matrix_rank(grams[0]) == min(num, dim)


@pytest.mark.parametrize("dim", [8, 20, 60, 200])
def test_carried_filters_keep_their_inner_products(dim: int) -> None:
    """At every d, from fewer dimensions than vectors to many more, the change of coordinates is an isometry."""
    tasks = make_tasks(dim=dim, num1=9, num2=6, filters=3, steps=20)
    upstream_data, upstream = fresh(tasks, "upstream", replicates=3)
    train(upstream, upstream_data)
    before = upstream.filters.detach().flatten(1, 2)
    after = fresh(tasks, "downstream", replicates=3)[0].carry(upstream.state_dict())["filters"].flatten(1, 2)
    assert after.shape[-1] == tasks.coordinates["downstream"].dim <= dim
    assert torch.allclose(before @ before.mT, after @ after.mT, atol=1e-4)
    assert torch.equal(before[..., :3], after[..., :3])  # along the signals


@pytest.mark.parametrize("dim", [20, 60])
def test_carried_filters_meet_task_2_as_in_ambient_coordinates(dim: int) -> None:
    """Joint moments: <w^A, xi_2> has the variance that an independent Gaussian vector gives it, |w^A|^2 sigma^2."""
    shares = []
    for seed in range(300):
        tasks = make_tasks(dim=dim, num1=9, num2=6, filters=3, u_norm=0, v1_norm=0, v2_norm=0, noise=1)
        data = tasks.data("downstream", seed=seed, replicates=1)
        upstream = fresh(tasks, "upstream", replicates=1, seed=seed)[1]
        carried = data.carry(upstream.state_dict())["filters"].flatten(1, 2)
        products = samples_of(data).noise_RND @ carried.mT
        shares.append((products.square() / carried.square().sum(-1)[:, None]).mean().item())
    assert np.mean(shares) == pytest.approx(1, abs=4 * np.std(shares) / len(shares) ** 0.5)


def test_reduced_and_ambient_coordinates_have_the_same_law_of_accuracy() -> None:
    """Two-sample tests over 200 replicates each: baseline, and downstream with most filters inherited."""
    accuracy = {}
    for coordinates in ("ambient", "reduced"):
        tasks = make_tasks(dim=120, num1=60, num2=30, filters=6, steps=100, num_test=1000, coordinates=coordinates)
        data, model = fresh(tasks, "downstream", replicates=200)
        train(model, data)
        accuracy["baseline", coordinates] = accuracies(model, data)
        data, model, *_ = inherit(tasks, alpha=0.8, replicates=200)
        train(model, data)
        accuracy["downstream", coordinates] = accuracies(model, data)
    for stage in ("baseline", "downstream"):
        pair = accuracy[stage, "ambient"], accuracy[stage, "reduced"]
        assert stats.ks_2samp(*pair).pvalue > 0.001
        assert stats.ttest_ind(*pair).pvalue > 0.001
    assert (
        stats.ttest_ind(accuracy["baseline", "reduced"], accuracy["downstream", "reduced"]).pvalue < 1e-6
    )  # has power


def test_fresh_samples_have_the_law_of_drawn_ones() -> None:
    """Accuracy on 2m-dimensional pre-activations agrees with accuracy on noise vectors drawn in R^d."""
    tasks = make_tasks(num_test=40_000, coordinates="ambient")
    data, model = fresh(tasks, "downstream", replicates=3)
    train(model, data)
    samples = samples_of(data)
    rng = torch.Generator().manual_seed(1)
    direct = []
    for r in range(3):
        noise = 2.0 * torch.randn(40_000, 40, generator=rng)
        signal = samples.signal_RD[r]
        directions = torch.linalg.svd(data._draw.directions_RSD[r], full_matrices=False)[2]
        noise = noise - noise @ directions.T @ directions
        f = [
            torch.relu(noise @ w.T).mean(-1) + torch.relu(w @ signal).mean() for w in model.filters.detach()[r]
        ]  # label +1; -1 is as likely
        g = [torch.relu(noise @ w.T).mean(-1) + torch.relu(-w @ signal).mean() for w in model.filters.detach()[r]]
        direct.append(((f[0] >= f[1]).double().mean() + (g[0] <= g[1]).double().mean()) / 2)
    assert accuracies(model, data).numpy() == pytest.approx(np.array(direct), abs=4 * (0.25 / 40_000 * 2) ** 0.5)


def test_kept_test_points_are_those_that_are_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in any order of stages, and no others than another seed's or side's."""
    tasks = make_tasks(num_test=20_000)

    def points(side: str, seed: int) -> torch.Tensor:
        return torch.cat([chunk.normals_RNF for chunk in fresh(tasks, side, seed=seed)[0].test_dataloader()], dim=1)

    asked = [("upstream", 0), ("downstream", 0), ("upstream", 0), ("downstream", 1), ("upstream", 0)]
    kept = [points(*which) for which in asked]
    monkeypatch.setattr(signal_noise, "_KEPT_NUMBERS", 0)
    assert all(torch.equal(of_all, points(*which)) for of_all, which in zip(kept, asked, strict=True))
    assert not any(torch.equal(kept[a], kept[b]) for a, b in ((0, 1), (1, 3)))


def test_cost_does_not_grow_with_the_dimension() -> None:
    """At d = 10^7 the tensors of a stage are those of d = 10^3."""
    small, large = (make_tasks(dim=dim) for dim in (10**3, 10**7))
    assert (
        samples_of(fresh(small, "upstream")[0]).noise_RND.shape
        == samples_of(fresh(large, "upstream")[0]).noise_RND.shape
    )
    data, model, *_ = inherit(large, alpha=0.5)
    train(model, data)
    assert ((accuracies(model, data) > 0.3) & (accuracies(model, data) <= 1)).all()
