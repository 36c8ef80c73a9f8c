"""How a downstream training starts: what is held, the head first, matching, and step sizes of single numbers."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from paramtransfer.optim.optimizers import SGD, AdamW
from paramtransfer.transfer.callback import ParameterTransfer
from paramtransfer.transfer.explained_variance import explained_variance
from paramtransfer.transfer.layers import Layers
from paramtransfer.transfer.rules import Filters
from paramtransfer.transfer.start import match

EPOCHS = 4


class Classifier(LightningModule):
    """A user's own module."""

    def __init__(self, name: str = "test_resnet") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = timm.create_model(name, num_classes=2)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])


class Data(LightningDataModule):
    """Images whose statistics are far from those of a fresh network."""

    classes = ("0", "1")

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(64, 3, 5, 5, generator=generator)
        self.images = 2 * nn.functional.interpolate(coarse, size=32, mode="bilinear") + 1
        self.labels = torch.arange(64) % 2

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.images, self.labels), batch_size=8)

    def calibration_batches(self, device: torch.device) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return zip(self.images.split(8), self.labels.split(8), strict=True)


class Watch(Callback):
    """The state after each epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.model.state_dict()))


def upstream(name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5)


def fit(folder: Path, transfer: ParameterTransfer, module: LightningModule, data: Any) -> list[dict[str, torch.Tensor]]:
    watch = Watch()
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[transfer, watch],
    )
    trainer.fit(module, data)
    return watch.states


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize("norms", ["train", "eval"])
def test_parameters_are_held_and_statistics_follow_the_images(norms: str, tmp_path: Path) -> None:
    """Bit for bit for two of four epochs; with norms as in tests the statistics stay too, and the head learns."""
    trained = upstream()
    transfer = ParameterTransfer(Filters(alpha=1, freeze_epochs=2, frozen_norms=norms), trained, seed=0)
    states = fit(tmp_path, transfer, Classifier(), Data())
    theirs = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("fc")}
    parameters = {name for name, _ in trained.named_parameters()} & theirs.keys()
    statistics = {name for name in theirs if "running" in name}
    for state in states[:2]:
        assert moved(theirs, state) & parameters == set()
        assert moved(theirs, state) & statistics == (statistics if norms == "train" else set())
        assert not torch.equal(state["fc.weight"], Classifier().model.state_dict()["fc.weight"])
    assert moved(theirs, states[-1]) >= parameters | statistics


def test_frozen_networks_are_tested_with_the_statistics_that_they_are_trained_with(tmp_path: Path) -> None:
    """The running statistics come to be those of the images, measured apart."""
    module, data = Classifier(), Data()
    fit(tmp_path, ParameterTransfer(Filters(alpha=1, freeze_epochs=EPOCHS), upstream(), seed=0), module, data)
    seen = []
    first = module.model.conv1[0]
    first.register_forward_hook(lambda _, __, output: seen.append(output.mean((0, 2, 3))))
    with torch.no_grad():
        module.model.eval()(data.images)
    start = upstream().conv1[1].running_mean
    expected = seen[0] + 0.9 ** (8 * EPOCHS) * (start - seen[0])  # after so many steps of momentum 0.1
    torch.testing.assert_close(module.model.conv1[1].running_mean, expected, atol=0.02, rtol=0.05)


def test_half_of_the_filters_are_held(tmp_path: Path) -> None:
    """Number by number, through momentum and weight decay."""
    trained = upstream()
    transfer = ParameterTransfer(Filters(alpha=0.5, freeze_epochs=EPOCHS), trained, seed=0)
    state, before = fit(tmp_path, transfer, Classifier(), Data())[-1], Classifier().model.state_dict()
    for name, mask in transfer.report.masks.items():
        if "running" not in name:
            assert torch.equal(state[name][mask], trained.state_dict()[name][mask])
            assert not mask.all()
            assert not (state[name] == before[name])[~mask].all()


@pytest.mark.parametrize("rule", [Filters(alpha=0.5, head_epochs=2), Layers(layers=[0], head_epochs=2)])
def test_the_head_is_trained_alone_first(rule: Any, tmp_path: Path) -> None:
    """Nothing else moves for two epochs, then everything does."""
    name = "test_resnet" if isinstance(rule, Filters) else "test_vit"
    transfer = ParameterTransfer(rule, upstream(name), seed=0)
    module = Classifier(name)
    data = Data()
    if name == "test_vit":
        data.images = data.images.repeat(1, 1, 5, 5)
    states = fit(tmp_path, transfer, module, data)
    parameters = {name for name, _ in module.named_parameters()}
    head = {"fc.weight", "fc.bias"} if name == "test_resnet" else {"head.weight", "head.bias"}
    start = rule(upstream(name), Classifier(name).model, seed=0)[0]
    for state in states[:2]:
        assert {f"model.{n}" for n in moved(start, state)} & parameters == {f"model.{n}" for n in head}
    assert {f"model.{n}" for n in moved(start, states[-1])} >= parameters


def test_one_callback_serves_several_modules(tmp_path: Path) -> None:
    """Each inherits once; a second fit goes on with what was trained."""
    trained = upstream()
    transfer = ParameterTransfer(Filters(alpha=1, freeze_epochs=EPOCHS), trained, seed=0)
    first, second = Classifier(), Classifier("test_resnet")
    for module in (first, second):
        fit(tmp_path, transfer, module, Data())
        assert torch.equal(module.model.conv1[0].weight, trained.conv1[0].weight)
    with torch.no_grad():
        first.model.conv1[0].weight.fill_(0.5)
    goes_on = fit(tmp_path, transfer, first, Data())
    assert (goes_on[0]["conv1.0.weight"] - 0.5).abs().max() < 0.4
    assert not (goes_on[0]["conv1.0.weight"] == 0.5).any()


def test_training_that_goes_on_holds_what_it_held(tmp_path: Path) -> None:
    """From a checkpoint after the first of two epochs with the head alone: matching is not repeated, the body stays."""
    rule, trained = Filters(alpha=0.5, head_epochs=2, match_steps=2), upstream()
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    states = []
    for epochs, checkpoint in ((1, None), (2, tmp_path / "first.ckpt")):
        module, watch = Classifier(), Watch()
        transfer = ParameterTransfer(rule, trained, seed=0)
        trainer = Trainer(max_epochs=epochs, callbacks=[transfer, watch], enable_checkpointing=False, **options)
        trainer.fit(module, Data(), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "first.ckpt")
        states.append({name: watch.states[-1][name] for name, _ in module.model.named_parameters()})
    assert moved(*states) == {"fc.weight", "fc.bias"}
    unmatched = rule(trained, Classifier().model, seed=0)[0]
    assert len(moved(states[0], unmatched)) > 2


def settled(model: nn.Module, data: Data) -> nn.Module:
    """With statistics of the images, as a trained network has them."""
    update_bn(data.images.split(16), model)
    return model


def test_matching_brings_the_levels_closer() -> None:
    """More of the upstream's variance is found afterwards, of one width and of another; labels are not seen."""
    data = Data()
    trained = settled(upstream(), data)
    batches = [(images, torch.full((16,), torch.nan)) for images in data.images.split(16)]
    for name in ("test_resnet", "resnet10t"):
        torch.manual_seed(2)
        model = settled(timm.create_model(name, num_classes=2), data)
        head = model.fc.weight.clone()
        start = explained_variance(trained, model, batches)
        match(trained, model, batches, steps=15)
        end = explained_variance(trained, model, batches)
        assert all(share > start[level] + 0.01 for level, share in end.items())
        assert torch.equal(head, model.fc.weight)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_explained_variance_is_one_for_a_copy() -> None:
    """And less for another network; every level has a name of the downstream's."""
    data = Data()
    trained, batches = settled(upstream(), data), list(data.calibration_batches(torch.device("cpu")))
    for other, low, high in ((copy.deepcopy(trained), 0.95, 1.0), (settled(Classifier().model, data), 0.0, 0.7)):
        shares = explained_variance(trained, other, batches)
        assert list(shares) == ["conv1.6", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv3", "layer4.0.conv2"]
        assert all(low <= share <= high + 1e-9 for share in list(shares.values())[:3])


@pytest.mark.parametrize(
    "optim",
    [
        SGD(
            lr=0.1,
            momentum=0.9,
            nesterov=True,
            weight_decay=0.1,
            schedule="constant",
            warmup_epochs=0,
            inherited_lr_scale=0.2,
        ),
        AdamW(lr=0.1, weight_decay=0.1, schedule="constant", warmup_epochs=0, inherited_lr_scale=0.2),
    ],
)
def test_step_sizes_are_scaled_number_by_number(optim: Any) -> None:
    """As if the inherited and the fresh numbers of a tensor were two parameters in two groups."""
    torch.manual_seed(0)
    weight, mask = torch.randn(4, 3), torch.rand(4, 3) > 0.5
    x = torch.randn(8, 3)
    whole = nn.Linear(3, 4, bias=False)
    whole.weight.data.copy_(weight)
    one = optim.configure(whole, inherited={"weight": mask}, steps=10, epochs=1)["optimizer"]
    parts = [nn.Parameter(weight[mask]), nn.Parameter(weight[~mask])]
    two = optim.make([{"params": [p], "lr": lr, "weight_decay": 0.1} for p, lr in zip(parts, (0.02, 0.1), strict=True)])
    for _ in range(5):
        torch.autograd.backward(whole(x).square().sum())
        both = torch.zeros(4, 3).masked_scatter(mask, parts[0]).masked_scatter(~mask, parts[1])
        torch.autograd.backward((x @ both.T).square().sum())
        for optimizer in (one, two):
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(whole.weight[mask], parts[0])
    torch.testing.assert_close(whole.weight[~mask], parts[1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"match_steps": 5}, r"transfer\.match_steps=5: must be left out without an ImageTask as data"),
        ({"batchnorm": "recalibrate"}, r"transfer\.batchnorm=recalibrate: must be left out without an ImageTask"),
        ({"select": "activation"}, r"activation: must be left out without an ImageTask as data"),
    ],
)
def test_what_needs_images_says_so(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    """With a loader alone, before anything is trained."""
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 2), batch_size=4)
    with pytest.raises(ValueError, match=sentence):
        fit(tmp_path, ParameterTransfer(Filters(alpha=1, **options), upstream(), seed=0), Classifier(), loader)
