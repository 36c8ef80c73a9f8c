"""Which channels are inherited: the rules' oracles, and functions that survive the way into a smaller network."""

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import EfficientNet, ResNet
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.resnet import BasicBlock
from torch import nn
from torchvision.models.vgg import make_layers

from paramtransfer.transfer.plan import plan_filters
from paramtransfer.transfer.rules import Filters
from paramtransfer.transfer.scores import RULES, score_channels

BATCH = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(24) % 3
HEADS = ("fc.", "classifier.", "3.")


def images(device: torch.device) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    return [(BATCH[:12], LABELS[:12]), (BATCH[12:], LABELS[12:])]


def live(small: int, large: int) -> torch.Tensor:
    """Where the channels of a small network lie in a large one: one random set for each pair of sizes."""
    return torch.from_numpy(np.sort(np.random.default_rng([small, large]).permutation(large)[:small]))


def settle(model: nn.Module) -> nn.Module:
    """Weights, statistics and scales as if trained."""
    torch.manual_seed(5)
    for name, tensor in model.state_dict().items():
        if "running_var" in name or ("weight" in name and tensor.dim() == 1):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.dim() == 1:
            nn.init.normal_(tensor, std=0.1)
    return model.eval()


def pad(small: nn.Module, large: nn.Module, place: Callable[[str], str]) -> nn.Module:
    """The large network as the small one with dead channels, and whatever else is in it changing nothing.

    Args:
        place: the name in the large network of each of the small one's tensors.
    """
    state = large.state_dict()
    for name, tensor in state.items():
        if "running_var" not in name and tensor.is_floating_point():
            tensor.zero_()
    for name, tensor in small.state_dict().items():
        padded = state[place(name)]
        if tensor.dim() and not name.startswith(HEADS):
            index = [live(a, b) if a != b else torch.arange(a) for a, b in zip(tensor.shape, padded.shape, strict=True)]
            padded[torch.meshgrid(*index, indexing="ij")] = tensor
    large.load_state_dict(state)
    return large.eval()


def resnets() -> tuple[nn.Module, nn.Module]:
    """Two blocks a level, and three, of which the middle one changes nothing."""

    def make(depths: list[int], widths: tuple[int, ...]) -> ResNet:
        return ResNet(BasicBlock, depths, 3, stem_type="deep", stem_width=widths[0] // 2, channels=widths)

    small, large = settle(make([2, 1, 2, 1], (8, 12, 16, 20))), make([3, 1, 3, 1], (12, 15, 21, 26))
    return small, pad(small, large, lambda name: name.replace("layer1.1", "layer1.2").replace("layer3.1", "layer3.2"))


def plain(settings: list[Any], norms: bool = True) -> nn.Sequential:
    """VGG's convolutions and poolings, and one linear layer."""
    layers = make_layers(settings, batch_norm=norms)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(settings[-2], 3))


def vggs() -> tuple[nn.Module, nn.Module]:
    """Two convolutions between poolings, and three, of which the middle one passes its input on."""

    small, large = settle(plain([6, 6, "M", 10, 10, "M"])), plain([9, 9, 9, "M", 14, 14, 14, "M"])
    places = dict(zip(map(str, (0, 1, 3, 4, 7, 8, 10, 11)), map(str, (0, 1, 6, 7, 10, 11, 16, 17)), strict=True))
    padded = pad(small, large, lambda name: re.sub(r"(?<=^0\.)\d+", lambda found: places[found[0]], name))
    for position in (3, 13):
        convolution, norm = padded[0][position], padded[0][position + 1]
        nn.init.dirac_(convolution.weight)
        dead = convolution.weight.new_ones(len(convolution.weight), dtype=torch.bool)
        dead[live({9: 6, 14: 10}[len(dead)], len(dead))] = False
        with torch.no_grad():
            convolution.weight[dead] = 0
            norm.weight.copy_((~dead).float())
            norm.running_var.fill_(1 - norm.eps)
    return small, padded


def depthwise() -> tuple[nn.Module, nn.Module]:
    """Inverted residuals with depthwise convolutions; one more in the large network changes nothing."""

    def make(plan: list[list[str]], stem: int, width: int) -> nn.Module:
        return EfficientNet(
            decode_arch_def(plan), num_classes=3, stem_size=stem, num_features=width, round_chs_fn=lambda n: n
        )

    small = make([["ds_r1_k3_s1_c6"], ["ir_r2_k3_s2_e3_c10"], ["ir_r2_k5_s2_e3_c14"]], 8, 20)
    large = make([["ds_r1_k3_s1_c9"], ["ir_r3_k3_s2_e3_c13"], ["ir_r2_k5_s2_e3_c17"]], 11, 24)
    return settle(small), pad(small, large, lambda name: name.replace("blocks.1.1", "blocks.1.2"))


