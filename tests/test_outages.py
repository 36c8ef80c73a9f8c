"""The store goes away, is locked, full or read-only while a job runs: nothing is lost, sent twice or half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from filelock import FileLock
from mlflow_server import MlflowServer, proxy

from paramtransfer.errors import StoreError, Undelivered, Unreadable
from paramtransfer.tracking import connect
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.results import Result
from paramtransfer.tracking.store import Store
from paramtransfer.tracking.undelivered_folder import KeptFolder, remove_remains

STAGES = {"upstream", "baseline", "downstream"}
RESULT = Result(state={"weight": torch.arange(3)}, hits_RN=torch.ones(2, 5, dtype=torch.bool))

Fixture = Callable[..., Any]


@pytest.fixture
def open_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """Opens a store as a process would that is started in the test's folder."""

    def open_store(uri: str | None = None, folder: Path = tmp_path / "mlruns") -> Store:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            monkeypatch.delenv(name, raising=False)
        if uri is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return Store(folder)

    return open_store


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One SQLite store for tests that leave it whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Store(tmp_path_factory.mktemp("shared"))


def _create(session: Session, fingerprint: str = "f") -> str:
    return session.create(name="stage", tags={"stage": "upstream", "fingerprint": fingerprint}, params={}, files={})


def _undelivered(folder: Path) -> list[Path]:
    return sorted((folder / "mlruns" / "undelivered").glob("*.*"))


def _status(store: Store, run_id: str) -> str:
    return str(store.run(run_id).status)


