"""Checkpoints as people have them: prefixes, wrappers, heads, plain values beside the tensors, and what is none."""

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from paramtransfer.model.network_pair import NetworkPair

NAME = "test_resnet"
State = dict[str, Tensor]


def trained() -> State:
    torch.manual_seed(0)
    state: State = timm.create_model(NAME, num_classes=5).state_dict()
    return state


def prefixed(prefix: str, state: State | None = None) -> State:
    return OrderedDict((f"{prefix}{name}", tensor) for name, tensor in (state or trained()).items())


def without(*parts: str) -> State:
    return {name: tensor for name, tensor in trained().items() if not any(part in name for part in parts)}


def noisy() -> State:
    return {name: tensor + 1 for name, tensor in trained().items()}


def pair(path: Path | str) -> NetworkPair:
    return NetworkPair(
        upstream={"name": NAME, "weights": str(path)}, downstream={"name": NAME}, stem="imagenet", head="small"
    )


def read(path: Path | str) -> State:
    state = pair(path).foreign(lambda run_id: {})
    assert state is not None
    return state


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}

CHECKPOINTS: dict[str, Callable[[], Any]] = {
    "plain": trained,
    "DDP": lambda: prefixed("module."),
    "compiled": lambda: prefixed("_orig_mod."),
    "DDP of a compiled one": lambda: {"model": prefixed("module._orig_mod.")},
    "Lightning": lambda: {
        "state_dict": {**prefixed("net."), "criterion.weight": torch.ones(5)},
        "epoch": 3,
        "optimizer_states": [OPTIMIZER],
    },
    "own modules": lambda: prefixed("backbone.encoder."),
    "MoCo": lambda: {"state_dict": {**prefixed("module.encoder_q."), "module.queue": torch.ones(4, 4)}},
    "DINO": lambda: {"teacher": prefixed("backbone.")},
    "torchvision's scripts": lambda: {
        "model": trained(),
        "optimizer": OPTIMIZER,
        "args": argparse.Namespace(lr=0.1, name="resnet"),
        "epoch": 90,
    },
    "numpy beside it": lambda: {
        "state_dict": trained(),
        "best_acc": np.float64(0.5),
        "history": np.arange(3.0),
        "step": np.int64(4),
    },
    "EMA of the same weights": lambda: {"state_dict": trained(), "state_dict_ema": trained()},
    "params": lambda: {"params": trained()},
    "deep": lambda: {"model_state_dict": {"net": prefixed("module.")}},
    "no head": lambda: without("fc."),
    "another head": lambda: {**without("fc."), "head.weight": torch.ones(9, 9), "fc.0.weight": torch.ones(2, 2)},
    "no counters": lambda: without("num_batches_tracked"),
    "tensors beside it": lambda: {**trained(), "epoch_counter": torch.ones(1)},
    "names of another library": lambda: {
        ".".join(f"_{part}" for part in name.split(".")[:-1]) + f".{name.rpartition('.')[2]}": tensor
        for name, tensor in trained().items()
    },
    "half precision": lambda: {name: t.half() if t.is_floating_point() else t for name, t in trained().items()},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_network_is_found_in_a_checkpoint(kind: str, tmp_path: Path) -> None:
    """All that is inherited is there, number by number, and the upstream computes with it."""
    torch.save(CHECKPOINTS[kind](), tmp_path / "mine.pt")
    state, expected = read(tmp_path / "mine.pt"), without("fc.", "num_batches")
    assert state.keys() == expected.keys()
    tolerance = 1e-3 if "half" in kind else 0.0
    assert all((state[name].float() - tensor).abs().max() <= tolerance for name, tensor in expected.items())
    network: nn.Module = pair(tmp_path / "mine.pt").upstream(state, None)  # type: ignore[arg-type]
    torch.testing.assert_close(network.state_dict()["conv1.0.weight"], state["conv1.0.weight"].float())


def test_safetensors_are_read_alike(tmp_path: Path) -> None:
    """With a prefix too."""
    save_file({name: tensor.clone() for name, tensor in prefixed("module.").items()}, tmp_path / "mine.safetensors")
    assert torch.equal(read(tmp_path / "mine.safetensors")["conv1.0.weight"], trained()["conv1.0.weight"])


@pytest.mark.parametrize(
    ("content", "choice", "other"),
    [
        (lambda: {"state_dict": trained(), "ema": noisy()}, "state_dict", "ema"),
        (lambda: {**prefixed("encoder_q."), **prefixed("encoder_k.", noisy())}, "encoder_q", "encoder_k"),
        (
            lambda: {"model": {**prefixed("student.net."), **prefixed("teacher.net.", noisy())}},
            "student.net",
            "teacher.net",
        ),
    ],
)
def test_of_several_weights_one_is_named(content: Callable[[], Any], choice: str, other: str, tmp_path: Path) -> None:
    """By its key behind the file's name, which is part of what identifies it."""
    path = tmp_path / "mine.pt"
    torch.save(content(), path)
    with pytest.raises(ValueError, match=rf"must say which of several weights .*::\S*{choice} or ::\S*{other}"):
        read(path)
    first = trained()["conv1.0.weight"]
    assert torch.equal(read(f"{path}::{choice}")["conv1.0.weight"], first)
    assert torch.equal(read(f"{path}::{other}")["conv1.0.weight"], first + 1)
    assert pair(f"{path}::{choice}").content != pair(f"{path}::{other}").content
    with pytest.raises(ValueError, match=r"::nothing: must name a part of the checkpoint"):
        read(f"{path}::nothing")


def test_library_weights_are_known_by_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torchvision with the file's hash in it; another address is another upstream."""

    def content(name: str) -> str:
        sides = {"upstream": {"name": name, "weights": "DEFAULT"}, "downstream": {"name": name}}
        return NetworkPair(**sides, stem="imagenet", head="small").content

    assert content("resnet18").endswith("resnet18-f37072fd.pth")
    assert "timm/deit_tiny_patch16_224" in content("deit_tiny_patch16_224")
    monkeypatch.setattr(get_model_weights("resnet18").DEFAULT.value, "url", "elsewhere/resnet18-0a1b2c3d.pth")
    assert content("resnet18").endswith("elsewhere/resnet18-0a1b2c3d.pth")


def broken(value: float) -> State:
    state = trained()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    return state


class Mine:
    """A class of a user's."""


def pt(content: Callable[[], Any], cut: int | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save(content(), path)
        path.write_bytes(path.read_bytes()[:cut])

    return write


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_text("<!DOCTYPE html><html>404</html>"), "it is a web page, as a failed download"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
            "it is a Git LFS pointer",
        ),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.mkdir(), "it is a folder"),
        (pt(trained, cut=2000), "it is cut short"),
        (lambda path: torch.jit.script(nn.Linear(2, 2)).save(str(path)), "it is TorchScript"),
        (pt(lambda: {"model": Mine()}), r"it holds a \S*Mine, more than tensors: save model\.state_dict\(\)"),
        (pt(lambda: [1, 2]), "must be a checkpoint of tensors by name"),
        (pt(lambda: broken(float("nan"))), r"must be finite numbers, but layer2\.0\.conv1\.weight has NaN"),
        (pt(lambda: broken(float("inf"))), r"must be finite numbers, but layer2\.0\.conv1\.weight has NaN or inf"),
        (
            pt(lambda: without("layer3.0")),
            r"must be weights of test_resnet, but its keys or shapes differ: it has no layer3\.0\.conv1\.weight",
        ),
        (
            pt(lambda: {**without("conv1.0."), "layer4.0.conv1.0.weight": torch.ones(2, 3, 3, 3)}),
            r"must be weights of test_resnet, but its keys or shapes differ: it has no conv1\.0\.weight; "
            r"model\.upstream\.name must be the network that they are of",
        ),
        (
            pt(lambda: {**trained(), "conv1.0.weight": torch.ones(2, 3, 3, 3)}),
            r"its conv1\.0\.weight is \(2, 3, 3, 3\) instead of",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:FutureWarning")
def test_what_cannot_be_read_is_named(write: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    """One sentence, with the key; nothing is unpickled freely."""
    write(tmp_path / "mine.pt")
    with pytest.raises(ValueError, match=rf"model\.upstream\.weights.*{sentence}") as refused:
        read(tmp_path / "mine.pt")
    assert "\n" not in str(refused.value)
