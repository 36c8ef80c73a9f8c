"""Before anything is trained: mistakes on the command line, and what a sweep will come to."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from hydra.core.global_hydra import GlobalHydra

from paramtransfer.checks import did_you_mean
from paramtransfer.cli.main import main
from paramtransfer.tracking.store import open_store

Fixture = Callable[..., Any]

MISTAKES = {
    "alhpa=0.5": "alhpa: no such key or group; did you mean alpha?; --help lists them",
    "task.upstrem.steps=3": "task.upstrem.steps: no such key or group; did you mean task.upstream.steps?; --help",
    "solvr=gram": "solvr: no such key or group; did you mean solver?",
    "solver=grma": "solver=grma: must be one of autograd, gram, leap; did you mean gram?",
    "dataset=laplase": "image_folder, laplace, signal_noise; did you mean laplace?",
    "experiment=fig1 dataset.dmi=5": "experiment=fig1: must be one of ",
    "experiment=regime regime.nn=3": "regime.nn: no such key or group; did you mean regime.n?",
    "-m alhpa=0.1,0.2": "alhpa: no such key or group; did you mean alpha?",
    "alpha": "alpha: must be key=value",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistake_is_one_line_with_the_nearest_name(words: str, tmp_path: Path, train: Fixture) -> None:
    """A typo in a key, group, option or experiment ends with one line, before there is a run or a store."""
    own = tmp_path / "own" / "dataset"
    own.mkdir(parents=True)
    (own / "laplace.yaml").write_text("defaults: [signal_noise]\n")
    process = train(tmp_path, "--config-dir", "own", *words.split())
    assert process.returncode == 1
    assert MISTAKES[words] in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert process.stdout == ""
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()


def test_nearest_name() -> None:
    """A key by its last part alone, all that are equally near, nothing where nothing is near."""
    keys = ["alpha", "transfer.alpha", "task.upstream.steps", "task.downstream.steps"]
    assert did_you_mean("steps", keys) == "; did you mean task.upstream.steps or task.downstream.steps?"
    assert did_you_mean("alpa", keys) == "; did you mean alpha?"
    assert did_you_mean("transfer.alpa", keys) == "; did you mean transfer.alpha?"
    assert did_you_mean("momentum", keys) == ""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fixture]:
    """Runs a command line in this process, in an empty folder, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def command(*words: str) -> str:
        open_store.cache_clear()
        GlobalHydra.instance().clear()
        monkeypatch.setattr("sys.argv", ["train.py", *words, *TINY])
        with contextlib.suppress(SystemExit):
            main()
        return capsys.readouterr().out

    yield command
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_preview(command: Fixture, tmp_path: Path, runs_of: Fixture) -> None:
    """What is shared counts once, what is in the store is reused, a refused job is named, nothing is trained."""
    first = command("-m", "alpha=0.25,0.5,2", "dry_run=true")
    assert first.splitlines() == [
        "3 jobs: 4 different trainings, 0 reused, 4 to train.",
        "Refused, the others run: alpha=2: must be a number from 0 to 1",
        "No estimate of time: nothing of this size has been trained in this store.",
    ]
    assert runs_of(tmp_path) == {}

    sweep = command("-m", "alpha=0.25,0.5")
    assert "2 jobs: 4 different trainings, 0 reused, 4 to train." in sweep
    runs = runs_of(tmp_path)

    again = command("-m", "alpha=0.25,0.5,0.75", "seed=0,1", "dry_run=true").splitlines()
    assert again[0] == "6 jobs: 10 different trainings, 4 reused, 6 to train."
    assert again[1].startswith("Training takes about 1 s in all, judged by finished runs that differ in alpha. ")
    assert "upstream is trained: the nearest finished run, " in again[2]
    assert "differs in seed 0 -> 1" in again[2]
    assert command("alpha=0.25", "dry_run=true") == "1 job: 3 different trainings, 3 reused, 0 to train.\n"
    anew = command("alpha=0.25", "dry_run=true", "reuse=false")
    assert anew.startswith(
        "1 job: 3 different trainings, 0 reused, 3 to train.\nTraining takes about 1 s in all, judged"
    )
    assert "with the same settings" in anew
    large = command("dry_run=true", "task.curve_points=100000")
    assert "0 reused, 3 to train" in large
    assert "No estimate" in large
    groups = command("-m", "solver=leap,autograd", "dry_run=true")
    assert "2 jobs: 6 different trainings, 3 reused, 3 to train." in groups
    assert {stage: len(runs[stage]) for stage in runs} == {
        stage: len(found) for stage, found in runs_of(tmp_path).items()
    }
