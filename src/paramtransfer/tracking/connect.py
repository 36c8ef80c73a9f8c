"""How the tracking store is reached: an address without secrets, patience where it is away, errors of one sentence."""

import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import Engine, event

from paramtransfer.errors import StoreError
from paramtransfer.interrupts import uninterrupted
from paramtransfer.tracking.address import occurrences, sqlite_path, sqlite_uri

PATIENCE_SECONDS = 60.0
"""How long a call waits for a store that is away or locked."""
_CONNECT_SECONDS = 10
_SAY_AFTER_SECONDS = 5.0
_AGAIN_SECONDS = 1.0
_LOCK_SECONDS = 600.0

_SECRET = re.compile(
    r"""(\b[\w-]*(?:passwor[dt]|passwd|secret|token|api_?key|access_?key|credential)[\w-]*)  # a name that says it
    (=(?=[^\s=])["']?|["']?\s*[=:]\s*["']|["']?:\s*(?=\S*\d))                               # is given
    [^\s"',;)\]}]{4,}                                                                      # a value
    """,
    re.IGNORECASE | re.VERBOSE,
)

_T = TypeVar("_T")

log = logging.getLogger(__name__)


def without_secrets(text: str) -> str:
    """The text, with *** for every password and token that the environment holds for the store."""
    parts = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    queried = [value for key, value in parse_qsl(parts.query) if "pass" in key.lower() or "token" in key.lower()]
    named = [os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("PASSWORD", "TOKEN")]
    for secret in filter(None, [parts.password or parts.username, *queried, *named]):
        for spelling in (secret, unquote(secret), quote(secret, safe="")):
            text = occurrences(spelling).sub("***", text)
    return text


def masked(text: str) -> str:
    """The same, and for what by its looks is a password, a token or a key."""
    text = re.sub(r"(\w://[^\s/:@'\"]*:)[^\s/@'\"]+@", r"\1***@", without_secrets(text))
    return _SECRET.sub(r"\1\2***", text)


def reason_of(error: BaseException) -> str:
    """An error in one line without secrets."""
    if isinstance(error, StoreError):
        return error.reason
    text = str(error).strip()
    # What the layers of libraries have wrapped.
    inner = re.search(r"Max retries exceeded .*?(\[Errno -?\d+\] [\w ]+|\w+Error\(\d+, '[\w ]+'\))", text)
    inner = inner or re.search(r"(\(sqlite3\.\w+\) .+)", text)
    return without_secrets(inner[1] if inner else (text.splitlines() or [type(error).__name__])[0])


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
        raise _broken(uri, error) from None


def patiently(call: Callable[[], _T], *, uri: str, deadline: float | None = None) -> _T:
    """What a call to the store returns; where the store is away or locked, it is called again for a minute.

    Args:
        call: may be repeated.
        uri: the store, for messages.
        deadline: on the monotonic clock, if not in a minute.

    Raises:
        StoreError: the store stays away or is broken. What it refuses is raised as it is.
    """
    deadline = deadline or time.monotonic() + PATIENCE_SECONDS
    with _saying(uri):
        while True:
            try:
                return call()
            except (MlflowException, sqlite3.OperationalError) as error:
                if not _is_fault(error):
                    raise
                if not _may_pass(error) or time.monotonic() > deadline:
                    raise _broken(uri, error) from None
            time.sleep(_AGAIN_SECONDS)


class WholeCalls:
    """An MLflow client whose calls a signal does not cut short.

    What the frames of an interrupted call still hold of SQLite, were it a cursor, would lock it for this process, too.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with uninterrupted():
                return method(*args, **kwargs)

        return call


class PatientClient:
    """An MLflow client all of whose calls are made `patiently`; none of those used may depend on being made once."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self._uri = uri

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: patiently(partial(method, *args, **kwargs), uri=self._uri)


def _is_fault(error: Exception) -> bool:
    """Whether the store, not what it was asked for, is the reason of an error."""
    if not isinstance(error, MlflowException):
        return True
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
    return status >= 500 or status == 429


def _may_pass(error: Exception) -> bool:
    """Whether waiting may help: a full disk or a read-only file is told at once."""
    text = str(error)
    return "is locked" in text if isinstance(error, sqlite3.Error) or "(sqlite3." in text else True


def _broken(uri: str, error: Exception) -> StoreError:
    reason = reason_of(error)
    return StoreError(
        f"MLFLOW_TRACKING_URI={public(uri)}: the tracking store cannot be reached or written "
        f"({reason}); it must be a running MLflow server or a writable file",
        reason,
    )


def public(uri: str) -> str:
    """The URI without password and query."""
    return without_secrets(uri.partition("?")[0])


@contextmanager
def _saying(uri: str) -> Iterator[None]:
    """Say what the block waits for, if it takes some seconds."""
    why = "locked by another process" if uri.startswith("sqlite:") else "which does not answer"
    timer = threading.Timer(_SAY_AFTER_SECONDS, log.warning, [f"waiting for {public(uri)}, {why}"])
    timer.daemon = True
    try:
        timer.start()
        yield
    finally:
        timer.cancel()


@contextmanager
def locked(lock: FileLock) -> Iterator[None]:
    """Hold a lock; say what is waited for, if it takes some seconds.

    Raises:
        StoreError: whoever holds it has not let go for ten minutes.
    """
    try:
        lock.acquire(timeout=_SAY_AFTER_SECONDS)
    except Timeout:
        log.warning(f"waiting for {lock.lock_file}, held by another process")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise StoreError(
                f"{lock.lock_file}: must not be held for {_LOCK_SECONDS / 60:.0f} minutes by one process, which may be "
                f"stopped: end it (fuser {lock.lock_file} names it)"
            ) from None
    try:
        yield
    finally:
        lock.release()


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
    with closing(sqlite3.connect(path, timeout=_AGAIN_SECONDS)) as connection:
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
        is_away = isinstance(outcome, MlflowException) and _is_fault(outcome) and "refused" in str(outcome)
        if not is_away or time.monotonic() + _AGAIN_SECONDS > deadline:
            raise OSError(str(outcome) or type(outcome).__name__)
        time.sleep(_AGAIN_SECONDS)


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
