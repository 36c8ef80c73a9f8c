"""Plans of the networks that people bring: a zoo, heads, wrappers, shared modules, and what is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision.models import get_model, segmentation

from paramtransfer.transfer import Selection, inherit, plan_blocks, plan_filters
from paramtransfer.transfer.plan import Plan

ZOO = [
    *("torchvision resnet18", "torchvision vgg11", "torchvision squeezenet1_1", "torchvision mobilenet_v2"),
    *("torchvision shufflenet_v2_x0_5", "torchvision efficientnet_b0", "torchvision mnasnet0_5"),
    *("torchvision googlenet", "torchvision inception_v3"),
    *("resnet26", "resnet18d", "seresnet50", "res2net50_26w_4s", "resnest14d", "resnetv2_50", "nf_resnet26"),
    *("vgg11_bn", "densenet121", "convnext_atto", "mobilenetv3_small_050", "efficientnet_lite0", "regnety_002"),
    *("hrnet_w18_small", "ghostnet_050", "levit_128s", "efficientformer_l1", "inception_v4"),
]


def make(name: str, num_classes: int = 7, **options: Any) -> nn.Module:
    """A network without storage."""
    library, _, name = name.rpartition(" ")
    if library and name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False}
    with torch.device("meta"):
        if library:
            return get_model(name, num_classes=num_classes, **options)
        return timm.create_model(name, num_classes=num_classes, **options)


def sources(plan: Plan) -> dict[str, str | None]:
    return {pairing.target: pairing.upstream for pairing in plan}


@pytest.mark.parametrize("name", ZOO)
def test_a_network_inherits_itself_but_for_its_heads(name: str) -> None:
    """Everything but what is of another shape with other classes, and auxiliary heads, from its own place."""
    upstream, downstream = make(name, 11), make(name)
    theirs = upstream.state_dict()
    expected = {
        target
        for target, tensor in downstream.state_dict().items()
        if tensor.is_floating_point() and tensor.shape == theirs[target].shape and not target.lower().startswith("aux")
    }
    for unit in ("auto", "layer") if name in ("resnet26", "convnext_atto") else ("auto",):
        plan = plan_filters(upstream, downstream, unit=unit)
        assert {target for target, source in sources(plan).items() if source} == expected
        assert all(source in (None, target) for target, source in sources(plan).items())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet26", {"drop_path_rate": 0.1}),
        ("seresnet50", {"drop_path_rate": 0.1, "drop_rate": 0.2}),
        ("efficientnet_lite0", {"drop_path_rate": 0.2}),
        ("convnext_atto", {"drop_path_rate": 0.1}),
        ("resnet18", {"act_layer": "silu", "global_pool": "max"}),
    ],
)
def test_options_that_change_no_weights_change_no_plan(name: str, options: dict[str, Any]) -> None:
    """On either side."""
    plain, other = make(name), make(name, **options)
    plans = [plan_filters(*pair) for pair in ((plain, plain), (plain, other), (other, plain))]
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.parametrize(
    ("upstream", "downstream", "expected"),
    [
        ("resnet34", "resnet18", {"layer1": [0, 2], "layer2": [0, 3], "layer3": [0, 5], "layer4": [0, 2]}),
        ("resnet18", "resnet34", {"layer1": [0, 0, 1], "layer3": [0, 1, 1, 1, 1, 1]}),
        ("resnet101", "resnet50", {"layer3": [0, 4, 9, 13, 18, 22], "layer4": [0, 1, 2]}),
        ("convnext_small", "convnext_tiny", {"stages.2": [0, 3, 6, 10, 13, 16, 19, 23, 26]}),
    ],
)
def test_blocks_come_from_evenly_spaced_ones(upstream: str, downstream: str, expected: dict[str, list[int]]) -> None:
    """First and last included; whole blocks, and where there are fewer, some twice, but never a first one elsewhere."""
    found = sources(plan_filters(make(upstream), make(downstream)))
    for level, blocks in expected.items():
        prefix = f"{level}.blocks" if "stages" in level else level
        for position, block in enumerate(blocks):
            inside = {n: s for n, s in found.items() if n.startswith(f"{prefix}.{position}.") and "num_b" not in n}
            assert inside
            assert all(s == n.replace(f"{prefix}.{position}.", f"{prefix}.{block}.", 1) for n, s in inside.items())


@pytest.mark.parametrize(("upstream", "downstream"), [("resnet34", "resnet18d"), ("resnet50", "resnet50d")])
def test_pooling_on_a_shortcut_is_no_level(upstream: str, downstream: str) -> None:
    """All but the stem finds a partner."""
    plan = plan_filters(make(upstream), make(downstream))
    fresh = {name.partition(".")[0] for name, source in sources(plan).items() if source is None and "num_b" not in name}
    assert fresh <= {"conv1", "bn1", "fc"}


def test_a_network_that_ends_with_its_features_has_no_head() -> None:
    """Its last convolution is inherited."""
    for name in ("mobilenetv3_small_050", "efficientnet_lite0"):
        headless = make(name, 0)
        plan = plan_filters(make(name), headless)
        assert sources(plan)["conv_head.weight"] == "conv_head.weight"
    resnet = make("torchvision resnet18")
    resnet.fc = nn.Identity()
    assert sources(plan_filters(resnet, resnet))["layer4.1.conv2.weight"] == "layer4.1.conv2.weight"


class Lit(LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, nn.CrossEntropyLoss()


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel, Lit, lambda net: nn.Sequential(nn.DataParallel(net))])
def test_a_wrapped_network_is_the_network(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """As upstream and as downstream, for filters and for blocks."""
    for name, plan_of in (
        ("test_resnet", plan_filters),
        ("test_vit", lambda *models: plan_blocks(*models, layers=[0, 2], also=["norm"])),
    ):
        upstream, downstream = timm.create_model(name), timm.create_model(name, num_classes=2)
        plain = inherit_all(plan_of, upstream, downstream)
        assert (
            plain
            == inherit_all(plan_of, wrap(upstream), downstream)
            == inherit_all(plan_of, upstream, wrap(downstream))
        )


def inherit_all(plan_of: Callable[..., Plan], upstream: nn.Module, downstream: nn.Module) -> list[float]:
    """A sum for each tensor of the downstream's."""
    plan = plan_of(upstream, downstream)
    state, _ = inherit(plan, upstream.state_dict(), downstream.state_dict(), Selection(alpha=0.5, seed=0))
    return [tensor.double().sum().item() for tensor in state.values()]