@pytest.mark.parametrize("make", [resnets, vggs, depthwise])
@pytest.mark.parametrize("select", sorted(RULES))
def test_a_function_survives_the_way_into_a_smaller_network(
    make: Callable[[], tuple[nn.Module, nn.Module]], select: str
) -> None:
    """alpha = 1: dead channels and blocks that change nothing are left behind; the logits are the small network's."""
    torch.manual_seed(0)  # no channel of the small network is constant on all images
    small, large = make()
    fresh = copy.deepcopy(small)
    for tensor in fresh.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(1)
    head = {name: tensor for name, tensor in small.state_dict().items() if name.startswith(HEADS)}
    state, report = Filters(alpha=1, select=select)(large, fresh, seed=0, target=images)
    left = {row.target for row in report.rows if row.status == "fresh" and "num_b" not in row.target}
    assert left == head.keys()
    fresh.load_state_dict(state | head)
    with torch.no_grad():
        expected, found = small(BATCH), fresh.eval()(BATCH)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("select", sorted(RULES))
def test_a_dead_channel_is_never_chosen(select: str) -> None:
    """Half of the filters, where a third is dead in all that writes to a stream."""
    upstream = settle(timm.create_model("test_resnet", num_classes=5))
    dead = torch.arange(0, 24, 3)
    with torch.no_grad():
        convolution, norm = upstream.conv1[3], upstream.conv1[4]
        dead = dead[dead < len(convolution.weight)]
        for tensor in (convolution.weight, norm.weight, norm.bias):
            tensor[dead] = 0
    _, report = Filters(alpha=0.5, select=select)(upstream, copy.deepcopy(upstream), seed=0, target=images)
    mask = report.masks["conv1.3.weight"].flatten(1).any(1)
    assert mask.sum() == len(mask) // 2
    assert not mask[dead].any()


@pytest.mark.parametrize("select", sorted(RULES))
def test_a_permuted_upstream_gives_the_permuted_choice(select: str) -> None:
    """The channels inside a block, which nothing else reads."""
    upstream = settle(timm.create_model("test_resnet", num_classes=5))
    permuted, order = copy.deepcopy(upstream), torch.randperm(len(upstream.layer1[0].conv1.weight))
    inner, outer = permuted.layer1[0], permuted.layer1[0].conv2
    with torch.no_grad():
        for tensor in (inner.conv1.weight, *inner.bn1.state_dict().values()):
            if tensor.dim():
                tensor.copy_(tensor[order])
        outer.weight.copy_(outer.weight[:, order])
    masks = [
        Filters(alpha=0.5, select=select)(model, copy.deepcopy(model), seed=0, target=images)[1]
        .masks["layer1.0.conv1.weight"]
        .flatten(1)
        .any(1)
        for model in (upstream, permuted)
    ]
    assert torch.equal(masks[1], masks[0][order])
    assert 0 < masks[0].sum() < len(order)


def test_scores_are_what_they_say() -> None:
    """By hand, for the first convolution and its norm; the F statistic as scipy has it."""
    stats = pytest.importorskip("scipy.stats")
    upstream = settle(timm.create_model("test_resnet", num_classes=5))
    plan = plan_filters(upstream, upstream, unit="layer")
    with torch.no_grad():
        outputs = upstream.conv1[1](upstream.conv1[0](BATCH))
    by_class = [outputs.mean((2, 3))[label == LABELS].numpy() for label in range(3)]
    expected = {
        "norm": upstream.conv1[0].weight.flatten(1).norm(dim=1),
        "batchnorm": upstream.conv1[1].weight.abs(),
        "activation": outputs.abs().mean((0, 2, 3)),
        "aligned": torch.from_numpy(stats.f_oneway(*by_class).statistic),
    }
    for select, score in expected.items():
        found = score_channels(select, plan, upstream, images(torch.device("cpu")))["conv1.0:out", len(score)]
        torch.testing.assert_close(found.float(), score.detach().float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("select", "sentence"),
    [
        ("activation", r"transfer\.select=activation: must be random, norm or batchnorm without images"),
        ("batchnorm", r"transfer\.select=batchnorm: Sequential has no batch norms; use norm"),
    ],
)
def test_rules_that_lack_what_they_need_are_refused(select: str, sentence: str) -> None:
    """One sentence."""
    network = plain([4, "M", 4, "M"], norms=False)
    with pytest.raises(ValueError, match=sentence):
        Filters(alpha=0.5, select=select)(network, network, seed=0)
