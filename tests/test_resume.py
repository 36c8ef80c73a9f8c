"""An interrupted training goes on where it was, as if nothing had happened."""

import multiprocessing
import random
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import write_folder
from pytorch_lightning import LightningModule
from shared_jobs import PRELOADED, compose_and_run

from paramtransfer.errors import TrainingError
from paramtransfer.experiment.run import run
from paramtransfer.tracking.store import Store
from paramtransfer.trainer import ranks
from paramtransfer.trainer.checkpoints import Checkpoints
from paramtransfer.training.full_batch import FullBatchTraining
from paramtransfer.training.supervised import Supervised

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(PRELOADED)

Fixture = Callable[..., Any]

SYNTHETIC = [
    *("replicates=2", "dataset.dim=20", "model.filters=4", "task.num_test=50", "task.curve_points=8"),
    *("task.upstream.num_samples=30", "task.upstream.steps=40"),
    *("task.downstream.num_samples=10", "task.downstream.steps=40"),
]
IMAGES = [
    *("task=class_split", "dataset=image_folder", "task.upstream.epochs=1", "task.downstream.epochs=3"),
    *("task.batch_size=8", "task.ratio=1", "task.downstream.noise=5"),
]
CNN = [
    *(*IMAGES, "model=network_pair", "optim=sgd", "optim.lr=0.01"),
    *("model.upstream.name=test_resnet", "model.downstream.name=test_resnet", "+model.downstream.drop_rate=0.3"),
]
VIT = [
    *(*IMAGES, "model=vit_32", "optim=adamw", "transfer=layers", "model.downstream.drop_path_rate=0.3"),
    *("model.upstream.embed_dim=16", "model.downstream.embed_dim=16", "model.upstream.num_heads=2"),
    *("model.downstream.num_heads=2", "model.upstream.patch_size=8", "model.downstream.patch_size=8"),
    *("task.training.mixup=0.8", "transfer.freeze_epochs=1"),
]
CASES: dict[str, tuple[list[str], type[LightningModule], int]] = {
    "synthetic": (SYNTHETIC, FullBatchTraining, 19),
    "within an epoch": (CNN, Supervised, 14),
    "at the end of an epoch": (CNN, Supervised, 15),
    "transformer": (VIT, Supervised, 14),
}


@pytest.fixture
def job(tmp_path: Path, compose_job: Fixture, monkeypatch: pytest.MonkeyPatch) -> Fixture:
    """The job of a case, with a checkpoint after each step unless told otherwise."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "root", train=14, test=4)

    def job(case: str, minutes: float = 0) -> Any:
        where = [] if case == "synthetic" else [f"dataset.root={root}"]
        more = ["trainer.progress=false", f"trainer.checkpoint_minutes={minutes}", *where]
        return compose_job(*CASES[case][0], *more)

    return job


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Fixture:
    """Sends SIGTERM to this process in the training step of that number, counted over all stages."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))

    def interrupt(kind: type[LightningModule], number: int) -> None:
        plain, steps = kind.training_step, iter(range(1, 1000))

        def training_step(self: Any, *args: Any) -> Any:
            if next(steps) == number:
                signal.raise_signal(signal.SIGTERM)
            return plain(self, *args)

        monkeypatch.setattr(kind, "training_step", training_step)

    yield interrupt
    signal.signal(signal.SIGTERM, before)


