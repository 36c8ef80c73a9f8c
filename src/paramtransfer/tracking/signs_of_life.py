"""Signs of life: which RUNNING runs have a living process behind them.

Beside a SQLite store the sign is a lock on a file, which the system drops when its holder dies. A tracking server has
no files in common with its clients; there a run names its owner in a tag, and its owner refreshes another. A process
has died if somebody has watched its run for a while, on a clock of their own and while the server answered, and nothing
was refreshed: no two machines need the same time, and a server that was away is no sign of death.
"""

import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from paramtransfer.errors import LostRun, StoreError
from paramtransfer.tracking.patience import locked, patiently
from paramtransfer.tracking.runs import RunRecord

HOST = "host"
_OWNER, _HEARTBEAT = "owner", "heartbeat"
_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 45.0  # a process that has not refreshed its runs for so long, being watched, has died
_LOOK_SECONDS = 5.0  # what a look counts at most: after a longer time the server may have been away
_LONG_SECONDS = 3600.0  # or for so long, by the clock of whoever looks
_SETTLE_SECONDS = 2.0  # longer than it takes to read and then to write
_LOCK_SECONDS = 2.0

log = logging.getLogger(__name__)


class SignsOfLife(Protocol):
    """Which RUNNING runs have a living process behind them."""

    @property
    def suspects_any(self) -> bool:
        """Whether `is_dead` wants a second look at some run."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Keeps other jobs from claiming, where that can be done."""

    def tags(self) -> dict[str, str]:
        """What marks a new run as alive and this process's."""

    def disowned(self) -> dict[str, str]:
        """What tells the owner of a run, should it live, that the run is its no more."""

    def hold(self, run_id: str) -> None:
        """From now on, until `drop` or the end of this process, the run is alive."""

    def take(self, run: RunRecord) -> bool:
        """The same for a run that was another process's when it was looked at; False if a third one was faster.

        Raises:
            StoreError: a process holds the run though it has ended.
        """

    def drop(self, run_id: str) -> None:
        """The run has ended."""

    def owner_of(self, run_id: str) -> str:
        """What `check` needs to know of a run that this process holds; empty for others."""

    def check(self, run_id: str, owner: str) -> None:
        """Whether the run is still its owner's.

        Raises:
            LostRun: another process has taken it over.
        """

    def is_alive(self, run: RunRecord) -> bool:
        """Whether a process holds the run, as far as can be known by now: it is to be asked again."""

    def has_died(self, look: Callable[[], RunRecord]) -> bool:
        """Whether no process holds a run that was RUNNING and has not ended otherwise; takes as long as it must.

        Args:
            look: at the run as it is now.
        """

    def is_dead(self, run: RunRecord) -> bool:
        """Whether it is certain that no process holds the run; it may take a second look, a while after the first."""


class FileSigns:
    """A locked file for each run, in one folder."""

    suspects_any = False

    def __init__(self, folder: Path, claiming: FileLock) -> None:
        self._folder = folder
        self._claiming = claiming
        self._held: dict[str, FileLock] = {}

    def exclusive(self) -> AbstractContextManager[object]:
        return locked(self._claiming)

    def tags(self) -> dict[str, str]:
        return {HOST: socket.gethostname()}

    def disowned(self) -> dict[str, str]:
        return {}

    def hold(self, run_id: str) -> None:
        self._folder.mkdir(exist_ok=True)
        lock = FileLock(self._path(run_id), thread_local=False)  # the thread that delivers the end lets go
        lock.acquire(timeout=_LOCK_SECONDS)
        self._held[run_id] = lock

    def take(self, run: RunRecord) -> bool:
        try:
            self.hold(run.run_id)
        except Timeout:
            raise StoreError(f"{self._path(run.run_id)}: must not be held, for run {run.run_id} has ended") from None
        return True

    def drop(self, run_id: str) -> None:
        if lock := self._held.pop(run_id, None):
            self._path(run_id).unlink(missing_ok=True)
            lock.release()

    def owner_of(self, run_id: str) -> str:
        return ""

    def check(self, run_id: str, owner: str) -> None:
        """The lock is the owner's."""

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

    def has_died(self, look: Callable[[], RunRecord]) -> bool:
        return not self.is_alive(look())

    def is_dead(self, run: RunRecord) -> bool:
        """Raises a StoreError for a run of another machine, whose locks are not seen here."""
        host, path = run.tags.get(HOST, ""), self._path(run.run_id)
        if host not in ("", socket.gethostname()) and path.exists():
            raise StoreError(
                f"{path}: run {run.run_id} is being trained on {host}, and a SQLite store serves one machine; for "
                "several it must be http://HOST:PORT of an MLflow server (if that job is dead, remove the file)"
            )
        return not self.is_alive(run)

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.lock"


