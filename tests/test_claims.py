"""Jobs that need the same stage at the same moment: one trains it, and what happens to the others."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from shared_jobs import PRELOADED, run_job

from paramtransfer.errors import SharedStageError
from paramtransfer.tracking.store import Store

STAGES = {"upstream", "baseline", "downstream"}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(PRELOADED)

Fixture = Callable[..., Any]


class Jobs:
    """Processes that run the same job, and what they answer."""

    def __init__(self, folder: Path, uri: str | None) -> None:
        self.folder = folder
        self.uri = uri
        self.answers: Any = PROCESSES.Queue()
        self.processes: list[BaseProcess] = []
        self.barriers: list[Any] = []  # those that nobody here refers to are gone before a process has met them

    def start(self, number: int, *overrides: str) -> list[BaseProcess]:
        """Start some at the same moment."""
        self.barriers.append(PROCESSES.Barrier(number))
        arguments = ([*TINY, *overrides], self.folder, self.uri, self.barriers[-1], self.answers)
        started = [PROCESSES.Process(target=run_job, args=arguments) for _ in range(number)]
        for process in started:
            process.start()
        self.processes += started
        return started

    def open_gate(self, reason: str = "") -> None:
        """Let the trainings go on, or fail for a reason."""
        (self.folder / "closed").write_text(reason)
        (self.folder / "closed").rename(self.folder / "gate")

    def answer(self, number: int) -> list[Any]:
        """The next answers."""
        return [self.answers.get(timeout=120) for _ in range(number)]


@pytest.fixture(params=["sqlite", "server"])
def jobs(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """Jobs that share a default store, or a server."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if request.param == "server":
        jobs = Jobs(tmp_path, request.getfixturevalue("server"))
    else:
        Store(tmp_path / "mlruns")  # before the test reads it
        jobs = Jobs(tmp_path, None)
    yield jobs
    for process in jobs.processes:
        process.kill()
        process.join()


def _until(is_true: Callable[[], Any], seconds: float = 60) -> float:
    """Wait for something; how long it took."""
    start = time.monotonic()
    while not is_true():
        assert time.monotonic() < start + seconds
        time.sleep(0.1)
    return time.monotonic() - start


def _statuses(runs: dict[str, list[Any]]) -> dict[str, list[str]]:
    return {stage: [run.info.status for run in runs[stage]] for stage in runs}


@pytest.mark.parametrize("jobs", ["sqlite"], indirect=True)
def test_same_job_six_times_at_once(jobs: Jobs, tmp_path: Path, runs_of: Fixture) -> None:
    """Of six that start at the same moment exactly one trains each stage, and all end with the same runs."""
    jobs.start(6)
    jobs.open_gate()
    answers = jobs.answer(6)
    assert _statuses(runs_of(tmp_path)) == {stage: ["FINISHED"] for stage in STAGES}
    for stage in STAGES:
        assert len({answer[stage][0] for answer in answers}) == 1
        assert sorted(answer[stage][1] for answer in answers) == [False] + [True] * 5
    assert not list((tmp_path / "mlruns" / "locks").iterdir())


def test_killed_trainer_is_replaced(jobs: Jobs, tmp_path: Path, runs_of: Fixture) -> None:
    """The trainer of a shared stage is killed: within a minute another trains it, the third goes on waiting."""
    store = jobs.uri or tmp_path
    (trainer,) = jobs.start(1)
    _until(lambda: "downstream" in runs_of(store))
    waiting = jobs.start(2, "alpha=1")
    _until(lambda: len(runs_of(store)["downstream"]) == 2)
    (first,) = runs_of(store)["upstream"]
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGKILL)
    seconds = _until(lambda: len(runs_of(store)["upstream"]) == 2)
    assert seconds < 60
    jobs.open_gate()
    answers = jobs.answer(2)
    assert all(process.join(30) is None and process.exitcode == 0 for process in waiting)

    runs = runs_of(store)
    dead, alive = runs["upstream"]
    assert dead.info.run_id == first.info.run_id
    assert "died" in dead.data.tags["error"]
    assert _statuses(runs)["upstream"] == ["KILLED", "FINISHED"]
    assert {answer["upstream"][0] for answer in answers} == {alive.info.run_id}
    finished = [run for run in runs["downstream"] if run.info.status == "FINISHED"]
    assert {run.data.tags["upstream_run_id"] for run in finished} == {alive.info.run_id}


@pytest.mark.parametrize("jobs", ["sqlite"], indirect=True)
def test_failing_stage_fails_its_waiters(jobs: Jobs, tmp_path: Path, runs_of: Fixture) -> None:
    """A stage fails: those who wait for it fail with its reason, train nothing and leave no run RUNNING."""
    jobs.start(1)
    _until(lambda: "downstream" in runs_of(tmp_path))
    for alpha in (0, 1):
        jobs.start(1, f"alpha={alpha}")
    _until(lambda: len(runs_of(tmp_path)["downstream"]) == 3)
    jobs.open_gate("out of luck")
    own, *others = sorted(jobs.answer(3), key=lambda error: isinstance(error, SharedStageError))
    assert str(own) == "out of luck"
    runs = runs_of(tmp_path)
    assert _statuses(runs) == {"upstream": ["FAILED"], "baseline": ["FAILED"], "downstream": ["FAILED"] * 3}
    for error in others:
        assert isinstance(error, SharedStageError)
        assert runs["upstream"][0].info.run_id in str(error)
        assert "out of luck" in str(error)
