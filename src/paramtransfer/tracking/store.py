"""The MLflow store: runs are found by fingerprint, created, and closed whatever happens."""

import json
import logging
import os
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Read when MLflow is imported: nothing is sent anywhere but to the tracking store, and no bar for files of a few kB.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import torch
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from paramtransfer.tracking import provenance
from paramtransfer.tracking.claims import FileSigns, Heartbeats, SignsOfLife
from paramtransfer.tracking.logger import BufferedLogger

_CONNECT_SECONDS = 10
_RESULT = "result.pt"

log = logging.getLogger(__name__)


class StoreError(RuntimeError):
    """The tracking store cannot be reached or written; the message is one sentence without any password."""


@cache
def open_store(folder: Path) -> "Store":
    """The store of this process; see `Store`."""
    return Store(folder)


class Store:
    """One MLflow experiment in one tracking store.

    Args:
        folder: where the default store lies, if `MLFLOW_TRACKING_URI` names no other.

    Raises:
        StoreError: the store cannot be reached or written.
    """

    def __init__(self, folder: Path) -> None:
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "paramtransfer")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.signs: SignsOfLife
        self._unreadable: set[str] = set()
        try:
            if self.is_file:
                path = Path(self.uri.removeprefix("sqlite:///"))
                lock = FileLock(f"{path}.lock")
                self.client, self.experiment_id = _open_sqlite(self.uri, path, lock, name)
                self.signs = FileSigns(path.parent / "locks", lock)
            else:
                self.client, self.experiment_id = _in_time(lambda: _open(self.uri, name, artifacts=None))
                self.signs = Heartbeats(self.client)
        except (MlflowException, OSError, sqlite3.Error) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StoreError(
                f"MLFLOW_TRACKING_URI={_public(self.uri)}: the tracking store cannot be reached or written "
                f"({_without_password(reason, self.uri)}); it must be a running MLflow server or a writable file"
            ) from None

    @property
    def is_file(self) -> bool:
        """Whether the store is a SQLite file, which serves the processes of one machine."""
        return self.uri.startswith("sqlite:///")

    @property
    def public_uri(self) -> str:
        """The URI without password and query."""
        return _public(self.uri)

    def runs(self, condition: str) -> list[Run]:
        """The runs that meet a condition in MLflow's search language, oldest first."""
        return list(self.client.search_runs([self.experiment_id], condition, order_by=["attributes.start_time ASC"]))

    def is_usable(self, run: Run) -> bool:
        """Whether a run has finished, as far as is known with a result that can be read."""
        return run.info.status == "FINISHED" and run.info.run_id not in self._unreadable

    def load(self, run_id: str) -> tuple[Run, dict[str, Any]] | None:
        """A finished run and its result; None, and a line that says why, if the result cannot be read."""
        try:
            return self.client.get_run(run_id), self._load(run_id)
        except Exception as error:  # whatever is wrong with the file, the answer is to train again
            self._unreadable.add(run_id)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning(f"the weights of run {run_id} cannot be read ({reason}): it is trained again")
            return None

    def state(self, run_id: str) -> dict[str, torch.Tensor]:
        """The weights that a run keeps.

        Raises:
            StoreError: there is no such run, or it keeps none.
        """
        try:
            state: dict[str, torch.Tensor] = self._load(run_id)["state"]
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(f"run {run_id}: its weights cannot be read ({reason})") from error
        return state

    def _load(self, run_id: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(run_id, _RESULT, folder)
            result: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return result

    def create(
        self,
        opened: list[str],
        *,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        files: Mapping[str, str],
    ) -> str:
        """A new run, with where it comes from, its parameters and some text artifacts; returns its id.

        The id joins `opened` as soon as the run exists, so that `closing` finds it whatever happens then.
        """
        tags = {"mlflow.source.git.commit": provenance.git_commit(), "mlflow.source.type": "LOCAL", **tags}
        with self.signs.exclusive(), _uninterrupted():
            run_id: str = self.client.create_run(self.experiment_id, tags=dict(tags), run_name=name).info.run_id
            opened.append(run_id)
            self.signs.hold(run_id)
        self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        provenance_files = {
            "git_commit.txt": provenance.git_commit() + "\n",
            "git_diff.patch": provenance.git_diff(),
            "package_versions.txt": provenance.package_versions(),
        }
        self.write_files(run_id, {**provenance_files, **files})
        return run_id

    def withdraw(self, opened: list[str], run_id: str) -> None:
        """Take a new run back, of which nothing has come."""
        with _uninterrupted():
            self.client.delete_run(run_id)
            self.signs.drop(run_id)
            opened.remove(run_id)

    def write_files(self, run_id: str, files: Mapping[str, str | bytes], folder: str | None = None) -> None:
        """Artifacts from their contents."""
        with tempfile.TemporaryDirectory() as local:
            for name, content in files.items():
                path = Path(local) / name
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
            self.client.log_artifacts(run_id, local, folder)

    def read_files(self, run_id: str, folder: str | None = None, suffix: str = "") -> dict[str, str]:
        """The text artifacts of one folder of a run with that suffix, by name."""
        items = [item.path for item in self.client.list_artifacts(run_id, folder) if item.path.endswith(suffix)]
        with tempfile.TemporaryDirectory() as local:
            return {
                Path(item).name: Path(self.client.download_artifacts(run_id, item, local)).read_text() for item in items
            }

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags on a run."""
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def logger(self, run_id: str) -> BufferedLogger:
        """A Lightning logger for one run."""
        return BufferedLogger(self.client, run_id)

    def finish(
        self, run_id: str, *, metrics: Mapping[str, float], result: dict[str, Any], files: Mapping[str, str]
    ) -> None:
        """Write what a stage ends with, then mark its run FINISHED."""
        with tempfile.TemporaryDirectory() as folder:
            torch.save(result, Path(folder) / _RESULT)
            for name, content in files.items():
                (Path(folder) / name).write_text(content)
            self.client.log_artifacts(run_id, folder)
        now = _now()
        self.client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()])
        self.client.set_terminated(run_id)
        self.signs.drop(run_id)

    @contextmanager
    def closing(self) -> Iterator[list[str]]:
        """Runs opened in the block do not stay RUNNING if an exception ends it: they are FAILED, or KILLED if told."""
        run_ids: list[str] = []
        try:
            yield run_ids
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            with _uninterrupted():
                for run_id in run_ids:
                    self.close(run_id, status, f"{type(error).__name__}: {error}")
            raise

    def close(self, run_id: str, status: str, reason: str) -> None:
        """End a run that is still RUNNING."""
        try:
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.tag(run_id, {"error": reason[:5000]})
                self.client.set_terminated(run_id, status)
            self.signs.drop(run_id)
        except MlflowException as error:  # must hide neither the reason nor the other runs
            log.warning(f"run {run_id} cannot be closed: {str(error).splitlines()[0]}")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM that arrive in the block wait for its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _now() -> int:
    return time.time_ns() // 1_000_000


def _open(uri: str, experiment: str, artifacts: str | None) -> tuple[MlflowClient, str]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise OSError(f"its experiment {experiment} is deleted: restore it or set MLFLOW_EXPERIMENT_NAME")
        return client, found.experiment_id
    try:
        return client, client.create_experiment(experiment, artifact_location=artifacts)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _open(uri, experiment, artifacts)  # another process was faster


def _open_sqlite(uri: str, path: Path, lock: FileLock, experiment: str) -> tuple[MlflowClient, str]:
    """SQLite's first use by several processes at once corrupts it, and so they take turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock:
        probe = sqlite3.connect(path, timeout=_CONNECT_SECONDS)
        try:
            probe.execute("BEGIN IMMEDIATE")
        finally:
            probe.close()
        return _open(uri, experiment, artifacts=(path.parent / "artifacts").absolute().as_uri())


def _in_time(connect: Callable[[], tuple[MlflowClient, str]]) -> tuple[MlflowClient, str]:
    """One try: MLflow's own retries would go on for minutes."""
    outcome: list[Any] = []

    def attempt() -> None:
        try:
            outcome.append(connect())
        except Exception as error:
            outcome.append(error)

    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_CONNECT_SECONDS)}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    if not outcome:
        raise OSError(f"no answer in {_CONNECT_SECONDS} s")
    if isinstance(outcome[0], Exception):
        raise OSError(str(outcome[0]) or type(outcome[0]).__name__)
    client: tuple[MlflowClient, str] = outcome[0]
    return client


def _public(uri: str) -> str:
    """The URI without password and query."""
    return _without_password(uri.partition("?")[0], uri)


def _without_password(text: str, uri: str) -> str:
    password = urlsplit(uri).password
    return text.replace(password, "***") if password else text


def as_json(content: Any) -> str:
    """Readable JSON."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
