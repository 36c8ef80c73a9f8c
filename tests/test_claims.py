"""Jobs that need the same stage at the same moment: one trains it, and what happens to the others."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from filelock import FileLock
from mlflow_server import MlflowServer
from shared_jobs import PRELOADED, leave_runs, run_job

from paramtransfer.errors import LostRun, SharedStageError, StoreError
from paramtransfer.experiment import run as job_runs
from paramtransfer.tracking import claims, patience, signs_of_life
from paramtransfer.tracking import store as store_module
from paramtransfer.tracking.claims import Session
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


def _until(is_true: Callable[[], Any], seconds: float = 120) -> float:
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
    """The trainer of a shared stage is killed: another trains it, the third goes on waiting."""
    store = jobs.uri or tmp_path
    (trainer,) = jobs.start(1)
    _until(lambda: "downstream" in runs_of(store))
    waiting = jobs.start(2, "alpha=1")
    _until(lambda: len(runs_of(store)["downstream"]) == 2)
    (first,) = runs_of(store)["upstream"]
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGKILL)
    _until(lambda: len(runs_of(store)["upstream"]) == 2, seconds=180)
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
    """A stage fails: those who wait for it fail with its reason; what none has begun is KILLED, for others to do."""
    jobs.start(1)
    _until(lambda: "downstream" in runs_of(tmp_path))
    for alpha in (0, 1):
        jobs.start(1, f"alpha={alpha}")
    _until(lambda: len(runs_of(tmp_path)["downstream"]) == 3)
    jobs.open_gate("out of luck")
    own, *others = sorted(jobs.answer(3), key=lambda error: isinstance(error, SharedStageError))
    assert str(own) == "out of luck"
    runs = runs_of(tmp_path)
    assert _statuses(runs) == {"upstream": ["FAILED"], "baseline": ["KILLED"], "downstream": ["KILLED"] * 3}
    for error in others:
        assert isinstance(error, SharedStageError)
        assert runs["upstream"][0].info.run_id in str(error)
        assert "out of luck" in str(error)


# Whose a run is, with a server: each store stands for a process.


@pytest.fixture
def stores(lasting_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Store]:
    """Opens a store as another process would, with signs of life that are ten times as fast."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", lasting_server.uri)
    for name in ("_BEAT_SECONDS", "_LOOK_SECONDS", "_DEAD_SECONDS"):
        monkeypatch.setattr(signs_of_life, name, getattr(signs_of_life, name) / 10)
    return lambda: Store(tmp_path / "mlruns")


def _create(session: Session, fingerprint: str, **tags: str) -> str:
    tags = {"stage": "upstream", "fingerprint": fingerprint, **tags}
    return session.create(name="stage", tags=tags, params={}, files={})


def _leave(store: Store, fingerprint: str, status: str) -> str:
    """A run that has ended with a checkpoint."""
    with Session(store) as session:
        run_id = _create(session, fingerprint)
        folder = session.checkpoints(run_id)
        folder.mkdir(parents=True)
        (folder / "step-1.ckpt").touch()
        session.end(run_id, status)
    return run_id


def test_one_of_many_goes_on_with_a_run(stores: Callable[[], Store]) -> None:
    """Jobs that are started again at the same moment: one has the run, failed or not, and the others wait for it."""
    run_id = _leave(stores(), "restarted", "FAILED")
    sessions = [Session(stores()) for _ in range(4)]
    barrier, errors = threading.Barrier(len(sessions)), []

    def claim(session: Session) -> None:
        barrier.wait()
        try:
            assert session.claim("restarted", lambda: _create(session, "restarted"), among={}) == run_id
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=claim, args=[session]) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [session.owns(run_id) for session in sessions].count(True) == 1
    late = Session(stores())
    assert late.claim("restarted", lambda: _create(late, "restarted"), among={}) == run_id
    assert not late.owns(run_id)


