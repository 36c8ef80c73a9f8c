"""Plans, selection and copying: filters of convolutional networks and of the two-layer CNN."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import get_model

from paramtransfer.model.networks import make_network
from paramtransfer.model.two_layer_cnn import TwoLayerCNN
from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.callback import ParameterTransfer
from paramtransfer.transfer.plan import Plan, plan_filters
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.rules import Filters, Nothing
from paramtransfer.transfer.select import Selection, num_inherited

PAIRS = [
    ("resnet34", "resnet18"),
    ("resnet101", "resnet34"),
    ("resnet50", "resnet34"),
    ("vgg16_bn", "vgg11_bn"),
    ("mobilenet_v2", "mobilenet_v2"),
    ("resnet18", "vgg11_bn"),
]


def network(name: str, num_classes: int = 3) -> nn.Module:
    """A network with random statistics, as if trained."""
    made = make_network(name, num_classes=num_classes, stem="imagenet", head="small").eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return made


def transferred(plan: Plan, upstream: nn.Module, downstream: nn.Module, **selection: Any) -> tuple[nn.Module, Report]:
    state, report = inherit(plan, upstream.state_dict(), downstream.state_dict(), Selection(seed=0, **selection))
    made = copy.deepcopy(downstream)
    made.load_state_dict(state)
    return made, report


def features(model: nn.Module, seed: int = 0) -> torch.Tensor:
    """What the head is given."""
    seen = []
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("alpha", "filters", "expected"),
    [(0, 40, 0), (1, 40, 40), (0.5, 5, 2), (0.29, 10, 2), (0.29, 100, 29), (0.5, 1, 0)],
)
def test_filters_up_to_alpha_m_are_inherited(alpha: float, filters: int, expected: int) -> None:
    """r <= alpha m, whatever floating point makes of the product."""
    assert num_inherited(alpha, filters) == expected


@pytest.mark.parametrize("channels", ["independent", "consistent"])
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_everything_inherited_by_an_equal_network_gives_its_features(name: str, channels: str) -> None:
    """alpha = 1, eval mode: only the head is fresh."""
    upstream, downstream = network(name), network(name, num_classes=5)
    made, report = transferred(plan_filters(upstream, downstream, channels=channels), upstream, downstream, alpha=1.0)
    torch.testing.assert_close(features(made), features(upstream), atol=1e-5, rtol=1e-5)
    fresh = {row.target for row in report.rows if row.status == "fresh" and "num_batches" not in row.target}
    assert {name.partition(".")[0] for name in fresh} <= {"fc", "classifier"}
    assert not torch.equal(features(made), features(downstream))


@pytest.mark.parametrize(("upstream_name", "downstream_name"), PAIRS)
def test_nothing_inherited_is_a_fresh_model(upstream_name: str, downstream_name: str) -> None:
    """alpha = 0, bit for bit, and the plan left both models alone."""
    upstream, downstream = network(upstream_name), network(downstream_name)
    before = copy.deepcopy(downstream.state_dict())
    made, report = transferred(plan_filters(upstream, downstream), upstream, downstream, alpha=0.0)
    for state in (made.state_dict(), downstream.state_dict()):
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert report.masks == {}


@pytest.mark.parametrize(("upstream_name", "downstream_name"), PAIRS[::2])
@pytest.mark.parametrize("channels", ["independent", "consistent"])
def test_a_plain_loop_copies_the_same(upstream_name: str, downstream_name: str, channels: str) -> None:
    """One slice at a time, from what the selection says; the account and its masks add up to the model's size."""
    upstream, downstream = network(upstream_name), network(downstream_name)
    plan = plan_filters(upstream, downstream, channels=channels)
    made, report = transferred(plan, upstream, downstream, alpha=0.05)
    theirs, ours, result = upstream.state_dict(), downstream.state_dict(), made.state_dict()
    select = Selection(alpha=0.05, seed=0)
    for pairing, row in zip(plan, report.rows, strict=True):
        expected, count = ours[pairing.target].clone(), 0
        if pairing.upstream is not None:
            source = theirs[pairing.upstream]
            sizes = list(zip(pairing.axes, expected.shape, source.shape, strict=True))
            outs = list(zip(*(index.tolist() for index in select(*sizes[0])), strict=True))
            assert len(outs) == min(num_inherited(0.05, expected.shape[0]), source.shape[0])
            if expected.dim() == 1:
                for here, there in outs:
                    expected[here] = source[there]
                    count += 1
            else:
                ins = list(zip(*(index.tolist() for index in select(*sizes[1])), strict=True))
                assert len(ins) == min(expected.shape[1], source.shape[1])
                for here, there in outs:
                    for into, out_of in ins:
                        expected[here, into] = source[there, out_of]
                        count += expected[here, into].numel()
        assert torch.equal(result[pairing.target], expected)
        assert (row.elements, row.of_elements) == (count, expected.numel())
        assert torch.equal(result[pairing.target][~row.mask], ours[pairing.target][~row.mask])
        assert bool(row.reason) == (pairing.upstream is None)
    assert sum(row.of_elements for row in report.rows) == sum(tensor.numel() for tensor in ours.values())
    convolutions = [module for module in downstream.modules() if isinstance(module, nn.Conv2d)]
    of_filters = sum(row.of_filters for row in report.rows if row.of_elements > row.of_filters)
    assert of_filters == sum(len(convolution.weight) for convolution in convolutions)
    assert sum(row.filters for row in report.rows) > 0


