"""Blocks of vision transformers: plans, selection across widths, freezing, and what is refused."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from image_files import write_folder
from torch import nn

from paramtransfer.errors import ConfigError
from paramtransfer.experiment.run import run
from paramtransfer.tracking.store import Store
from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.blocks import plan_blocks
from paramtransfer.transfer.select import Selection

Fixture = Callable[..., Any]


def vit(*, heads: int = 2, depth: int = 12, width: int = 16, num_classes: int = 3, img_size: int = 32) -> nn.Module:
    made = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=img_size,
        patch_size=8,
        embed_dim=heads * width,
        num_heads=heads,
        depth=depth,
        num_classes=num_classes,
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)  # biases and norms differ too
    return made.eval()


def transferred(
    upstream: nn.Module, downstream: nn.Module, layers: Sequence[int], into: Sequence[int] | None = None, **also: Any
) -> nn.Module:
    plan = plan_blocks(
        upstream, downstream, layers=layers, into=layers if into is None else into, **{"also": [], **also}
    )
    state, report = inherit(plan, upstream.state_dict(), downstream.state_dict(), Selection(alpha=1, seed=0))
    assert sum(row.of_elements for row in report.rows) == sum(t.numel() for t in downstream.state_dict().values())
    assert all(bool(row.reason) == (row.status == "fresh") for row in report.rows)
    made = copy.deepcopy(downstream)
    made.load_state_dict(state)
    return made


def test_everything_but_the_head_gives_the_upstreams_features() -> None:
    """All blocks, and all other parts named."""
    upstream, downstream = vit(), vit(num_classes=5)
    also = ["patch_embed", "pos_embed", "cls_token", "norm"]
    made = transferred(upstream, downstream, list(range(12)), also=also)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs, ours, fresh = (model.forward_features(x) for model in (upstream, made, downstream))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(fresh, theirs)


@pytest.mark.parametrize(("into", "depth"), [(9, 12), (3, 6)])
def test_one_block_changes_that_block_alone(into: int, depth: int) -> None:
    """Into the same position, or another one of a shallower model."""
    upstream, downstream = vit(), vit(depth=depth)
    made = transferred(upstream, downstream, [9], [into]).state_dict()
    before, theirs = downstream.state_dict(), upstream.state_dict()
    changed = {name for name, tensor in made.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith(f"blocks.{into}.")}
    assert all(torch.equal(made[name], theirs[name.replace(f"blocks.{into}.", "blocks.9.")]) for name in changed)


@pytest.mark.parametrize(("theirs", "ours"), [(4, 2), (2, 4)])
def test_between_widths_whole_heads_go_together(theirs: int, ours: int) -> None:
    """Query, key, value and output of a head come from one head, at the same embedding channels everywhere."""
    upstream, downstream = vit(heads=theirs), vit(heads=ours)
    made = transferred(upstream, downstream, [9, 10], also=["norm", "pos_embed"])
    there, here, fresh = (model.state_dict() for model in (upstream, made, downstream))
    few = min(theirs, ours)
    channels = [
        (i, j)
        for i in range(ours * 16)
        for j in range(theirs * 16)
        if here["norm.weight"][i] == there["norm.weight"][j] and here["norm.weight"][i] != fresh["norm.weight"][i]
    ]
    assert len(channels) == few * 16
    mine, its = (torch.tensor(index) for index in zip(*channels, strict=True))
    assert torch.equal(here["pos_embed"][..., mine], there["pos_embed"][..., its])
    for block in (9, 10):
        qkv = {name: state[f"blocks.{block}.attn.qkv.weight"] for name, state in (("here", here), ("there", there))}
        out = {name: state[f"blocks.{block}.attn.proj.weight"] for name, state in (("here", here), ("there", there))}
        rows_here, rows_there = qkv["here"].view(3, ours, 16, -1), qkv["there"].view(3, theirs, 16, -1)
        heads = [
            (h, g)
            for h in range(ours)
            for g in range(theirs)
            if torch.equal(rows_here[:, h][..., mine], rows_there[:, g][..., its])
        ]
        assert len(heads) == few
        for h, g in heads:
            columns = [
                state[index][:, 16 * n : 16 * (n + 1)]
                for state, index, n in ((out["here"], mine, h), (out["there"], its, g))
            ]
            assert torch.equal(*columns)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: transferred(vit(), vit(), [12]), "transfer.layers=12: must be at most 11: .* has blocks 0 to 11"),
        (lambda: transferred(vit(), vit(depth=6), [9]), "transfer.into=9: must be at most 5"),
        (lambda: transferred(vit(), vit(), [1], also=["stem"]), "transfer.also=stem: must be among .*patch_embed"),
        (
            lambda: transferred(vit(), timm.create_model("test_resnet"), [1]),
            "transfer=layers: ResNet .* use transfer=filters",
        ),
        (
            lambda: transferred(vit(), vit(img_size=16), [1], also=["pos_embed"]),
            "transfer.also=pos_embed: cannot be inherited, pos_embed differs in shape",
        ),
        (
            lambda: transferred(*(timm.create_model("cait_xxs24_224") for _ in range(2)), [1]),
            "transfer=layers: the attention of LayerScaleBlock is not built as a ViT's",
        ),
        (lambda: transferred(vit(width=8), vit(), [1]), "heads cannot be matched, 2 of 8 channels .* 2 of 16"),
    ],
)
def test_impossible_plans_are_refused(call: Callable[[], Any], sentence: str) -> None:
    """One sentence."""
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.fixture
def job(tmp_path: Path, compose_job: Fixture, monkeypatch: pytest.MonkeyPatch) -> Fixture:
    """A small job on images with a transformer, and more settings after its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "root", train=16, test=4)
    small = ["embed_dim=16", "num_heads=2", "patch_size=8"]
    names = [f"model.{side}.{option}" for side in ("upstream", "downstream") for option in small]
    settings = ["task=class_split", "dataset=image_folder", f"dataset.root={root}", "model=vit_32", "transfer=layers"]
    training = [
        "optim=adamw",
        "task.upstream.epochs=1",
        "task.downstream.epochs=2",
        "task.batch_size=8",
        "task.ratio=2",
    ]
    return lambda *overrides: compose_job(*settings, *names, *training, "trainer.progress=false", *overrides)


