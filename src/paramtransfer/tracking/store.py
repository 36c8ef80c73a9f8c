"""The MLflow store: runs are found by fingerprint, created, and closed whatever happens."""

import json
import logging
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import torch
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag

from paramtransfer.errors import StoreError, Undelivered
from paramtransfer.tracking import connect, provenance
from paramtransfer.tracking.claims import FileSigns, Heartbeats, SignsOfLife
from paramtransfer.tracking.connect import PatientClient, patiently, public, reason_of, without_secrets
from paramtransfer.tracking.logger import BufferedLogger
from paramtransfer.tracking.outbox import Outbox

_RESULT = "result.pt"
_DESCRIPTION = "mlflow.note.content"

log = logging.getLogger(__name__)


@cache
def open_store(folder: Path) -> "Store":
    """The store of this process; see `Store`."""
    return Store(folder)


class Store:
    """One MLflow experiment in one tracking store.

    Args:
        folder: where the default store lies, if `MLFLOW_TRACKING_URI` names no other, and where what the store does
            not take is kept, under `undelivered/`.

    Attributes:
        folder: the absolute one.
        client: MLflow's; its calls wait up to a minute where the store is away, and then raise a `StoreError`.

    Raises:
        StoreError: the store cannot be reached or written.
    """

    def __init__(self, folder: Path) -> None:
        self.uri = connect.store_uri(folder)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "paramtransfer")
        self._raw_client, self.experiment_id = connect.connect(self.uri, name)
        self.client = cast(MlflowClient, PatientClient(self._raw_client, self.uri))
        self.folder = folder.absolute()
        self._undelivered = folder.absolute() / "undelivered"
        self._checkpoints = folder.absolute() / "checkpoints"
        self._outboxes: dict[str, Outbox] = {}
        self._unreadable: set[str] = set()
        self.signs: SignsOfLife
        if self.is_file:
            path = Path(self.uri.removeprefix("sqlite:///"))
            self.signs = FileSigns(path.parent / "locks", FileLock(f"{path}.lock"))
        else:
            self.signs = Heartbeats(self._raw_client)

    @property
    def is_file(self) -> bool:
        """Whether the store is a SQLite file, which serves the processes of one machine."""
        return self.uri.startswith("sqlite:///")

    @property
    def public_uri(self) -> str:
        """The URI without password and query."""
        return public(self.uri)

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
        except StoreError:
            raise
        except Exception as error:  # whatever is wrong with the file, the answer is to train again
            self._unreadable.add(run_id)
            log.warning(f"the weights of run {run_id} cannot be read ({reason_of(error)}): it is trained again")
            return None

    def state(self, run_id: str) -> dict[str, torch.Tensor]:
        """The weights that a run keeps.

        Raises:
            StoreError: there is no such run, or it keeps none.
        """
        try:
            state: dict[str, torch.Tensor] = self._load(run_id)["state"]
        except Exception as error:
            raise StoreError(f"run {run_id}: its weights cannot be read ({reason_of(error)})") from error
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
        tags["creation"] = uuid4().hex
        with self.signs.exclusive():
            run_id = patiently(partial(self._create_run, opened, name, tags), uri=self.uri)
        self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        provenance_files = {
            "git_commit.txt": provenance.git_commit() + "\n",
            "git_diff.patch": without_secrets(provenance.git_diff()),
            "package_versions.txt": provenance.package_versions(),
        }
        for file, content in {**provenance_files, **files}.items():
            self._outbox(run_id).keep(file, partial(_write, content=content))
        try:
            patiently(self._outbox(run_id).deliver, uri=self.uri)
        except Exception as error:
            self._outbox(run_id).discard()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"run {run_id}: its artifacts cannot be written ({reason_of(error)})") from None
        return run_id

    def _create_run(self, opened: list[str], name: str, tags: Mapping[str, str]) -> str:
        """Once, though it is tried again: an answer that was lost has left a run with the same `creation`."""
        with _uninterrupted():
            found = self._raw_client.search_runs([self.experiment_id], f"tags.creation = '{tags['creation']}'")
            run = found[0] if found else self._raw_client.create_run(self.experiment_id, tags=dict(tags), run_name=name)
            run_id: str = run.info.run_id
            if not re.fullmatch(r"[\w-]+", run_id):  # it becomes the name of a folder
                raise StoreError(f"{public(self.uri)}: run id {run_id!r}: must be made of letters, digits, - and _")
            opened.append(run_id)
            self.signs.hold(run_id)
        return run_id

    def checkpoints(self, run_id: str) -> Path:
        """The folder for what a run needs to go on after an interruption."""
        return self._checkpoints / run_id

    def has_checkpoint(self, run_id: str) -> bool:
        """Whether a run can go on."""
        return any(self.checkpoints(run_id).glob("*.ckpt"))

    def reopen(self, opened: list[str], run_id: str) -> None:
        """Let an interrupted run go on, in `opened`; what it has logged is not logged again."""
        log.info(f"run {run_id} goes on where it was interrupted")
        with _uninterrupted():
            self.client.update_run(run_id, status="RUNNING")
            opened.append(run_id)
            self.signs.hold(run_id)
        self._outboxes.pop(run_id, None)
        histories = [self.client.get_metric_history(run_id, key) for key in self.client.get_run(run_id).data.metrics]
        self._outbox(run_id).last_steps = {points[0].key: max(point.step for point in points) for points in histories}

    def withdraw(self, opened: list[str], run_id: str) -> None:
        """Take a new run back, of which nothing has come."""
        with _uninterrupted():
            self.client.delete_run(run_id)
            self.signs.drop(run_id)
            opened.remove(run_id)

    def write_files(self, run_id: str, files: Mapping[str, str | bytes], folder: str | None = None) -> None:
        """Artifacts from their contents."""
        outbox = self._outbox(run_id)
        for name, content in files.items():
            outbox.keep(_join(folder, name), partial(_write, content=content))
        outbox.try_to_deliver()

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

    def describe(self, run_id: str, text: str) -> None:
        """Set the description, Markdown, that MLflow's UI shows on the page of a run."""
        self.tag(run_id, {_DESCRIPTION: text})

    def link(self, text: str, run_id: str) -> str:
        """A Markdown link from one run's description to another run, whatever address the UI is served at."""
        return f"[{text}](#/experiments/{self.experiment_id}/runs/{run_id})"

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags on a run."""
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def logger(self, run_id: str) -> BufferedLogger:
        """A Lightning logger for one run."""
        return BufferedLogger(self.client, self._outbox(run_id))

    def finish(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float],
        result: dict[str, Any],
        files: Mapping[str, str],
        description: str = "",
    ) -> None:
        """Write what a stage ends with, then mark its run FINISHED; kept on disk where the store does not take it.

        Args:
            run_id: the stage's run.
            metrics: final values.
            result: weights and hits.
            files: texts by name.
            description: Markdown, for the run's page.

        Raises:
            StoreError: it cannot be kept on disk either.
        """
        outbox = self._outbox(run_id)
        outbox.keep(_RESULT, partial(torch.save, result))
        for name, content in files.items():
            outbox.keep(name, partial(_write, content=content))
        outbox.log(metrics, step=0)
        self.end(run_id, "FINISHED", {_DESCRIPTION: description} if description else None)

    def end(self, run_id: str, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Mark a run as ended, when all that was logged to it has arrived."""
        outbox = self._outbox(run_id)
        outbox.end(status, tags or {})
        if outbox.try_to_deliver():
            self.signs.drop(run_id)

    def close(self, run_id: str, status: str, reason: str) -> bool:
        """End a run whose process has died; False if it had ended before that."""
        is_open = bool(self.client.get_run(run_id).info.status == "RUNNING")
        if is_open:
            self.tag(run_id, {"error": reason[:5000]})
            self.client.set_terminated(run_id, status)
        self.signs.drop(run_id)
        return is_open

    def settle(self) -> None:
        """Wait up to a minute until all that this process and those gone before have logged is in the store.

        Raises:
            Undelivered: some of this process's is not.
        """
        self.deliver_left()
        deadline = time.monotonic() + connect.PATIENCE_SECONDS
        reasons = {}
        for run_id, outbox in self._outboxes.items():
            try:
                patiently(outbox.deliver, uri=self.uri, deadline=deadline)
                if outbox.has_ended:
                    self.signs.drop(run_id)
            except Exception as error:
                reasons[run_id] = reason_of(error)
                outbox.give_up(reasons[run_id])
        if reasons:
            raise Undelivered(
                f"{public(self.uri)} does not take the results of {len(reasons)} runs ({next(iter(reasons.values()))}):"
                f" they are kept in {self._undelivered}, and the same command, started again, delivers them"
            )

    def deliver_left(self) -> None:
        """Deliver what processes that are gone have left."""
        own = {outbox.folder for outbox in self._outboxes.values()}
        for folder in sorted(set(self._undelivered.glob("*.*")) - own):
            left = Outbox(self._raw_client, self.uri, folder.name.partition(".")[0], folder)
            if left.load():
                try:
                    left.deliver()
                except Exception as error:
                    log.warning(f"{folder} cannot be delivered yet ({reason_of(error)})")
                else:
                    log.info(f"delivered what was left of run {left.run_id}")

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Final values, not curves."""
        outbox = self._outbox(run_id)
        outbox.log(metrics, step=0)
        outbox.try_to_deliver()

    @contextmanager
    def closing(self) -> Iterator[list[str]]:
        """Runs opened in the block do not stay RUNNING if an exception ends it: they are FAILED, or KILLED if told."""
        run_ids: list[str] = []
        try:
            yield run_ids
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            reason = without_secrets(f"{type(error).__name__}: {error}")
            with _uninterrupted():
                for run_id in run_ids:
                    if not self._outbox(run_id).has_ended:
                        self.end(run_id, status, {"error": reason[:5000]})
                    if not self._outbox(run_id).try_to_deliver():
                        self._outbox(run_id).give_up(reason)
            raise

    def _outbox(self, run_id: str) -> Outbox:
        if run_id not in self._outboxes:
            folder = self._undelivered / f"{run_id}.{uuid4().hex[:8]}"  # other processes may log to the run, too
            self._outboxes[run_id] = Outbox(self._raw_client, self.uri, run_id, folder)
        return self._outboxes[run_id]


def _write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _join(folder: str | None, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_in(folder: str | None, path: str) -> bool:
    """Whether an artifact's path, which is the store's word, is a plain name in a folder."""
    name = Path(path).name
    return path == _join(folder, name) and name != ".."


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


def as_json(content: Any) -> str:
    """Readable JSON."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