def curves(store: Store, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All metrics of a run but those of time: steps and values."""
    keys = [key for key in store.run(run_id).metrics if not key.startswith("time/")]
    return {key: list(store.history(run_id, key).items()) for key in keys}


@pytest.mark.parametrize("case", CASES)
def test_resumed_training_ends_as_if_uninterrupted(case: str, tmp_path: Path, job: Fixture, interrupt: Fixture) -> None:
    """The same run goes on to bit-equal weights and the same curves, each step once, from the signal's checkpoint."""
    _, kind, step = CASES[case]
    whole, store = Store(tmp_path / "whole"), Store(tmp_path / "interrupted")
    expected = run(job(case), whole, tags={})
    interrupt(kind, step)
    with pytest.raises(SystemExit, match="terminated"):
        run(job(case, minutes=60), store, tags={})
    runs = list(store.runs("tags.stage != ''"))
    assert "KILLED" in {each.status for each in runs}
    results = run(job(case, minutes=60), store, tags={})
    assert len(list(store.runs("tags.stage != ''"))) == len(runs) == 3
    for stage, result in results.items():
        assert store.run(result.run_id).status == "FINISHED"
        assert all(torch.equal(tensor, expected[stage].state[name]) for name, tensor in result.state.items())
        assert curves(store, result.run_id) == curves(whole, expected[stage].run_id)
        assert 0 < result.metrics["time/train"] < 60
    assert not list((tmp_path / "interrupted" / "checkpoints").iterdir())


def test_damaged_checkpoint_is_passed_over(
    tmp_path: Path, job: Fixture, interrupt: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    """With a line, for the one before; they hold nothing but tensors and plain values."""
    whole, store = Store(tmp_path / "whole"), Store(tmp_path / "interrupted")
    expected = run(job("within an epoch"), whole, tags={})
    interrupt(Supervised, 14)
    with pytest.raises(SystemExit):
        run(job("within an epoch"), store, tags={})
    older, newest = sorted((tmp_path / "interrupted" / "checkpoints").glob("*/*.ckpt"))
    assert torch.load(older, weights_only=True)["global_step"] < torch.load(newest, weights_only=True)["global_step"]
    assert [int(path.stem.removeprefix("step-")) for path in (older, newest)] == [0, 1]  # steps, no clock's business
    newest.write_bytes(newest.read_bytes()[:1000])
    results = run(job("within an epoch"), store, tags={})
    assert "cannot be read" in caplog.text
    for stage, result in results.items():
        assert all(torch.equal(tensor, expected[stage].state[name]) for name, tensor in result.state.items())


@pytest.mark.parametrize("ends_with", [None, RuntimeError("lost"), SystemExit("told to end")], ids=str)
def test_a_signal_after_the_last_step_is_handed_on(ends_with: BaseException | None, tmp_path: Path) -> None:
    """Which is answered by no checkpoint any more: whether the training ends well or not, unless it is being ended."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        checkpoints: Any = Checkpoints(tmp_path, minutes=1, before=lambda: None)
        checkpoints.on_train_start(None, None)
        signal.raise_signal(signal.SIGTERM)
        assert told == []
        if ends_with is None:
            checkpoints.on_train_end(None, None)
        else:
            checkpoints.on_exception(None, None, ends_with)
        assert told == ([] if isinstance(ends_with, SystemExit) else [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_failed_training_goes_on(
    tmp_path: Path, job: Fixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From its checkpoint, in the same run; with other threads, it says that the last digits may differ."""
    caplog.set_level("INFO")
    store = Store(tmp_path)
    plain, steps = FullBatchTraining.training_step, iter(range(1, 1000))

    def failing(self: Any, *args: Any) -> Any:
        if next(steps) == 11:
            raise RuntimeError("out of memory")
        return plain(self, *args)

    monkeypatch.setattr(FullBatchTraining, "training_step", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(job("synthetic"), store, tags={})
    statuses = {each.run_id: each.status for each in store.runs("tags.stage != ''")}
    assert sorted(statuses.values()) == ["FAILED", "FINISHED", "KILLED"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    run(job("synthetic"), store, tags={})
    (failed,) = (run_id for run_id, status in statuses.items() if status == "FAILED")
    assert f"run {failed} goes on where it was interrupted" in caplog.text
    assert f"run {failed} goes on with 7 threads instead of" in caplog.text
    assert store.run(failed).status == "FINISHED"


def test_checkpoints_that_cannot_be_written(tmp_path: Path, job: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    """Where no folder can be made, the training goes on without."""
    store = Store(tmp_path)
    (tmp_path / "checkpoints").touch()
    run(job("synthetic"), store, tags={})
    assert "no checkpoint can be written" in caplog.text
    assert {each.status for each in store.runs("tags.stage != ''")} == {"FINISHED"}


def test_rank_that_waits_for_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of srun, whose parent lives on, does not wait for ever."""
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "_TIMEOUT", timedelta(seconds=0.5))
    with pytest.raises(TrainingError, match="rank 0 has died"):
        ranks.Ranks(size=2, device="cpu").follow(tmp_path, lambda order: None)


def test_killed_training_ends_as_if_uninterrupted(
    tmp_path: Path, compose_job: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at three random moments: the same weights, and every point of the curves once."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "root", train=14, test=4)
    more = ["task.downstream.epochs=60", "trainer.progress=false", "trainer.checkpoint_minutes=0.005"]
    settings = [*CNN, *more, f"dataset.root={root}"]
    whole, killed = Store(tmp_path / "whole"), Store(tmp_path / "killed")
    expected = run(compose_job(*settings), whole, tags={})

    for _ in range(3):
        before = _checkpoints(tmp_path)
        process = PROCESSES.Process(target=compose_and_run, args=(settings, tmp_path / "killed"))
        process.start()
        deadline = time.monotonic() + 60
        while not _checkpoints(tmp_path) - before:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    for stage, result in run(compose_job(*settings), killed, tags={}).items():
        assert all(torch.equal(tensor, expected[stage].state[name]) for name, tensor in result.state.items())
        assert curves(killed, result.run_id) == curves(whole, expected[stage].run_id)


def _checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("killed/checkpoints/*/*.ckpt")}