def test_frozen_blocks_stay_bit_equal(tmp_path: Path, job: Fixture) -> None:
    """Through steps of AdamW with weight decay; held for one of two epochs only, they move."""
    store = Store(tmp_path)
    held, moved = (run(job(f"transfer.freeze_epochs={epochs}"), store, tags={}) for epochs in (2, 1))
    theirs = held["upstream"].state
    inherited = [name for name in theirs if name.startswith(("blocks.9.", "blocks.10.", "blocks.11."))]
    assert len(inherited) == 36
    assert all(torch.equal(held["downstream"].state[name], theirs[name]) for name in inherited)
    assert not any(torch.equal(moved["downstream"].state[name], theirs[name]) for name in inherited)
    assert not torch.equal(
        held["downstream"].state["blocks.8.mlp.fc1.weight"], held["baseline"].state["blocks.8.mlp.fc1.weight"]
    )


def test_training_options_and_curves(tmp_path: Path, job: Fixture) -> None:
    """mixup, cutmix, smoothing and drop-path train the same twice; the test curve is there on request alone."""
    options = ["task.training.mixup=0.8", "task.training.cutmix=1", "task.training.label_smoothing=0.1"]
    more = ["model.downstream.drop_path_rate=0.2", "trainer.test_every_epoch=true", "reuse=false"]
    first, second = (
        run(job("transfer=none", "alpha=0.5", *options, *more), Store(tmp_path), tags={}) for _ in range(2)
    )
    state = first["baseline"].state
    assert all(torch.equal(tensor, state[name]) for name, tensor in second["baseline"].state.items())
    client, run_id = Store(tmp_path).client, first["baseline"].run_id
    curve = [point.value for point in client.get_metric_history(run_id, "test/acc_curve")]
    assert len(curve) == 2
    assert curve[-1] == pytest.approx(first["baseline"].metrics["test/acc"])
    plain = run(job("transfer=none", "alpha=0.5"), Store(tmp_path), tags={})["baseline"]
    assert not client.get_metric_history(plain.run_id, "test/acc_curve")
    assert not torch.equal(plain.state["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["transfer.layers=[12]"], r"transfer\.layers=12: must be at most 11"),
        (["transfer.layers=[9,9]"], r"transfer\.layers=\[9, 9\]: must be different blocks"),
        (["transfer.layers=9"], r"transfer\.layers=9: must be a list of blocks"),
        (["transfer.into=[1]"], r"transfer\.into=\[1\]: must be as many blocks as transfer\.layers=\[9, 10, 11\]"),
        (["alpha=0.5"], r"alpha=0\.5: must be left out with transfer=layers"),
        (
            ["transfer=filters", "alpha=0.5"],
            r"transfer=filters: VisionTransformer has blocks, not filters; use transfer=layers",
        ),
    ],
)
def test_wrong_settings_are_refused(overrides: list[str], sentence: str, job: Fixture) -> None:
    """One sentence that says what to use."""
    with pytest.raises(ConfigError, match=rf"^{sentence}[^\n]*$"):
        job(*overrides)


def test_learning_rate_warms_up_and_falls_by_a_cosine(job: Fixture) -> None:
    """Step by step, as the formula has it."""
    made = job("optim.lr=2", "optim.warmup_epochs=1").tasks.optim.configure(
        nn.Linear(2, 2), inherited=(), steps=12, epochs=3
    )
    rates = []
    for _ in range(12):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    cosine = 1 + torch.cos(torch.pi * torch.arange(8, dtype=torch.double) / 8)
    assert rates == pytest.approx([0.4, 0.8, 1.2, 1.6, *cosine.tolist()])
