"""One MLflow experiment in one tracking store: runs are read, and what is written to them arrives once and in order."""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import cast
from uuid import uuid4

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from paramtransfer.errors import StoreError, Undelivered, Unreadable
from paramtransfer.tracking import connect, patience, results
from paramtransfer.tracking.address import sqlite_path, store_uri
from paramtransfer.tracking.logger import BufferedLogger
from paramtransfer.tracking.masking import public, reason_of
from paramtransfer.tracking.outbox import Outbox
from paramtransfer.tracking.patience import PatientClient, patiently
from paramtransfer.tracking.results import Result
from paramtransfer.tracking.runs import RunRecord
from paramtransfer.tracking.signs_of_life import FileSigns, Heartbeats, SignsOfLife
from paramtransfer.tracking.undelivered_folder import remove_remains

DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow's UI shows as a run's description."""
_PAGE = 1000  # MLflow hands out at most so many runs in one answer

log = logging.getLogger(__name__)


@cache
def open_store(folder: Path) -> "Store":
    """The store of this process; see `Store`."""
    return Store(folder)


class Store:
    """One MLflow experiment in one tracking store.

    Its calls wait up to a minute where the store is away, and then raise a `StoreError`.

    Args:
        folder: where the default store lies, if `MLFLOW_TRACKING_URI` names no other, and where what the store does
            not take is kept, under `undelivered/`.

    Attributes:
        folder: the absolute one.
        uri: the store's address; with a database's password: `public_uri` is for messages.
        signs: which runs have a living process behind them.
        client: MLflow's own, for this package alone.
        raw_client: the same without patience.

    Raises:
        StoreError: the store cannot be reached or written.
    """

    def __init__(self, folder: Path) -> None:
        self.uri = store_uri(folder)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or "paramtransfer"
        self.raw_client, self.experiment_id = connect.connect(self.uri, name)
        self.client = cast(MlflowClient, PatientClient(self.raw_client, self.uri))
        self.folder = folder.absolute()
        self._undelivered = self.folder / "undelivered"
        self._outboxes: dict[str, Outbox] = {}
        self.signs: SignsOfLife
        if self.is_file:
            path = sqlite_path(self.uri)
            self.signs = FileSigns(path.parent / "locks", FileLock(f"{path}.lock"))
        else:
            self.signs = Heartbeats(self.raw_client, self.uri)

    @property
    def is_file(self) -> bool:
        """Whether the store is a SQLite file, which serves the processes of one machine."""
        return self.uri.startswith("sqlite:///")

    @property
    def public_uri(self) -> str:
        """The URI without password and query."""
        return public(self.uri)

    def run(self, run_id: str) -> RunRecord:
        """One run.

        Raises:
            LookupError: there is none of that id.
        """
        try:
            return RunRecord.of(self.client.get_run(run_id))
        except MlflowException as error:
            raise LookupError(f"{self.public_uri}: has no run {run_id}") from error

    def runs(self, condition: str, *, newest_first: bool = False, at_most: int | None = None) -> Iterator[RunRecord]:
        """The runs that meet a condition in MLflow's search language, oldest first unless said."""
        order, token = f"attributes.start_time {'DESC' if newest_first else 'ASC'}", None
        left = sys.maxsize if at_most is None else at_most
        while left > 0:
            page = self.client.search_runs(
                [self.experiment_id], condition, max_results=min(left, _PAGE), order_by=[order], page_token=token
            )
            yield from map(RunRecord.of, page)
            left, token = left - len(page), page.token
            if not token:
                return

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """A metric's curve: values by step."""
        return {point.step: point.value for point in self.client.get_metric_history(run_id, metric)}

    def result(self, run_id: str) -> Result:
        """What a run keeps of its stage.

        Raises:
            Unreadable: there is no such run, or its weights cannot be read.
        """
        try:
            if results.FILE not in [item.path for item in self.client.list_artifacts(run_id)]:
                raise FileNotFoundError(f"there is no {results.FILE}")  # to a server's client it is a fault of its
            with tempfile.TemporaryDirectory() as folder:
                return Result.load(self.client.download_artifacts(run_id, results.FILE, folder))
        except StoreError:
            raise
        except Exception as error:  # whatever is wrong with the file
            raise Unreadable(f"run {run_id}: its weights cannot be read ({reason_of(error)})") from error

    def read_files(
        self, run_id: str, folder: str | None = None, suffix: str | tuple[str, ...] = ""
    ) -> dict[str, bytes]:
        """The artifacts of one folder of a run with one of those suffixes, by name."""
        listed = [item.path for item in self.client.list_artifacts(run_id, folder) if not item.is_dir]
        names = [Path(path).name for path in listed if path.endswith(suffix) and _is_in(folder, path)]
        with tempfile.TemporaryDirectory() as local:
            return {
                name: Path(self.client.download_artifacts(run_id, _join(folder, name), local)).read_bytes()
                for name in names
            }

    def write_files(self, run_id: str, files: Mapping[str, str | bytes], folder: str | None = None) -> None:
        """Artifacts from their contents."""
        outbox = self.outbox(run_id)
        for name, content in files.items():
            outbox.keep_text(_join(folder, name), content)
        outbox.try_to_deliver()

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Final values, not curves."""
        outbox = self.outbox(run_id)
        outbox.log(metrics, step=0, by_thread=False)
        outbox.try_to_deliver()

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags on a run; on one that was deleted, nothing."""
        try:
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        except MlflowException:
            if self.client.get_run(run_id).info.lifecycle_stage != "deleted":
                raise

    def describe(self, run_id: str, text: str) -> None:
        """Set the description, Markdown, that MLflow's UI shows on the page of a run."""
        self.tag(run_id, {DESCRIPTION: text})

    def link(self, text: str, run_id: str) -> str:
        """A Markdown link from one run's description to another run, whatever address the UI is served at."""
        return f"[{text}](#/experiments/{self.experiment_id}/runs/{run_id})"

    def logger(self, run_id: str) -> BufferedLogger:
        """A Lightning logger for one run."""
        return BufferedLogger(self.client, self.outbox(run_id))

    def bury(self, run_id: str, reason: str) -> bool:
        """End a run whose process has died as KILLED; False if it had ended before that."""
        is_open = self.run(run_id).status == "RUNNING"
        if is_open:
            self.tag(run_id, {"error": reason[:5000], **self.signs.disowned()})
            self.client.set_terminated(run_id, "KILLED")
        self.signs.drop(run_id)
        return is_open

    def settle(self) -> None:
        """Wait up to a minute until all that this process and those gone before have logged is in the store.

        Raises:
            Undelivered: some of this process's is not.
        """
        self.deliver_left()
        deadline = time.monotonic() + patience.PATIENCE_SECONDS
        reasons = {}
        for run_id, outbox in list(self._outboxes.items()):
            try:
                patiently(outbox.deliver, uri=self.uri, deadline=deadline)
                if outbox.has_ended:
                    del self._outboxes[run_id]
            except Exception as error:
                reasons[run_id] = reason_of(error)
                outbox.give_up(reasons[run_id])
        if reasons:
            raise Undelivered(
                f"{self.public_uri} does not take the results of {len(reasons)} runs ({next(iter(reasons.values()))}):"
                f" they are kept in {self._undelivered}, and the same command, started again, delivers them"
            )

    def deliver_left(self) -> None:
        """Deliver what processes that are gone have left, before anybody else looks whose their runs are."""
        with self.signs.exclusive():
            own = {outbox.folder for outbox in self._outboxes.values()}
            for folder in sorted(set(self._undelivered.glob("*.*")) - own):
                left = Outbox(self.raw_client, self.uri, folder.name.partition(".")[0], folder, self.signs)
                if left.load():
                    self._deliver_left(left)
            remove_remains(self._undelivered)

    def _deliver_left(self, left: Outbox) -> None:
        try:
            left.deliver()
        except Exception as error:
            log.warning(f"{left.folder} cannot be delivered yet ({reason_of(error)})")
        else:
            if left.gone is None:
                log.info(f"delivered what was left of run {left.run_id}")

    def forget(self, run_id: str) -> None:
        """Nothing more is to be delivered to a run that another process has taken over."""
        self._outboxes.pop(run_id, None)

    def reopen(self, run_id: str) -> None:
        """From now on, what a run that goes on has logged is not logged again."""
        self.forget(run_id)
        curves = {metric: self.history(run_id, metric) for metric in self.run(run_id).metrics}
        self.outbox(run_id).last_steps = {metric: max(curve) for metric, curve in curves.items()}

    def outbox(self, run_id: str) -> Outbox:
        """A run's way to the store; one for each run and process."""
        if run_id not in self._outboxes:
            folder = self._undelivered / f"{run_id}.{uuid4().hex[:8]}"  # other processes may log to the run, too
            self._outboxes[run_id] = Outbox(self.raw_client, self.uri, run_id, folder, self.signs)
        return self._outboxes[run_id]


def _join(folder: str | None, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_in(folder: str | None, path: str) -> bool:
    """Whether an artifact's path, which is the store's word, is a plain name in a folder."""
    name = Path(path).name
    return path == _join(folder, name) and name != ".."
