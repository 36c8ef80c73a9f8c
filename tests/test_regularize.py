"""How inherited filters are copied, each way against an oracle written another way, and the controls."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paramtransfer.errors import ConfigError
from paramtransfer.experiment.run import plan, run
from paramtransfer.model.two_layer_cnn import TwoLayerCNN
from paramtransfer.tracking.store import Store
from paramtransfer.transfer.controls import Aligned, Spectrum
from paramtransfer.transfer.denoise import denoise, marchenko_pastur_median, noise_level
from paramtransfer.transfer.rules import Filters, Nothing

TINY = [
    "replicates=2",
    "model.filters=5",
    "task.num_test=100",
    "task.curve_points=2",
    "task.upstream={num_samples: 20, noise: 4, steps: 30}",
    "task.downstream={num_samples: 8, noise: 4, steps: 20}",
    "trainer.progress=false",
]


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def two_layers(seed: int) -> TwoLayerCNN:
    return TwoLayerCNN(normals(2, 2, 6, 9, seed=seed))


class Net(nn.Module):
    """Convolutions with biases, one of them in groups and one depthwise, norms that divide by no epsilon, a head."""

    def __init__(self, seed: int, num_classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        convolutions = [(3, 8, 1), (8, 12, 2), (12, 12, 12), (12, 8, 1)]
        layers: list[nn.Module] = []
        for inputs, outputs, groups in convolutions:
            norm = nn.BatchNorm2d(outputs, eps=1e-12)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups), norm, nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(8, num_classes)
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.head(self.features(images).mean((2, 3)))
        return made


def given(rule: Any, upstream: nn.Module, downstream: nn.Module, **more: Any) -> tuple[dict[str, Tensor], Any]:
    state, report = rule(upstream, downstream, seed=0, **more)
    return state, report


def low_rank(matrix: Tensor, rank: int) -> Tensor:
    """The sum of its first singular triples."""
    u, values, vh = torch.linalg.svd(matrix)
    return sum((values[i] * torch.outer(u[:, i], vh[i]) for i in range(rank)), torch.zeros_like(matrix))


def test_with_nothing_set_filters_are_copied_as_ever() -> None:
    """Bit for bit, and no key that identified a result is lost."""
    upstream, downstream = Net(0), Net(1)
    state, report = given(Filters(alpha=0.5), upstream, downstream)
    explicit = Filters(alpha=0.5, rank=None, shrinkage=None, scale=1, perturb=0, dash=None)
    assert explicit.identity("downstream") == Filters(alpha=0.5).identity("downstream")
    assert explicit.label == "α=0.5"
    fresh, trained = downstream.state_dict(), upstream.state_dict()
    for name, mask in report.masks.items():
        if mask.dim() < 2:  # as many channels here as there: at the same places
            assert torch.equal(state[name], torch.where(mask, trained[name], fresh[name]))
    keys = {"alpha", "unit", "select", "channels", "batchnorm", "freeze_epochs", "match_steps", "rank", "dash"}
    assert keys <= explicit.identity("downstream").keys()


def test_rank_is_the_best_approximation_of_each_matrix() -> None:
    """Of each sign of each replicate, of each group of a convolution; a smaller matrix stays whole."""
    upstream = two_layers(0)
    state, _ = given(Filters(alpha=1, rank=2), upstream, two_layers(1))
    for r in range(2):
        for j in range(2):
            torch.testing.assert_close(state["filters"][r, j], low_rank(upstream.filters[r, j].detach(), 2))
    whole, _ = given(Filters(alpha=1, rank=100), upstream, two_layers(1))
    torch.testing.assert_close(whole["filters"], upstream.filters.detach())

    net = Net(0)
    state, _ = given(Filters(alpha=1, rank=2), net, Net(1))
    for layer, groups in ((0, 1), (3, 2), (6, 1), (9, 1)):
        name = f"features.{layer}.weight"
        for ours, theirs in zip(state[name].chunk(groups), net.state_dict()[name].chunk(groups), strict=True):
            torch.testing.assert_close(ours.flatten(1), low_rank(theirs.flatten(1), 2))
    assert torch.equal(state["features.1.weight"], net.state_dict()["features.1.weight"])


def test_filters_are_selected_after_the_whole_is_denoised() -> None:
    upstream = two_layers(0)
    state, report = given(Filters(alpha=0.5, rank=1), upstream, two_layers(1))
    whole, _ = given(Filters(alpha=1, rank=1), upstream, two_layers(1))
    mask = report.masks["filters"]
    assert mask.sum() == mask.numel() // 2
    assert torch.equal(state["filters"][mask], whole["filters"][mask])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_median_of_the_marchenko_pastur_law(ratio: float) -> None:
    """Against the eigenvalues of white noise."""
    noise = normals(round(1000 * ratio), 1000)
    simulated = torch.linalg.eigvalsh(noise @ noise.T / 1000).quantile(0.5)
    assert marchenko_pastur_median(ratio) == pytest.approx(float(simulated), rel=0.01)


@pytest.mark.parametrize("reduced", [False, True])
def test_what_stands_out_of_noise_is_kept(reduced: bool) -> None:
    """Three directions of it, alike in fewer coordinates; of noise alone the largest value."""
    strengths = torch.tensor([60.0, 50.0, 45.0]).double()
    left, right = (torch.linalg.qr(normals(size, 3, seed=size))[0] for size in (40, 400))
    noise = 2 * normals(40, 400)
    matrix = (left * strengths * 2) @ right.T + noise
    seen = [torch.linalg.qr(each.T)[1].T if reduced else each for each in (matrix, noise)]
    kept, of_noise = (torch.linalg.svdvals(denoise(each, rank="noise", shrinkage=None, width=400)) for each in seen)
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(kept[:3], values[:3])
    assert kept[3] < 1e-9 * kept[0]
    assert of_noise[1] < 1e-9 * of_noise[0]
    assert float(noise_level(values, (40, 400))) == pytest.approx(2, rel=0.05)


def test_shrinkage_is_what_brings_a_matrix_closest_to_the_signal() -> None:
    """The best value of a spike on its noisy singular vectors is their product with the signal; the rest is noise."""
    ratios = []
    for seed in range(20):
        left, right = (torch.linalg.qr(normals(size, 2, seed=seed))[0] for size in (150, 300))
        signal = (left * torch.tensor([60.0, 40.0])) @ right.T
        noisy = signal + normals(150, 300, seed=seed + 99)
        u, values, vh = torch.linalg.svd(noisy)
        best = torch.einsum("mi,mn,in->i", u[:, :2], signal, vh[:2])
        shrunk = torch.linalg.svdvals(denoise(noisy, rank=None, shrinkage="frobenius"))
        assert shrunk[2] < 0.1 * shrunk[0]
        assert (shrunk[:2] < values[:2]).all()
        ratios.append(shrunk[:2] / best)
    assert torch.stack(ratios).mean(0).tolist() == pytest.approx([1, 1], abs=0.03)


def test_a_scaled_network_with_norms_computes_the_same() -> None:
    """Weights and biases are a quarter, gamma and beta as they were, and the features are, too."""
    upstream, downstream = Net(0), Net(1)
    images = normals(4, 3, 8, 8)
    state, _ = given(Filters(alpha=1, scale=0.25), upstream, downstream)
    for name, tensor in upstream.state_dict().items():
        layer, _, part = name.removeprefix("features.").partition(".")
        if layer.isdigit() and part in ("weight", "bias"):
            assert torch.equal(state[name], tensor if int(layer) % 3 else 0.25 * tensor)
    downstream.load_state_dict(state)
    torch.testing.assert_close(downstream.features(images), upstream.features(images))
    plain, _ = given(Filters(alpha=1, scale=0.25), two_layers(0), two_layers(1))
    assert torch.equal(plain["filters"], 0.25 * two_layers(0).filters)


def test_shrink_and_perturb_adds_what_was_there() -> None:
    """Weights and biases of layers alone, where they are inherited alone."""
    upstream, downstream = Net(0), Net(1)
    state, report = given(Filters(alpha=0.5, scale=0.4, perturb=0.1), upstream, downstream)
    copied, _ = given(Filters(alpha=0.5), upstream, downstream)
    for name, fresh in downstream.state_dict().items():
        mask = report.masks.get(name, torch.zeros_like(fresh, dtype=torch.bool))
        layer = name.split(".")[1]
        if "running" not in name:
            mixed = copied[name] if layer.isdigit() and int(layer) % 3 else 0.4 * copied[name] + 0.1 * fresh
            torch.testing.assert_close(state[name], torch.where(mask, mixed, fresh))


def test_perturbed_along_one_direction() -> None:
    """What is added to each inherited filter of either sign is of its fresh length, along the first."""
    upstream, fresh = two_layers(0), two_layers(1)
    state, _ = given(Filters(alpha=1, scale=0.5, perturb=2, perturb_along="one"), upstream, fresh)
    for r in range(2):
        along = fresh.filters[r, 0, 0].detach()
        for j in range(2):
            for m in range(6):
                added = 2 * fresh.filters[r, j, m].detach().norm() * along / along.norm()
                torch.testing.assert_close(state["filters"][r, j, m], 0.5 * upstream.filters[r, j, m].detach() + added)
    with pytest.raises(ValueError, match=r"^transfer\.perturb_along=one: must be own for Net"):
        given(Filters(alpha=1, perturb=1, perturb_along="one"), Net(0), Net(1))


def test_dash_of_the_two_layer_cnn() -> None:
    """One filter at a time, its gradient by autograd, with what is inherited in place."""
    x, labels = normals(2, 30, 2, 9), normals(2, 30, seed=3).sign()
    downstream = two_layers(1)
    copied, report = given(Filters(alpha=0.5), two_layers(0), downstream)
    state, _ = given(Filters(alpha=0.5, dash=0.05), two_layers(0), downstream, target=lambda device: [(x, labels)])
    factors = []
    for r in range(2):
        filters = copied["filters"][r].clone().requires_grad_()
        outputs = torch.relu(torch.einsum("npd,jmd->npjm", x[r], filters)).mean(-1).sum(1)
        loss = torch.log1p(torch.exp(-labels[r] * (outputs[:, 0] - outputs[:, 1]))).mean()
        (gradient,) = torch.autograd.grad(loss, filters)
        for j in range(2):
            for m in range(6):
                w, g = filters[j, m].detach(), -gradient[j, m]
                inherited = bool(report.masks["filters"][r, j, m].all())
                factors.append(max(0.05, float(w @ g / (w.norm() * g.norm()))) if inherited else 1.0)
                torch.testing.assert_close(state["filters"][r, j, m], factors[-1] * w)
    assert {0.05, 1.0} < set(factors)  # and some between
    assert torch.equal(downstream.filters, two_layers(1).filters)


def test_dash_of_a_convolutional_network() -> None:
    """Each kernel between two channels, each bias; over two batches, normalized by themselves."""
    batches = [(normals(6, 3, 8, 8, seed=seed), torch.arange(6) % 3) for seed in (0, 1)]
    downstream = Net(1)
    copied, report = given(Filters(alpha=0.5), Net(0), downstream)
    state, _ = given(Filters(alpha=0.5, dash=0.1), Net(0), downstream, target=lambda device: batches)
    made = copy.deepcopy(downstream)
    made.load_state_dict(copied)
    made.train()
    torch.autograd.backward(sum(nn.functional.cross_entropy(made(x), labels) for x, labels in batches) / 2)
    kernels = 0
    for name, parameter in made.named_parameters():
        expected, mask = copied[name].clone(), report.masks.get(name)
        if mask is not None and name.endswith("weight") and parameter.dim() == 4:
            assert parameter.grad is not None
            for o in range(len(expected)):
                for i in range(expected.shape[1]):
                    w, g = copied[name][o, i].flatten(), -parameter.grad[o, i].flatten()
                    if mask[o, i].all():
                        kernels += 1
                        expected[o, i] *= max(0.1, float(w @ g / (w.norm() * g.norm())))
        if not name.endswith("bias"):
            torch.testing.assert_close(state[name], expected)
    assert kernels > 50
    assert torch.equal(state["features.1.running_mean"], copied["features.1.running_mean"])


def test_dash_of_a_bias() -> None:
    """As a whole, where no norm takes its gradient away."""
    batch = (normals(6, 3, 8, 8), torch.arange(6) % 3)
    torch.manual_seed(0)
    plain = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    upstream = nn.Sequential(*plain).double()
    bias = upstream.get_parameter("0.bias")
    loss = nn.functional.cross_entropy(upstream(batch[0]), batch[1])
    bias.data = -10 * torch.autograd.grad(loss, bias)[0]  # so that it points about where the gradient would have it
    state, _ = given(Filters(alpha=1, dash=0), upstream, upstream, target=lambda device: [batch])
    torch.autograd.backward(nn.functional.cross_entropy(upstream(batch[0]), batch[1]))
    assert bias.grad is not None
    w, g = bias.detach(), -bias.grad
    cosine = float(w @ g / (w.norm() * g.norm()))
    assert 0.1 < cosine < 0.99
    torch.testing.assert_close(state["0.bias"], cosine * w)


def test_spectrum_takes_singular_values_alone() -> None:
    """On the fresh slice's own singular vectors; of all else nothing, and of alpha = 0 nothing at all."""
    upstream, downstream = Net(0), Net(1)
    state, report = given(Spectrum(alpha=1), upstream, downstream)
    for name, fresh in downstream.state_dict().items():
        if name in report.masks:
            theirs, ours = upstream.state_dict()[name].flatten(1), state[name].flatten(1)
            u, _, vh = torch.linalg.svd(fresh.flatten(1), full_matrices=False)
            torch.testing.assert_close(u.T @ ours @ vh.T, torch.diag(torch.linalg.svdvals(theirs)))
        else:
            assert torch.equal(state[name], fresh)
    assert set(report.masks) == {f"features.{layer}.weight" for layer in (0, 3, 6, 9)}
    none, _ = given(Spectrum(alpha=0), upstream, downstream)
    assert all(torch.equal(none[name], fresh) for name, fresh in downstream.state_dict().items())
    assert Spectrum(alpha=1, rank=1).label == "α=1 spectrum rank=1"