class Twice(nn.Module):
    """One convolution under two names, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = self.first
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(self.stem(x)).relu()).mean((2, 3)))


def test_a_module_under_two_names_inherits_once() -> None:
    """Both names say the same, and the state can be loaded."""
    upstream, downstream = Twice(), Twice()
    state, _ = inherit(
        plan_filters(upstream, downstream), upstream.state_dict(), downstream.state_dict(), Selection(alpha=0.5, seed=0)
    )
    assert torch.equal(state["first.weight"], state["second.weight"])
    kept = [torch.equal(state["first.weight"][i], upstream.first.weight[i]) for i in range(8)]
    assert sum(kept) == 4
    downstream.load_state_dict(state)


def test_where_little_arrives_it_is_said() -> None:
    """Networks that share a few layers by chance; not where one is the body of the other."""
    with pytest.warns(UserWarning, match=r"only \d% of VGG's numbers could come from ResNet"):
        plan_filters(make("resnet50"), make("vgg11_bn"))
    with torch.device("meta"):
        other = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    plan = plan_filters(make("torchvision resnet50"), other)
    body = [pairing for pairing in plan if pairing.target.startswith("backbone.") and "num_b" not in pairing.target]
    assert all(pairing.target == f"backbone.{pairing.upstream}" for pairing in body)


def resnet(**changes: Any) -> nn.Module:
    return timm.create_model("test_resnet", num_classes=2, **changes)


def vit() -> nn.Module:
    return timm.create_model("test_vit")


def foreign_state(which: str) -> Any:
    model, other = resnet(), timm.create_model("test_efficientnet")
    states = {"upstream": model.state_dict(), "downstream": model.state_dict(), which: other.state_dict()}
    return inherit(plan_filters(model, model), *states.values(), Selection(alpha=1, seed=0))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Selection(alpha=50, seed=0), r"alpha=50: must be a number from 0 to 1"),
        (lambda: Selection(alpha=-1, seed=0), r"alpha=-1: must be a number from 0 to 1"),
        (lambda: Selection(alpha=0.5, seed=-1), r"seed=-1: must be a whole number"),
        (lambda: plan_filters(resnet(), resnet(), channels="consistant"), r"transfer\.channels=consistant: must be"),
        (lambda: plan_filters(resnet(), resnet(), batchnorm="rest"), r"transfer\.batchnorm=rest: must be inherit or"),
        (lambda: plan_filters(resnet(), resnet(), unit="stage"), r"transfer\.unit=stage: must be auto or block or"),
        (
            lambda: plan_filters(make("resnet26"), make("vgg11_bn"), unit="block"),
            r"transfer\.unit=block: must be auto or layer, ResNet and VGG have no blocks of one kind",
        ),
        (lambda: plan_blocks(vit(), vit(), layers=[-1]), r"transfer\.layers=-1: must be a whole number of at least 0"),
        (lambda: plan_blocks(vit(), vit(), layers=[0, 1], into=[1, 1]), r"transfer\.into=\[1, 1\]: must be as many"),
        (lambda: plan_blocks(vit(), vit(), layers=[0, 1], into=[1]), r"transfer\.into=\[1\]: must be as many"),
        (lambda: plan_filters(vit(), vit()), r"transfer=filters: VisionTransformer has blocks, not filters; use"),
        (lambda: plan_filters(resnet(), make("torchvision vit_b_16")), r"VisionTransformer has attention \(encoder"),
        (lambda: plan_filters(make("torchvision swin_t"), resnet()), r"SwinTransformer has attention \(features"),
        (lambda: foreign_state("upstream"), r"the upstream's state: must be of the model that the plan was made from"),
        (lambda: foreign_state("downstream"), r"the downstream's state: must be of the model that the plan was made"),
        (lambda: plan_filters(normed(weight_norm), Twice()), r"the weight of stem is computed from other tensors"),
        (lambda: plan_filters(Twice(), normed(spectral_norm)), r"the weight of stem is computed from other tensors"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], sentence: str) -> None:
    """One sentence, with the key, the value and what is allowed."""
    with pytest.raises(ValueError, match=sentence) as refused:
        call()
    assert "\n" not in str(refused.value)


def normed(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    made = copy.deepcopy(Twice())
    wrap(made.stem)
    return made
