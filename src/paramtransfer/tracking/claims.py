"""Who trains a stage that several jobs need: the process whose run of it is RUNNING and shows a sign of life.

Beside a SQLite store the sign is a lock on a file, which the system drops when its holder dies, and jobs look and claim
one at a time: exactly one trains. A tracking server has no files in common with its clients; there the sign is a tag
that a thread refreshes, and two jobs that start at the same moment may, rarely, both train.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from paramtransfer.errors import SharedStageError

if TYPE_CHECKING:
    from paramtransfer.tracking.store import Store

_HEARTBEAT = "heartbeat"
_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 45.0  # a process that has not refreshed its runs for so long has died
_POLL_SECONDS = 2.0

log = logging.getLogger(__name__)


class SignsOfLife(Protocol):
    """Which RUNNING runs have a living process behind them."""

    def exclusive(self) -> AbstractContextManager[Any]:
        """Keeps other jobs from claiming, where that can be done."""

    def hold(self, run_id: str) -> None:
        """From now on, until `drop` or the end of this process, the run is alive."""

    def drop(self, run_id: str) -> None:
        """The run has ended."""

    def is_alive(self, run: Run) -> bool:
        """Whether a process holds the run."""


class FileSigns:
    """A locked file for each run, in one folder."""

    def __init__(self, folder: Path, claiming: FileLock) -> None:
        self._folder = folder
        self._claiming = claiming
        self._held: dict[str, FileLock] = {}

    def exclusive(self) -> AbstractContextManager[Any]:
        return self._claiming

    def hold(self, run_id: str) -> None:
        self._folder.mkdir(exist_ok=True)
        self._held[run_id] = FileLock(self._path(run_id))
        self._held[run_id].acquire(timeout=_POLL_SECONDS)

    def drop(self, run_id: str) -> None:
        if run_id in self._held:
            self._path(run_id).unlink(missing_ok=True)
            self._held.pop(run_id).release()

    def is_alive(self, run: Run) -> bool:
        path = self._path(run.info.run_id)
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

    def exclusive(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def hold(self, run_id: str) -> None:
        self._held.add(run_id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name=_HEARTBEAT, daemon=True)
            self._thread.start()

    def drop(self, run_id: str) -> None:
        self._held.discard(run_id)

    def is_alive(self, run: Run) -> bool:
        last = float(run.data.tags.get(_HEARTBEAT, run.info.start_time / 1000))
        return time.time() - last < _DEAD_SECONDS

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            for run_id in tuple(self._held):
                try:
                    self._client.set_tag(run_id, _HEARTBEAT, time.time())
                except MlflowException as error:  # the server may come back
                    log.debug(f"run {run_id}: no heartbeat ({error})")


def claim(store: "Store", opened: list[str], fingerprint: str, create: Callable[[], str]) -> str:
    """The run that a stage's result comes from.

    A finished one, one that a living process trains, one that can go on from its checkpoint, or a new one.

    Args:
        store: where the runs are.
        opened: the runs of this job; a new run is among them, or one that goes on.
        fingerprint: what identifies the stage.
        create: makes a new run in `opened`.
    """
    same = f"tags.fingerprint = '{fingerprint}'"
    store.deliver_left()
    with store.signs.exclusive():
        runs = store.runs(same)
        running = [run for run in runs if run.info.status == "RUNNING"]
        for run in (*filter(store.is_usable, runs), *filter(store.signs.is_alive, running)):
            return str(run.info.run_id)
        for run in runs:  # none of them is alive
            if run.info.status in ("RUNNING", "KILLED") and store.has_checkpoint(run.info.run_id):
                store.reopen(opened, run.info.run_id)
                return str(run.info.run_id)
        for run in running:
            if not store.close(run.info.run_id, "KILLED", "its process died"):  # it has ended since we looked
                return claim(store, opened, fingerprint, create)
        ended = [run.info.run_id for run in runs if run.info.status != "FINISHED"]
        if ended:
            log.info(f"trained anew, for these runs of it are FAILED or KILLED: {', '.join(ended)}")
        own = create()
    # Without a lock, another job may have created its run between our look and ours: the first one stays.
    first = next(run.info.run_id for run in store.runs(same) if run.info.status == "RUNNING")
    if first != own:
        store.withdraw(opened, own)
    return str(first)


def wait_for(store: "Store", run_id: str) -> bool:
    """Wait until another job's run ends; whether it has finished. Says once what is waited for.

    Raises:
        SharedStageError: the run failed.
    """
    said = False
    while (run := store.client.get_run(run_id)).info.status == "RUNNING" and store.signs.is_alive(run):
        if not said:
            log.info(f"Waiting for {run.info.run_name}: another job trains it (run {run_id})")
            said = True
        time.sleep(_POLL_SECONDS)
    run = store.client.get_run(run_id)  # it may have ended between the two looks
    if run.info.status == "FAILED":
        reason = run.data.tags.get("error", "no reason is known")
        raise SharedStageError(f"{run.info.run_name} failed in another job (run {run_id}): {reason}")
    return bool(run.info.status == "FINISHED")