@pytest.mark.parametrize("signs", ["apart", "together"])
def test_aligned_filters_share_a_direction(signs: str) -> None:
    """Of their own lengths, along the first filter; nothing is inherited."""
    fresh = two_layers(1)
    state, report = given(Aligned(signs=signs), fresh, fresh)
    assert report.masks == {}
    for r in range(2):
        for j in range(2):
            first = fresh.filters[r, j if signs == "apart" else 0, 0].detach()
            for m in range(6):
                length = fresh.filters[r, j, m].norm().detach()
                torch.testing.assert_close(state["filters"][r, j, m], length * first / first.norm())
    half, _ = given(Aligned(signs=signs, scale=0.5), fresh, fresh)
    torch.testing.assert_close(half["filters"], 0.5 * state["filters"])
    width, samples = fresh.filters.shape[-1], torch.zeros(2, 10, 2, 1)
    for bar, expected in ((width / 10 - 0.01, half), (width / 10, {"filters": fresh.filters.detach()})):
        rule = Aligned(signs=signs, scale=0.5, dims_per_sample=bar)
        found, _ = rule(fresh, fresh, seed=0, target=lambda device: [(samples, samples[..., 0, 0])])
        torch.testing.assert_close(found["filters"], expected["filters"])
    with pytest.raises(ValueError, match=r"^transfer=aligned: must be spectrum for Net"):
        Aligned()(Net(0), Net(0), seed=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": 0}, r"transfer\.rank=0: must be a whole number of at least 1"),
        ({"rank": "two"}, r"transfer\.rank=two: must be null, noise or a whole number of at least 1"),
        ({"rank": 1, "shrinkage": "frobenius"}, r"transfer\.shrinkage=frobenius: must be null with transfer\.rank=1"),
        ({"shrinkage": "nuclear"}, r"transfer\.shrinkage=nuclear: must be null or frobenius"),
        ({"scale": 0}, r"transfer\.scale=0: must be a finite number above 0"),
        ({"perturb": -0.1}, r"transfer\.perturb=-0\.1: must be a finite number of at least 0"),
        ({"perturb_along": "one"}, r"transfer\.perturb_along=one: must be own without transfer\.perturb"),
        ({"dash": 1.5}, r"transfer\.dash=1\.5: must be a number from 0 to 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], sentence: str, compose_job: Any) -> None:
    """One sentence, before anything is trained."""
    overrides = [f"transfer.{key}={value}" for key, value in settings.items()]
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        compose_job(*overrides)


def test_a_job_whose_rule_looks_at_the_targets_samples(tmp_path: Path, compose_job: Any, monkeypatch: Any) -> None:
    """In coordinates that stand for more, too: noise is told by the dimension that the filters have."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    job = compose_job(*TINY, "dataset.dim=500", "alpha=1", "transfer.rank=noise", "transfer.dash=0.1")
    model = job.model.build(job.tasks.data("downstream", seed=0, replicates=2))
    assert (model.filters.shape[-1] < 100, model.filter_widths) == (True, {"filters": 500})
    assert plan(job, lambda run_id: {}).masks["filters"].all()
    done = run(job, Store(tmp_path), tags={})
    assert Store(tmp_path).run(done["downstream"].run_id).name.startswith("downstream α=1 rank=noise dash=0.1")


def test_what_looks_at_images_is_not_for_the_two_layer_cnn() -> None:
    with pytest.raises(ValueError, match=r"^transfer\.select=activation: must be random for TwoLayerCNN"):
        given(Filters(alpha=1, select="activation"), two_layers(0), two_layers(1), target=lambda device: [])
    assert not Nothing().needs_target
