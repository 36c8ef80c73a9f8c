"""How the tracking store is opened: a server or a database of its own, and the experiment in it."""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import Engine, event

from paramtransfer.interrupts import uninterrupted
from paramtransfer.tracking.address import sqlite_path, sqlite_uri
from paramtransfer.tracking.patience import AGAIN_SECONDS, WholeCalls, broken, is_fault, locked, patiently

_CONNECT_SECONDS = 10

_T = TypeVar("_T")


def connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client and the experiment's id, which is made where there is none.

    Raises:
        StoreError: the store cannot be reached or written.
    """
    try:
        if uri.startswith("sqlite:///"):
            return _open_sqlite(uri, experiment)
        return _in_time(partial(_open, uri, experiment, artifacts=None))
    except (MlflowException, OSError, sqlite3.Error) as error:
        raise broken(uri, error) from None


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


def _open_sqlite(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """SQLite's first use by several processes at once corrupts it, and so they take turns."""
    path = sqlite_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(FileLock(f"{path}.lock")):
        patiently(partial(_probe, path), uri=uri)
        if not path.stat().st_size:
            _create(path)
        with uninterrupted():
            client, experiment_id = _open(uri, experiment, (path.parent / "artifacts").absolute().as_uri())
    return cast(MlflowClient, WholeCalls(client)), experiment_id


def _probe(path: Path) -> None:
    """Fails where the file cannot be written."""
    with closing(sqlite3.connect(path, timeout=AGAIN_SECONDS)) as connection:
        connection.execute("BEGIN IMMEDIATE")


def _create(path: Path) -> None:
    """A new database, whole or not at all. MLflow's migrations would sync the disk a thousand times, for seconds."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    event.listen(Engine, "connect", _without_sync)
    try:
        MlflowClient(sqlite_uri(unfinished)).search_experiments()
    finally:
        event.remove(Engine, "connect", _without_sync)
    unfinished.replace(path)


def _without_sync(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def _in_time(connect: Callable[[], tuple[MlflowClient, str]]) -> tuple[MlflowClient, str]:
    """Tries for some seconds, so that a server may be restarted, and a wrong address is found soon.

    Whatever retries the user allows MLflow.
    """
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        outcome = _attempt(connect, deadline - time.monotonic())
        if not isinstance(outcome, Exception):
            return outcome
        is_away = isinstance(outcome, MlflowException) and is_fault(outcome) and _is_starting(str(outcome))
        if not is_away or time.monotonic() + AGAIN_SECONDS > deadline:
            raise OSError(str(outcome) or type(outcome).__name__)
        time.sleep(AGAIN_SECONDS)


def _is_starting(reason: str) -> bool:
    """A server that ends or starts refuses connections, or takes them and breaks them off."""
    return "refused" in reason or "Connection aborted" in reason


def _attempt(connect: Callable[[], _T], seconds: float) -> _T | Exception:
    outcome: list[_T | Exception] = []

    def attempt() -> None:
        try:
            outcome.append(connect())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else OSError(f"no answer in {_CONNECT_SECONDS} s")