@pytest.mark.parametrize("has_ended", [False, True], ids=["trains", "has ended"])
def test_a_run_that_was_begun_before_and_came_after(
    has_ended: bool, stores: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs create a run each; the first by its client's clock reaches the store when the other trains, or later."""
    monkeypatch.setattr(claims, "_CONTEST_SECONDS", 1.0)
    fingerprint = f"contested {has_ended}"
    trainer, late = Session(stores()), Session(stores())
    client = late.store.raw_client
    monkeypatch.setattr(client, "create_run", partial(client.create_run, start_time=1))

    def create() -> str:
        run_id = trainer.claim(fingerprint, lambda: _create(trainer, fingerprint), among={})
        if has_ended:
            trainer.end(run_id, "FINISHED")
        return _create(late, fingerprint)

    assert [late.claim(fingerprint, create, among={})] == trainer.opened
    assert late.opened == []


def test_a_job_that_slept_between_creating_and_training(stores: Callable[[], Store]) -> None:
    """Its run was taken for dead: it makes another one."""
    session, other = Session(stores()), stores()
    created: list[str] = []

    def create() -> str:
        created.append(_create(session, "slept"))
        if len(created) == 1:
            other.bury(created[0], "its process died")
        return created[-1]

    assert session.claim("slept", create, among={}) == created[1]
    assert session.opened == created[1:]
    assert other.run(session.opened[0]).status == "RUNNING"


def test_a_run_is_reopened_while_another_job_begins(
    stores: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that has the checkpoint and one on another machine that has not, the new run stays."""
    run_id = _leave(stores(), "elsewhere", "KILLED")
    here, there = Session(stores()), Session(stores())
    monkeypatch.setattr(there, "checkpoints", lambda _: Path("nowhere"))
    take = here.store.signs.take

    def take_late(run: Any) -> bool:
        if run.run_id == run_id and not there.opened:
            there.claim("elsewhere", lambda: _create(there, "elsewhere"), among={})
        return take(run)

    monkeypatch.setattr(here.store.signs, "take", take_late)
    assert [here.claim("elsewhere", lambda: _create(here, "elsewhere"), among={})] == there.opened
    assert here.opened == []
    assert here.store.run(run_id).status == "KILLED"


def test_a_creation_that_came_about_twice(stores: Callable[[], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first answer took so long that it was tried again: one of the two runs is taken back."""
    session = Session(stores())
    client = session.store.raw_client
    create_run = client.create_run
    monkeypatch.setattr(client, "create_run", lambda *args, **kwargs: [create_run(*args, **kwargs) for _ in "12"][1])
    assert [session.claim("twice", lambda: _create(session, "twice"), among={})] == session.opened
    assert [run.run_id for run in session.store.runs("tags.fingerprint = 'twice'")] == session.opened


@pytest.mark.parametrize("lives", [False, True], ids=["dead", "alive"])
def test_an_old_sign_is_looked_at_twice(
    lives: bool, stores: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What seems dead by this machine's clock may be a living trainer's whose server was away: no second sign, dead."""
    monkeypatch.setattr(signs_of_life, "_LONG_SECONDS", -1e9)
    trainer, watcher = stores(), Session(stores())
    run_id = _create(Session(trainer), "old")
    if not lives:
        trainer.signs.drop(run_id)
    watcher.bury_dead()
    assert watcher.store.run(run_id).status == "RUNNING"
    time.sleep(signs_of_life._DEAD_SECONDS)
    watcher.bury_dead()
    assert watcher.store.run(run_id).status == ("RUNNING" if lives else "KILLED")


def test_an_outage_is_no_death(stores: Callable[[], Store], lasting_server: MlflowServer) -> None:
    """A trainer that could not show itself while the server was away is alive; one that shows nothing then is not."""
    trainer, watcher = stores(), stores()
    session = Session(trainer)
    run_id = _create(session, "outage")

    def watch(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not watcher.signs.is_alive(watcher.run(run_id)):
                return False
            time.sleep(0.1)
        return True

    assert watch(2)
    lasting_server.kill()
    restart = threading.Timer(6, lasting_server.start)
    restart.start()
    assert watch(6 + 5)
    restart.join()
    assert watch(6)
    trainer.signs.drop(run_id)  # as if it died
    assert not watch(60)


@pytest.mark.parametrize("lost", ["taken over", "buried"])
def test_who_has_lost_a_run_stops_writing(lost: str, stores: Callable[[], Store], tmp_path: Path) -> None:
    """Neither points nor an end of the former owner arrive, nor what it has left on disk, and it is told."""
    before, after = stores(), stores()
    session = Session(before)
    run_id = _create(session, "taken")
    logger = session.begin(run_id)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.flush()
    if lost == "buried":
        assert after.bury(run_id, "its process died")
    else:
        assert after.signs.take(after.run(run_id))

    def go_on() -> None:
        for step in range(1, 3):  # its own thread may notice first
            logger.log_metrics({"loss": 2.0}, step)
            logger.flush()

    with pytest.raises(LostRun, match="another process"):
        go_on()
    session.end(run_id, "FAILED")
    assert after.history(run_id, "loss") == {0: 1.0}
    assert after.run(run_id).status == ("KILLED" if lost == "buried" else "RUNNING")
    assert not list((tmp_path / "mlruns" / "undelivered").iterdir())


def test_a_job_takes_the_result_of_who_has_its_run(
    compose_job: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that loses a run goes on with what the other process made of it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plain = job_runs.train

    def train(job: Any, stage: str, *args: Any) -> Any:
        result = plain(job, stage, *args)  # type: ignore[arg-type]
        if stage == "upstream":
            raise LostRun("it was the other process that finished")
        return result

    monkeypatch.setattr(job_runs, "train", train)
    results = job_runs.run(compose_job(*TINY), Store(tmp_path), tags={})
    assert {stage: result.reused for stage, result in results.items()} == {
        "upstream": True,
        "baseline": False,
        "downstream": False,
    }


@pytest.mark.parametrize("lives", [False, True], ids=["dead", "alive"])
def test_a_job_that_trains_anew_goes_on(lives: bool, stores: Callable[[], Store]) -> None:
    """With reuse=false, if the process before it was killed; it is watched until it has shown itself, or for long."""
    before, session = stores(), Session(stores())
    fingerprint = f"anew {lives}"
    run_id = _create(Session(before), fingerprint, attempt="first")
    if not lives:
        before.signs.drop(run_id)
    assert (session.attempt(fingerprint) == {"attempt": "first"}) == (not lives)


def test_a_run_that_ends_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its state and the one at its owner: it stays FINISHED, though it has a checkpoint."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store, others = Store(tmp_path), Store(tmp_path)
    trainer, session = Session(store), Session(others)
    run_id = _create(trainer, "ending")
    session.checkpoints(run_id).mkdir(parents=True)
    (session.checkpoints(run_id) / "step-1.ckpt").touch()
    is_alive = others.signs.is_alive

    def look_late(run: Any) -> bool:
        trainer.end(run_id, "FINISHED")
        return is_alive(run)

    monkeypatch.setattr(others.signs, "is_alive", look_late)
    assert session.claim("ending", lambda: _create(session, "ending"), among={}) == run_id
    assert store.run(run_id).status == "FINISHED"
    assert session.opened == []
    assert not list((tmp_path / "locks").iterdir())


def test_a_search_reads_all_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer that has several."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(store_module, "_PAGE", 2)
    store = Store(tmp_path)
    with Session(store) as session:
        created = [_create(session, "paged") for _ in range(5)]
        assert [run.run_id for run in store.runs("tags.fingerprint = 'paged'")] == created
        newest = store.runs("tags.fingerprint = 'paged'", newest_first=True, at_most=3)
        assert [run.run_id for run in newest] == created[:1:-1]


# What dead processes leave.


def test_long_names_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To what the column of an SQL server takes."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(tmp_path)
    with Session(store) as session:
        run_id = session.create(name="n" * 300, tags={}, params={}, files={})
        session.end(run_id, "FINISHED")
    assert store.run(run_id).name == "n" * 247 + "..."


def test_runs_of_dead_processes_are_ended(
    tmp_path: Path, compose_job: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed sweep's run and those of a killed job that trained anew; that one goes on as far as it had come."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    dying = PROCESSES.Process(target=leave_runs, args=([*TINY, "reuse=false"], tmp_path))
    dying.start()
    dying.join(60)
    assert dying.exitcode == -signal.SIGKILL
    store = Store(tmp_path)
    stages = [(run.tags["stage"], run.status) for run in store.runs("tags.stage != ''")]
    assert sorted(stages) == [
        ("baseline", "RUNNING"),
        ("downstream", "RUNNING"),
        ("sweep", "RUNNING"),
        ("upstream", "FINISHED"),
    ]
    results = job_runs.run(compose_job(*TINY, "reuse=false"), store, tags={})
    assert [results[stage].reused for stage in ("upstream", "baseline", "downstream")] == [True, False, False]
    assert {run.status for run in store.runs("tags.stage != ''")} == {"FINISHED", "KILLED"}
    again = job_runs.run(compose_job(*TINY, "reuse=false"), store, tags={})
    assert not any(result.reused for result in again.values())


def test_file_store_in_use_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single job is refused, too, and the sentence says what to do if that job is dead."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(tmp_path)
    with Session(store) as session:
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        run_id = _create(session, "f")
        monkeypatch.undo()
        with pytest.raises(StoreError, match=rf"{run_id}.*elsewhere.*one machine.*remove the file"):
            Session(Store(tmp_path)).bury_dead()
        session.end(run_id, "FINISHED")
        Session(Store(tmp_path)).bury_dead()


def test_stopped_process_that_holds_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Others say what they wait for, and do not wait for ever."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(patience, "_SAY_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(patience, "_LOCK_SECONDS", 0.1)
    store = Store(tmp_path)
    with FileLock(tmp_path / "mlflow.db.lock"), pytest.raises(StoreError, match=r"mlflow\.db\.lock.*stopped"):
        Session(store).bury_dead()
    assert "held by another process" in caplog.text