def _wait_until(condition: Callable[[], Any], process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _losing(path: str, to_lose: list[bool], heard: list[Any]) -> Callable[[str, bytes, bytes], bytes | None]:
    """Loses one answer to a request for that path for each item of the list; all that the server heard is kept."""

    def answer(requested: str, body: bytes, content: bytes) -> bytes | None:
        if path in requested:
            heard.append(json.loads(body))
            if to_lose:
                to_lose.pop()
                return None
        return content

    return answer


# A server that is killed.


def test_metrics_of_a_restarted_server_arrive_once_and_in_order(
    lasting_server: MlflowServer, tmp_path: Path, open_store: Fixture
) -> None:
    """Answers are lost, then the server is killed and comes back: logging never waits, no point is missing or twice."""
    to_lose: list[bool] = []
    heard: list[Any] = []
    with proxy(lasting_server, _losing("/runs/log-batch", to_lose, heard)) as uri:
        store = open_store(uri)
        with Session(store) as session:
            run_id = _create(session)
            logger = store.logger(run_id)
            longest = 0.0
            steps = 0

            def train_until(condition: Callable[[], Any]) -> None:
                nonlocal steps, longest
                while not condition():
                    started = time.monotonic()
                    logger.log_metrics({"loss": 1 / (1 + steps), "other": float("nan")}, steps)
                    longest = max(longest, time.monotonic() - started)
                    steps += 1
                    time.sleep(0.002)

            to_lose += [True, True]
            train_until(lambda: not to_lose)
            lasting_server.kill()
            train_until(lambda: any((folder / "points.jsonl").exists() for folder in _undelivered(tmp_path)))
            restart = threading.Thread(target=lasting_server.start)
            restart.start()
            train_until(lambda: not restart.is_alive())
            session.finish(run_id, RESULT, metrics={"test/acc": 0.5}, files={"transfer.json": "{}"})
            store.settle()
        assert longest < 0.5
        points = [(point["key"], point["step"]) for batch in heard for point in batch.get("metrics", ())]
        assert len(points) == len(set(points)) == 2 * steps + 1  # no point was sent again that had arrived
        for key in ("loss", "other"):
            query = f"SELECT step FROM metrics WHERE run_uuid = '{run_id}' AND key = '{key}' ORDER BY rowid"
            assert [step for (step,) in lasting_server.rows(query)] == list(range(steps))
        assert _status(store, run_id) == "FINISHED"
        assert torch.equal(store.result(run_id).state["weight"], RESULT.state["weight"])
        assert torch.equal(store.result(run_id).hits_RN, RESULT.hits_RN)
        assert _undelivered(tmp_path) == []


def test_lost_answer_to_a_creation_makes_no_second_run(lasting_server: MlflowServer, open_store: Fixture) -> None:
    """A run that exists though nothing said so is the one that goes on."""
    with proxy(lasting_server, _losing("/runs/create", [True], [])) as uri:
        store = open_store(uri)
        with Session(store) as session:
            run_id = _create(session, "created once")
            session.end(run_id, "FINISHED")
        query = "SELECT run_uuid FROM tags WHERE key = 'fingerprint' AND value = 'created once'"
        assert lasting_server.rows(query) == [(run_id,)]


def test_a_job_starts_while_the_server_does(
    lasting_server: MlflowServer, open_store: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is refused is tried again for some seconds."""
    monkeypatch.setattr(connect, "_CONNECT_SECONDS", 120)
    lasting_server.kill()
    restart = threading.Timer(2, lasting_server.start)
    restart.start()
    assert open_store(lasting_server.uri).experiment_id
    restart.join()


KILLED_IN_AN_OUTAGE = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from paramtransfer.tracking.outbox import Outbox
from paramtransfer.tracking.signs_of_life import Heartbeats

uri, run_id, folder = sys.argv[1:]
client = MlflowClient(uri)
outbox = Outbox(client, uri, run_id, Path(folder), Heartbeats(client, uri))
for step in range(2000):
    outbox.log({"loss": step}, step)
    if step == 999:
        assert outbox.try_to_deliver()
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
outbox._client = MlflowClient("http://127.0.0.1:9")
assert not outbox.try_to_deliver()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_job_killed_in_an_outage_leaves_its_metrics(
    lasting_server: MlflowServer, tmp_path: Path, open_store: Fixture
) -> None:
    """What a killed process could not send, a line cut short included, is delivered by the next one, once."""
    store = open_store(lasting_server.uri)
    with Session(store) as session:
        run_id = _create(session)
        folder = tmp_path / "mlruns" / "undelivered" / f"{run_id}.1"
        command = [sys.executable, "-c", KILLED_IN_AN_OUTAGE, lasting_server.uri, run_id, str(folder)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert process.returncode == -signal.SIGKILL, process.stderr
        with (folder / "points.jsonl").open("a") as file:
            file.write('\n["loss", 2')
        store.deliver_left()
        session.end(run_id, "FINISHED")
    query = f"SELECT step FROM metrics WHERE run_uuid = '{run_id}' AND key = 'loss' ORDER BY rowid"
    assert [step for (step,) in lasting_server.rows(query)] == list(range(2000))
    assert _undelivered(tmp_path) == []


IMPATIENT = "from paramtransfer.tracking import patience; patience.PATIENCE_SECONDS = 1; "


def test_server_that_stays_away(lasting_server: MlflowServer, tmp_path: Path, runs_of: Fixture) -> None:
    """The job finishes, says where its results are, and the same command delivers them before it looks for runs."""
    experiment = "away"
    more = ("task.upstream.steps=6000", "task.curve_points=1000", "task.num_test=20000", "replicates=4")
    command = [sys.executable, "-c", IMPATIENT + "from paramtransfer.cli.main import main; main()", *TINY, *more]
    environment = {**os.environ, "COLUMNS": "250", "MLFLOW_TRACKING_URI": lasting_server.uri}
    environment["MLFLOW_EXPERIMENT_NAME"] = experiment

    def start() -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)

    with start() as process:
        query = "SELECT 1 FROM metrics JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)"
        _wait_until(lambda: lasting_server.rows(f"{query} WHERE experiments.name = '{experiment}' LIMIT 1"), process)
        lasting_server.kill()
        stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == os.EX_TEMPFAIL, (stdout, stderr)
    assert "gain (paired)" in stdout
    assert "Traceback" not in stdout + stderr
    sentence = stderr.strip().splitlines()[-1]
    assert f"kept in {tmp_path / 'mlruns' / 'undelivered'}" in sentence
    assert "the same command" in sentence
    assert len(list(tmp_path.glob("mlruns/undelivered/*/artifacts/result.pt"))) == 3

    lasting_server.start()
    assert {run.info.status for (run,) in runs_of(lasting_server.uri, experiment).values()} == {"RUNNING"}
    with start() as process:
        stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 0, stderr
    assert stdout.count("reused") == 3
    assert _undelivered(tmp_path) == []
    runs = runs_of(lasting_server.uri, experiment)
    assert {stage: [run.info.status for run in runs[stage]] for stage in runs} == {s: ["FINISHED"] for s in STAGES}
    query = f"SELECT step FROM metrics WHERE run_uuid = '{runs['upstream'][0].info.run_id}' AND key = 'train/loss'"
    assert [step for (step,) in lasting_server.rows(f"{query} ORDER BY rowid")] == list(range(6, 6001, 6))


# A store that is locked, full or read-only.

LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_store_locked_by_another_process(tmp_path: Path, open_store: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    """For 30 s: a job that starts waits and says for what; one that trains goes on, and its results arrive."""
    store = open_store()
    with Session(store) as session:
        run_id = _create(session)
        command = [sys.executable, "-c", LOCK, str(tmp_path / "mlruns" / "mlflow.db"), "30"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            started = time.monotonic()
            opening = threading.Thread(target=open_store)
            opening.start()
            logger = store.logger(run_id)
            for step in range(1000):
                logger.log_metrics({"loss": 0.0}, step)
            assert time.monotonic() - started < 5
            session.finish(run_id, RESULT, metrics={}, files={})
            store.settle()
            opening.join(60)
        assert time.monotonic() - started > 29
    assert not opening.is_alive()
    (message,) = {record.message for record in caplog.records if "waiting" in record.message}
    assert message == f"waiting for {store.uri}, locked by another process"
    assert _status(store, run_id) == "FINISHED"
    assert list(store.history(run_id, "loss")) == list(range(1000))


# What a machine that died has left, and runs that are deleted.


def _leave(store: Store, run_id: str, **files: str) -> Path:
    """What a process has left of a run."""
    kept = KeptFolder(store.folder / "undelivered" / f"{run_id}.left")
    kept.make(f"{store.public_uri}\n")
    for name, text in files.items():
        (kept.path / name.replace("_", ".")).write_text(text)
    kept.leave()
    return kept.path


@pytest.mark.parametrize(
    ("files", "passed_over"),
    [
        ({"end_json": ""}, ["end.json"]),
        ({"end_json": '{"status": "FIN'}, ["end.json"]),
        ({"end_json": '{"status": "FINISHED"}'}, ["end.json"]),
        ({"points_jsonl": '\n["loss", 1.0, 5, 0]\n["loss", 2.0]\n7\n["loss", "x", 5, 1]\n["los'}, ["points.jsonl"]),
    ],
)
def test_leftovers_that_cannot_be_read(
    files: dict[str, str],
    passed_over: list[str],
    tmp_path: Path,
    shared_store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Are passed over with a line, and the rest is delivered."""
    with Session(shared_store) as session:
        run_id = _create(session)
        folder = _leave(shared_store, run_id, **files)
        shared_store.deliver_left()
        for name in passed_over:
            assert f"{folder / name}" in caplog.text
        assert not folder.exists()
        assert shared_store.history(run_id, "loss") == ({0: 1.0} if "points_jsonl" in files else {})
        session.end(run_id, "FINISHED")
    assert _status(shared_store, run_id) == "FINISHED"


def test_folder_and_lock_are_one(tmp_path: Path) -> None:
    """Two threads make and remove what a third one looks through: none meets half a folder, and nothing stays."""
    errors: list[Exception] = []
    over = threading.Event()

    def cycle() -> None:
        try:
            for number in range(100):
                kept = KeptFolder(tmp_path / f"{threading.get_ident()}.{number}")
                kept.make("uri")
                kept.write("end.json", lambda path: path.write_text("{}"))
                kept.remove()
        except OSError as error:
            errors.append(error)

    def look() -> None:
        try:
            while not over.is_set():
                remove_remains(tmp_path)
                for path in tmp_path.glob("*.*"):
                    kept = KeptFolder(path)
                    if kept.take() is not None:
                        errors.append(FileExistsError(path))
                    kept.leave()
        except OSError as error:
            errors.append(error)

    cycling = [threading.Thread(target=cycle) for _ in range(2)]
    looking = threading.Thread(target=look)
    for thread in (looking, *cycling):
        thread.start()
    for thread in cycling:
        thread.join()
    over.set()
    looking.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_is_delivered_before_others_look(shared_store: Store) -> None:
    """While one job delivers what a dead one left, no other takes the run for a dead one's that has not ended."""
    dead = Session(shared_store)
    run_id = _create(dead)
    folder = _leave(shared_store, run_id, end_json='{"status": "FINISHED", "tags": {}, "time": 1}')
    claiming = threading.Thread(target=shared_store.deliver_left)
    with FileLock(shared_store.folder / "mlflow.db.lock"):
        claiming.start()
        time.sleep(0.5)
        assert folder.exists()
    claiming.join()
    assert not folder.exists()
    assert _status(shared_store, run_id) == "FINISHED"


def test_result_that_is_gone(lasting_server: MlflowServer, open_store: Fixture) -> None:
    """From a server's folder: the stage can be trained again, nobody waits for a server that seems to fail."""
    store = open_store(lasting_server.uri)
    with Session(store) as session:
        run_id = _create(session)
        session.finish(run_id, RESULT, metrics={}, files={})
        store.result(run_id)
        (weights,) = lasting_server.folder.rglob(f"{run_id}/artifacts/result.pt")
        weights.unlink()
        started = time.monotonic()
        with pytest.raises(Unreadable, match=r"its weights cannot be read \(there is no result\.pt\)"):
            store.result(run_id)
        assert time.monotonic() < started + 10


def test_run_deleted_while_it_trains(shared_store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once; nothing is kept or promised, and the training goes on."""
    with Session(shared_store) as session:
        run_id = _create(session)
        logger = session.begin(run_id)
        logger.log_metrics({"loss": 1.0}, 0)
        logger.flush()
        shared_store.client.delete_run(run_id)
        for step in range(1, 4):
            logger.log_metrics({"loss": 1.0}, step)
            logger.flush()
        shared_store.tag(run_id, {"a": "b"})
        session.finish(run_id, RESULT, metrics={}, files={})
    shared_store.settle()
    assert [record.message for record in caplog.records] == [f"run {run_id} was deleted; what it logs here is dropped"]
    assert list((shared_store.folder / "undelivered").iterdir()) == []


def test_full_disk(tmp_path: Path, open_store: Fixture) -> None:
    """One sentence, nothing half-written; the run is closed as soon as the store can be written again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]).returncode:
        pytest.skip("a full disk needs a small tmpfs, which only root can mount here")
    try:
        store = open_store(folder=disk)
        failure = None
        try:
            with Session(store) as session:
                run_id = _create(session)
                session.begin(run_id)
                (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 8192))
                session.finish(run_id, replace(RESULT, state={"weight": torch.zeros(10**5)}), metrics={}, files={})
        except StoreError as error:
            failure = str(error)
        assert re.fullmatch(rf"{disk}/undelivered/{run_id}\.\w+: cannot be written \(.+\)", str(failure))
        assert not list(disk.rglob("result.pt"))
        (disk / "filler").unlink()
        store.settle()
        assert _status(store, run_id) == "FAILED"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_artifacts_that_cannot_be_written(tmp_path: Path, open_store: Fixture) -> None:
    """At the start the job is refused; later its results are kept, and delivered when there is a place again."""
    store = open_store()
    artifacts = tmp_path / "mlruns" / "artifacts"
    artifacts.touch()  # no folder can be made here, not even by root
    with (
        pytest.raises(StoreError, match=r"^run \w+: its artifacts cannot be written \(.*\)$"),
        Session(store) as session,
    ):
        _create(session)
    assert [_status(store, run_id) for run_id in session.opened] == ["KILLED"]
    assert _undelivered(tmp_path) == []

    artifacts.unlink()
    with Session(store) as session:
        run_id = _create(session)
        artifacts.rename(tmp_path / "away")
        artifacts.touch()
        session.finish(run_id, RESULT, metrics={"test/acc": 0.5}, files={})
    with pytest.raises(Undelivered, match=str(tmp_path / "mlruns" / "undelivered")):
        store.settle()
    assert _status(store, run_id) == "FAILED"
    assert "not delivered" in store.run(run_id).tags["error"]

    artifacts.unlink()
    (tmp_path / "away").rename(artifacts)
    store.settle()
    assert _status(store, run_id) == "FINISHED"
    assert "error" not in store.run(run_id).tags
    assert torch.equal(store.result(run_id).state["weight"], RESULT.state["weight"])
