"""Signs of life: which RUNNING runs have a living process behind them.

Beside a SQLite store the sign is a lock on a file, which the system drops when its holder dies. A tracking server has
no files in common with its clients; there the sign is a tag that a thread refreshes.
"""

import logging
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from paramtransfer.tracking.runs import RunRecord

_HEARTBEAT = "heartbeat"
_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 45.0  # a process that has not refreshed its runs for so long has died
_LOCK_SECONDS = 2.0

log = logging.getLogger(__name__)


class SignsOfLife(Protocol):
    """Which RUNNING runs have a living process behind them."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Keeps other jobs from claiming, where that can be done."""

    def hold(self, run_id: str) -> None:
        """From now on, until `drop` or the end of this process, the run is alive."""

    def drop(self, run_id: str) -> None:
        """The run has ended."""

    def is_alive(self, run: RunRecord) -> bool:
        """Whether a process holds the run."""


class FileSigns:
    """A locked file for each run, in one folder."""

    def __init__(self, folder: Path, claiming: FileLock) -> None:
        self._folder = folder
        self._claiming = claiming
        self._held: dict[str, FileLock] = {}

    def exclusive(self) -> AbstractContextManager[object]:
        return self._claiming

    def hold(self, run_id: str) -> None:
        self._folder.mkdir(exist_ok=True)
        self._held[run_id] = FileLock(self._path(run_id))
        self._held[run_id].acquire(timeout=_LOCK_SECONDS)

    def drop(self, run_id: str) -> None:
        if run_id in self._held:
            self._path(run_id).unlink(missing_ok=True)
            self._held.pop(run_id).release()

    def is_alive(self, run: RunRecord) -> bool:
        path = self._path(run.run_id)
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return True
        return False

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.lock"


class Heartbeats:
    """A tag with the time, refreshed by a thread while the process lives."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._held: set[str] = set()
        self._thread: threading.Thread | None = None

    def exclusive(self) -> AbstractContextManager[object]:
        return nullcontext()

    def hold(self, run_id: str) -> None:
        self._held.add(run_id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name=_HEARTBEAT, daemon=True)
            self._thread.start()

    def drop(self, run_id: str) -> None:
        self._held.discard(run_id)

    def is_alive(self, run: RunRecord) -> bool:
        last = float(run.tags.get(_HEARTBEAT, run.started))
        return time.time() - last < _DEAD_SECONDS

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            for run_id in tuple(self._held):
                try:
                    self._client.set_tag(run_id, _HEARTBEAT, time.time())
                except MlflowException as error:  # the server may come back
                    log.debug(f"run {run_id}: no heartbeat ({error})")
