"""What runs still have to deliver: a run's metrics, files and end, kept until the tracking store has taken them."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from paramtransfer.errors import LostRun, StoreError
from paramtransfer.tracking import remains
from paramtransfer.tracking.masking import public, reason_of
from paramtransfer.tracking.remains import End
from paramtransfer.tracking.signs_of_life import SignsOfLife
from paramtransfer.tracking.undelivered_folder import KeptFolder

_FLUSH_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 30.0
_BATCH = 900  # MLflow takes at most 1,000 in one call
_ERROR = "error"

log = logging.getLogger(__name__)


class Outbox:
    """One run's way to the store.

    Metrics are sent by a thread, so that nobody waits for the store. They are kept in memory, and on disk, too, from
    the first time that the store does not answer. Files and the run's end are on disk before they are sent. So what a
    killed process leaves in the folder can be delivered by a later one (`deliver_left`), and as long as the folder is
    there, something is undelivered. A point keeps the time that it was logged at: it is the same point however often
    it is sent.

    Args:
        client: MLflow's own, without patience.
        uri: the store.
        run_id: the run.
        folder: where what is undelivered is kept; its name begins with the run's id.
        signs: know whose the run is.
    """

    def __init__(self, client: MlflowClient, uri: str, run_id: str, folder: Path, signs: SignsOfLife) -> None:
        self.run_id = run_id
        self.folder = folder
        self._kept = KeptFolder(folder)
        self._signs = signs
        self._owner = signs.owner_of(run_id)
        self._client = client
        self._uri = uri
        self.last_steps: dict[str, int] = {}
        """Of a run that goes on: up to where its curves are there already, by key."""
        self._points: list[Metric] = []
        self._num_on_disk = 0
        self._num_doubtful = 0
        """How many of the first points may have arrived, though nothing said so."""
        self._end: End | None = None
        self._is_ended = False
        """Whether the store knows the end."""
        self.gone: StoreError | None = None
        """Why nothing can be delivered any more: the run is another process's, or was deleted."""
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_away = False

    @property
    def has_ended(self) -> bool:
        """Whether the run has been given its end, delivered or not."""
        return self._end is not None

    def log(self, metrics: Mapping[str, float], step: int, *, by_thread: bool = True) -> None:
        """Metrics at one step; never waits. A thread delivers them, or the caller does.

        Raises:
            LostRun: another process has taken the run over.
        """
        if isinstance(self.gone, LostRun):
            raise self.gone
        now = now_ms()
        fresh = {key: value for key, value in metrics.items() if step > self.last_steps.get(key, -1)}
        self._points += [Metric(key, float(value), now, step) for key, value in fresh.items()]
        if len(self._points) >= _BATCH and not self._is_away:
            self._wake.set()
        if by_thread:
            self._start_sending()

    def keep(self, name: str, write: Callable[[Path], object]) -> None:
        """A file among the run's artifacts, written by `write`: all of it or nothing.

        Raises:
            StoreError: it cannot be written.
        """
        with self._sending:
            self._write(f"artifacts/{name}", write)

    def keep_text(self, name: str, content: str | bytes) -> None:
        """A file among the run's artifacts, from its content.

        Raises:
            StoreError: it cannot be written.
        """
        self.keep(name, lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode()))

    def end(self, status: str, tags: Mapping[str, str]) -> None:
        """How the run ends, and tags that say why."""
        with self._sending:
            self._end = End(status=status, time=now_ms(), tags=dict(tags))
            self._is_ended = False
            with suppress(OSError, StoreError):  # the store may still take it
                self._keep_points()  # first: an end without them would be taken for all there is
                self._write(remains.END, lambda path: path.write_text(json.dumps(self._end)), is_last=True)

    def deliver(self) -> None:
        """Hand everything over, the run's end last; nothing where the run is gone.

        Raises:
            Exception: whatever the store or the artifacts' place has against it; all is kept.
        """
        with self._sending:
            try:
                if self.gone is None:
                    self._deliver()
            except Exception as error:
                self.gone = self._why_gone(error)
                if self.gone is None:
                    with suppress(OSError):  # then they are in memory alone, and the next try writes them again
                        self._keep_points()
                    raise
                log.warning(f"{self.gone}; what it logs here is dropped")
            if self.gone is not None:
                self._points.clear()
                self._signs.drop(self.run_id)
            self._close_folder()
        if self._is_away:
            self._is_away = False
            if self.gone is None:
                log.warning(f"{public(self._uri)} answers again: all of run {self.run_id} is delivered")

    def _deliver(self) -> None:
        self._signs.check(self.run_id, self._owner)
        artifacts = self.folder / "artifacts"
        if artifacts.is_dir():
            self._client.log_artifacts(self.run_id, str(artifacts))
        self._send_points()
        if self._end and not self._is_ended:
            self._write_end(**self._end)
            self._is_ended = True
            self._signs.drop(self.run_id)

    def _why_gone(self, error: Exception) -> StoreError | None:
        """Why no later try can succeed; None if one may."""
        if isinstance(error, LostRun):
            return error
        try:
            deleted = self._client.get_run(self.run_id).info.lifecycle_stage == "deleted"
        except MlflowException as now:
            deleted = now.error_code == "RESOURCE_DOES_NOT_EXIST"
        except Exception:
            deleted = False
        return StoreError(f"run {self.run_id} was deleted") if deleted else None

    def try_to_deliver(self) -> bool:
        """Whether everything is handed over; what is not will be tried again."""
        try:
            self.deliver()
        except Exception as error:  # whatever it is, nothing is lost
            if not self._is_away:
                self._is_away = True
                log.warning(f"{public(self._uri)} does not take what run {self.run_id} logs: {reason_of(error)}")
            self._start_sending()
            return False
        return True

    def give_up(self, reason: str) -> None:
        """For now: where only the files stand in the way, the run at least does not stay RUNNING."""
        if self._end:
            status = "FAILED" if self._end["status"] == "FINISHED" else self._end["status"]
            with suppress(Exception):  # the store is away: it will be told when the rest is delivered
                self._signs.check(self.run_id, self._owner)
                self._write_end(status, self._end["time"], {_ERROR: f"not delivered: {reason}", **self._end["tags"]})

    def discard(self) -> None:
        """Forget the files that are not delivered."""
        with self._sending:
            self._close_folder()

    def _write_end(self, status: str, time: int, tags: Mapping[str, str]) -> None:
        if status == "FINISHED" and _ERROR in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, _ERROR)
        self._client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()], synchronous=True)
        self._client.set_terminated(self.run_id, status, time)

    def _send_points(self) -> None:
        arrived: set[tuple[str, int, int]] | None = None
        while self._points:
            batch = self._points[:_BATCH]
            if self._num_doubtful and arrived is None:
                arrived = self._arrived()
            fresh = [point for point in batch if _identity(point) not in (arrived or ())]
            try:
                if fresh:
                    self._client.log_batch(self.run_id, metrics=fresh, synchronous=True)
            except BaseException:  # a signal among them
                self._num_doubtful = max(self._num_doubtful, len(batch))
                raise
            del self._points[: len(batch)]
            self._num_doubtful = max(0, self._num_doubtful - len(batch))
            self._num_on_disk = max(0, self._num_on_disk - len(batch))

    def _arrived(self) -> set[tuple[str, int, int]]:
        """What the run has of the keys in doubt. (MLflow's SQL stores take the same point once, others need not.)"""
        keys = {point.key for point in self._points[: self._num_doubtful]}
        return {_identity(point) for key in keys for point in self._client.get_metric_history(self.run_id, key)}

    def _keep_points(self) -> None:
        points = self._points[self._num_on_disk :]
        if points:
            self._open_folder()
            self._kept.append(remains.POINTS, remains.points_as_text(points))
            self._num_on_disk += len(points)

    def _write(self, name: str, write: Callable[[Path], object], *, is_last: bool = False) -> None:
        try:
            self._open_folder()
            self._kept.write(name, write, is_last=is_last)
        except (OSError, RuntimeError) as error:  # torch.save has RuntimeErrors for a full disk
            if self._kept.is_empty:
                self._close_folder()
            raise StoreError(f"{self.folder}: cannot be written ({reason_of(error)})") from None

    def _open_folder(self) -> None:
        self._kept.make(f"{public(self._uri)}\n{self._owner}")

    def _close_folder(self) -> None:
        self._kept.remove()
        self._num_on_disk = 0

    def _start_sending(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._send, name=f"outbox {self.run_id}", daemon=True)
            self._thread.start()

    def _send(self) -> None:
        wait = _FLUSH_SECONDS
        while self.gone is None and (not self._end or self._is_away):
            self._wake.wait(wait)
            self._wake.clear()
            wait = _FLUSH_SECONDS if self.try_to_deliver() else min(2 * wait, _LONGEST_WAIT_SECONDS)

    def load(self) -> bool:
        """Take over what a process has left in the folder; False if it lives, or what it left is another store's.

        What cannot be read, because the machine died while it was written, is passed over with a line.
        """
        label = self._kept.take()
        if label is None:
            return False
        uri, _, self._owner = label.partition("\n")
        if uri != public(self._uri):
            self._kept.leave()
            return False
        try:
            self._points, self._end = remains.read_points(self.folder), remains.read_end(self.folder)
        except OSError:
            self._kept.leave()
            return False
        self._num_on_disk = self._num_doubtful = len(self._points)
        return True


def _identity(point: Metric) -> tuple[str, int, int]:
    """Without the value: stores change infinities."""
    return point.key, point.timestamp, point.step


def now_ms() -> int:
    """The time as MLflow counts it."""
    return time.time_ns() // 1_000_000
