"""Waiting for a store that is away or locked: how long, how it is said, and what no waiting helps."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from paramtransfer.errors import StoreError
from paramtransfer.interrupts import uninterrupted
from paramtransfer.tracking.masking import public, reason_of

PATIENCE_SECONDS = 60.0
"""How long a call waits for a store that is away or locked."""
AGAIN_SECONDS = 1.0
"""Between two tries."""
_SAY_AFTER_SECONDS = 5.0
_LOCK_SECONDS = 600.0

_T = TypeVar("_T")

log = logging.getLogger(__name__)


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
                if not is_fault(error):
                    raise
                if not _may_pass(error) or time.monotonic() > deadline:
                    raise broken(uri, error) from None
            time.sleep(AGAIN_SECONDS)


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


def is_fault(error: Exception) -> bool:
    """Whether the store, not what it was asked for, is the reason of an error."""
    if not isinstance(error, MlflowException):
        return True
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
    return status >= 500 or status == 429


def _may_pass(error: Exception) -> bool:
    """Whether waiting may help: a full disk or a read-only file is told at once."""
    text = str(error)
    return "is locked" in text if isinstance(error, sqlite3.Error) or "(sqlite3." in text else True


def broken(uri: str, error: Exception) -> StoreError:
    reason = reason_of(error)
    return StoreError(
        f"MLFLOW_TRACKING_URI={public(uri)}: the tracking store cannot be reached or written "
        f"({reason}); it must be a running MLflow server or a writable file",
        reason,
    )


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