class Heartbeats:
    """A tag that names the owner, and one with the time, refreshed by a thread while the owner lives."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self._uri = uri
        self._owner = uuid4().hex
        self._held: set[str] = set()
        self._thread: threading.Thread | None = None
        self._seen: dict[str, tuple[str, float]] = {}
        """The last sign of each run that is watched, and when it was first seen, in seconds of watching."""
        self._watched = 0.0
        self._last_look = -math.inf
        self._old: dict[tuple[str, str], float] = {}
        """When a sign that is old by this machine's clock was first seen, on the monotonic one, by run and sign."""

    @property
    def suspects_any(self) -> bool:
        return bool(self._old)

    def exclusive(self) -> AbstractContextManager[object]:
        return nullcontext()

    def tags(self) -> dict[str, str]:
        return {_OWNER: self._owner, _HEARTBEAT: str(time.time())}

    def disowned(self) -> dict[str, str]:
        return {_OWNER: uuid4().hex}

    def hold(self, run_id: str) -> None:
        self._held.add(run_id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name=_HEARTBEAT, daemon=True)
            self._thread.start()

    def take(self, run: RunRecord) -> bool:
        """Whoever writes last has it; so it is read before, and after a while again.

        RUNNING at once, so that nobody who looks from now on takes it; not if who had it has finished meanwhile.
        """
        tags = [RunTag(key, value) for key, value in self.tags().items()]
        call = partial(patiently, uri=self._uri)
        try:
            call(partial(self.check, run.run_id, run.tags.get(_OWNER, "")))
            call(partial(self._client.log_batch, run.run_id, tags=tags))
            if call(partial(self._client.get_run, run.run_id)).info.status == "FINISHED":
                return False
            call(partial(self._client.update_run, run.run_id, status="RUNNING"))
            time.sleep(_SETTLE_SECONDS)
            call(partial(self.check, run.run_id, self._owner))
        except LostRun:
            return False
        self.hold(run.run_id)
        return True

    def drop(self, run_id: str) -> None:
        self._held.discard(run_id)

    def owner_of(self, run_id: str) -> str:
        return self._owner if run_id in self._held else ""

    def check(self, run_id: str, owner: str) -> None:
        if owner and self._client.get_run(run_id).data.tags.get(_OWNER, owner) != owner:
            self.drop(run_id)
            raise LostRun(f"run {run_id}: another process has taken it over, for this one seemed dead")

    def is_alive(self, run: RunRecord) -> bool:
        now = time.monotonic()
        self._watched += min(now - self._last_look, _LOOK_SECONDS)
        self._last_look = now
        sign = run.tags.get(_HEARTBEAT, "")
        if self._seen.setdefault(run.run_id, (sign, self._watched))[0] != sign:
            self._seen[run.run_id] = sign, self._watched
        return self._watched - self._seen[run.run_id][1] < _DEAD_SECONDS

    def has_died(self, look: Callable[[], RunRecord]) -> bool:
        run = look()
        sign = run.tags.get(_HEARTBEAT)
        log.info(f"Watching {run.name} for up to {_DEAD_SECONDS:.0f} s: another job may train it (run {run.run_id})")
        while run.status == "RUNNING" and run.tags.get(_HEARTBEAT) == sign:
            if not self.is_alive(run):
                return True
            time.sleep(_LOOK_SECONDS / 5)
            run = look()
        return run.status == "KILLED"

    def is_dead(self, run: RunRecord) -> bool:
        """Old by this clock, and unchanged between two looks: the clock may be wrong, the server may have been away."""
        sign = run.tags.get(_HEARTBEAT, str(run.started))
        if time.time() - float(sign) <= _LONG_SECONDS:
            return False
        return time.monotonic() - self._old.setdefault((run.run_id, sign), time.monotonic()) >= _DEAD_SECONDS

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            for run_id in tuple(self._held):
                try:
                    self.check(run_id, self._owner)
                    self._client.set_tag(run_id, _HEARTBEAT, time.time())
                except (LostRun, MlflowException) as error:  # the server may come back
                    log.debug(f"run {run_id}: no heartbeat ({error})")