class Chain(nn.Module):
    """Three convolutions, the last two around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


def test_consistent_filters_meet_the_channels_that_they_were_trained_on() -> None:
    """Layers that write to one stream inherit the same channels, independent ones do not."""
    upstream, downstream = network("resnet18"), network("resnet18")
    for channels, same in (("consistent", True), ("independent", False)):
        plan = plan_filters(upstream, downstream, channels=channels)
        made, _ = transferred(plan, upstream, downstream, alpha=0.5)
        ours, theirs = made.state_dict(), upstream.state_dict()
        chosen = [
            {i for i in range(64) if torch.equal(ours[name][i], theirs[name][i])}
            for name in ("layer1.0.conv2.weight", "layer1.1.conv2.weight")
        ]
        assert [len(part) for part in chosen] == [32, 32]
        assert (chosen[0] == chosen[1]) is same


def test_larger_alpha_inherits_more_of_the_same() -> None:
    """So that a sweep over alpha adds filters, and other seeds draw others."""
    upstream, downstream = network("vgg11_bn"), network("vgg11_bn")
    name = "features.0.weight"
    plan = next(pairing for pairing in plan_filters(upstream, downstream) if pairing.target == name)
    small, large = (set(Selection(alpha=a, seed=0)(plan.axes[0], 64, 64)[0].tolist()) for a in (0.25, 0.5))
    assert small < large
    assert large != set(Selection(alpha=0.5, seed=1)(plan.axes[0], 64, 64)[0].tolist())


@pytest.mark.parametrize(("batchnorm", "kept"), [("reset", 4), ("recalibrate", 2)])
def test_batch_norm_can_stay_fresh(batchnorm: str, kept: int) -> None:
    """All of it, or its statistics."""
    model = network("resnet18")
    reasons = [row.reason for row in plan_filters(model, model, batchnorm=batchnorm)]
    assert reasons.count(f"transfer.batchnorm={batchnorm}") == kept * 20


def test_resnet101_to_resnet34_pairs_as_the_readme_says() -> None:
    """Stage by stage, shortcuts with shortcuts, at proportional depth."""
    plan = plan_filters(get_model("resnet101"), get_model("resnet34"))
    sources = {pairing.target: pairing.upstream for pairing in plan}
    assert sources["conv1.weight"] == "conv1.weight"
    assert sources["layer2.0.downsample.0.weight"] == "layer2.0.downsample.0.weight"
    assert sources["layer3.0.conv1.weight"] == "layer3.0.conv2.weight"
    assert sources["layer3.5.conv2.weight"] == "layer3.20.conv2.weight"  # the eleventh of 11 that do not widen, of 23
    assert sources["fc.weight"] is None


def test_networks_without_a_plan_are_refused_by_name_of_their_layers() -> None:
    """One sentence."""
    with pytest.raises(ValueError, match=r"nothing could be inherited.*Chain \(first, inner, outer\).*no filters"):
        plan_filters(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), Chain(4), unit="layer")


def test_rules_leave_their_inputs_alone() -> None:
    """Applying a rule is pure: neither model changes, and nothing is shared with the result."""
    upstream, fresh = TwoLayerCNN(torch.ones(1, 2, 4, 3)), TwoLayerCNN(torch.zeros(1, 2, 4, 3))
    for rule, inherited in ((Filters(alpha=0.5), 12.0), (Nothing(), 0.0)):
        state, report = rule(upstream, fresh, seed=0)
        assert state["filters"].sum() == inherited
        assert report.rows[0].elements == inherited
        state["filters"].fill_(7)
        assert upstream.filters.unique().tolist() == [1]
        assert fresh.filters.unique().tolist() == [0]


def test_callback_in_a_module_of_ones_own(tmp_path: Path) -> None:
    """A module and data of a user's, Lightning's own Trainer: what is inherited is there before the first step."""

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = timm.create_model("test_resnet", num_classes=2)
            self.start: Any = None

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            self.start = self.start or copy.deepcopy(self.model.state_dict())
            return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    upstream = timm.create_model("test_resnet", num_classes=5)
    module = Classifier()
    images = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 2)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[ParameterTransfer(Filters(alpha=1), upstream, seed=0)],
    )
    trainer.fit(module, DataLoader(images, batch_size=4))
    trained = upstream.state_dict()
    fresh = {name for name, tensor in module.start.items() if not torch.equal(tensor, trained[name])}
    assert fresh == {"fc.weight", "fc.bias"}


def test_the_readmes_library_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is written there, in a training script of a user's own: a torchvision and a timm model, a plain loop."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = re.search(r"```python\n(import timm.*?)```", readme, re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(code[1], names)  # our own README
    assert "partly inherited" in capsys.readouterr().out
    downstream, upstream = names["downstream"], names["upstream"]
    share = (downstream.conv1.weight == upstream.conv1.weight).flatten(1).all(1).double().mean()
    assert share == 0.5
    optimizer = torch.optim.SGD(downstream.parameters(), lr=0.1)
    for _ in range(2):
        torch.autograd.backward(downstream(torch.randn(2, 3, 32, 32)).square().mean())
        optimizer.step()
