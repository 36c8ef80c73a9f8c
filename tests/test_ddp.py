"""Several processes train one network as one would."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from image_files import write_folder
from lightning_utilities.core.rank_zero import rank_zero_only

from paramtransfer.cli.run_job import FOLLOWER
from paramtransfer.errors import ConfigError
from paramtransfer.experiment.run import run
from paramtransfer.tracking.store import Store
from paramtransfer.training.supervised import Supervised

Fixture = Callable[..., Any]

LOOPBACK = "0100007F"  # 127.0.0.1
# No BatchNorm, no dropout: the gradient is the mean over ranks, whatever each sees.
VIT = [
    *("task=class_split", "dataset=image_folder", "model=vit_32", "optim=sgd", "optim.lr=0.01", "transfer=layers"),
    *("model.upstream.embed_dim=16", "model.downstream.embed_dim=16", "model.upstream.num_heads=2"),
    *("model.downstream.num_heads=2", "model.upstream.patch_size=8", "model.downstream.patch_size=8"),
    *("task.upstream.epochs=2", "task.downstream.epochs=2", "task.batch_size=8", "task.ratio=1"),
    *("task.downstream.noise=5", "trainer.progress=false"),
]


@pytest.fixture
def job(tmp_path: Path, compose_job: Fixture, monkeypatch: pytest.MonkeyPatch) -> Fixture:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "root", train=14, test=4)
    return lambda *overrides: compose_job(*VIT, f"dataset.root={root}", *overrides)


def points(store: Store, run_id: str) -> dict[str, list[tuple[int, float]]]:
    return {key: list(store.history(run_id, key).items()) for key in ("train/loss", "val/acc", "test/acc")}


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def listening(pid: int) -> set[str]:
    """Where a process listens: IPv4 and IPv6 addresses, as the kernel writes them."""
    files = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in files}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are read from Linux's /proc")
def test_two_ranks_train_as_one(tmp_path: Path, job: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps, weights and curves, one run for each stage; nothing listens beyond this machine."""
    alone, together = Store(tmp_path / "alone"), Store(tmp_path / "together")
    expected = run(job("trainer=cpu"), alone, tags={})
    plain, addresses, sizes = Supervised.training_step, set(), set()
    before = set(children())  # other tests' servers of processes

    def training_step(self: Any, batch: Any, *args: Any) -> Any:
        addresses.update(*map(listening, [os.getpid(), *children()]))
        sizes.add(len(batch.labels_B))
        return plain(self, batch, *args)

    monkeypatch.setattr(Supervised, "training_step", training_step)
    _leave_ranks(monkeypatch)
    more = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.checkpoint_minutes=0"]
    results = run(job(*more), together, tags={}, follower=FOLLOWER)
    assert addresses == {LOOPBACK}
    assert sizes == {4}
    assert len(list(together.runs("tags.stage != ''"))) == len(results) == 3
    for stage, result in results.items():
        assert together.run(result.run_id).status == "FINISHED"
        for name, tensor in expected[stage].state.items():
            torch.testing.assert_close(result.state[name], tensor, rtol=0, atol=1e-5)
        curves, reference = points(together, result.run_id), points(alone, expected[stage].run_id)
        for key in curves:
            assert curves[key] == [(step, pytest.approx(value, abs=1e-5)) for step, value in reference[key]]
        assert result.hits_RN.shape == expected[stage].hits_RN.shape
    assert set(children()) <= before


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["trainer=ddp"], "trainer.devices=2: must be 1 with task=synthetic"),
        ([*VIT, "trainer=ddp", "task.batch_size=7"], "task.batch_size=7: must be a multiple of trainer.devices=2"),
    ],
)
def test_what_ranks_cannot_share(overrides: list[str], reason: str, tmp_path: Path, compose_job: Fixture) -> None:
    """Refused with one sentence before any run."""
    where = [f"dataset.root={write_folder(tmp_path, train=14, test=4)}"] if "task=class_split" in overrides else []
    with pytest.raises(ConfigError, match=reason):
        compose_job("trainer.accelerator=cpu", *overrides, *where)


def test_rank_is_what_the_job_says(tmp_path: Path, compose_job: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's variables make no follower of a process that was asked for a job of its own: the curves are kept."""
    _leave_ranks(monkeypatch)
    store = Store(tmp_path)
    for result in run(compose_job(*TINY, "transfer=none", "trainer=cpu"), store, tags={}).values():
        assert len(store.history(result.run_id, "train/loss")) > 1


def _leave_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a launcher that meant another job."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # Lightning's own reading of such variables at its import
    for name in ("SLURM_PROCID", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "JSM_NAMESPACE_RANK"):
        monkeypatch.setenv(name, "1")
