"""Who trains a stage that several jobs need: the process whose run of it is RUNNING and shows a sign of life.

Beside a SQLite store jobs look and claim one at a time: exactly one trains. With a tracking server a run is its owner's
until another process takes it over; whoever has lost a run stops writing to it and waits for its result. Two jobs that
start at the same moment may, rarely, create a run each: a job trains only when it has seen, after it created or
reopened its run, that there is no other, and gives it up otherwise.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from paramtransfer.errors import LostRun, SharedStageError, StoreError, Unreadable
from paramtransfer.interrupts import begin_closing, is_interruption, uninterrupted
from paramtransfer.tracking import provenance, results
from paramtransfer.tracking.logger import BufferedLogger
from paramtransfer.tracking.masking import masked, reason_of
from paramtransfer.tracking.patience import patiently
from paramtransfer.tracking.results import Result
from paramtransfer.tracking.runs import RunRecord
from paramtransfer.tracking.store import Store

_POLL_SECONDS = 2.0
_CONTEST_SECONDS = 10.0  # in which a job that has created a run, too, takes it back
_LONGEST_NAME = 250  # that an SQL server takes

_ATTEMPT = "attempt"
_DIED = "its process died"

log = logging.getLogger(__name__)
_LONGEST = 6000  # of a parameter that MLflow takes; `identity.json` has it whole


class Session:
    """The runs that one job or sweep has opened and is to end.

    A context: of the runs that an exception leaves open the one that was begun is FAILED. The others are KILLED, and
    all are where the process was told to end: other jobs take their place. Those open at the block's own end stay
    their owner's business (`end`).
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.opened: list[str] = []
        """Ids of its runs, oldest first."""
        self._begun: set[str] = set()
        self._unreadable: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        if is_interruption(error):
            begin_closing()
        reason = masked(f"{type(error).__name__}: {error}")
        with uninterrupted():
            for run_id in self.opened:
                outbox = self.store.outbox(run_id)
                if not outbox.has_ended:
                    is_its_own = run_id in self._begun and not is_interruption(error)
                    self.end(run_id, "FAILED" if is_its_own else "KILLED", {"error": reason[:5000]})
                if not outbox.try_to_deliver():
                    outbox.give_up(reason)

    def owns(self, run_id: str) -> bool:
        """Whether this job opened the run, and so trains it."""
        return run_id in self.opened

    def begin(self, run_id: str) -> BufferedLogger:
        """A logger for a run of this session; an error from now on is the run's own."""
        self._begun.add(run_id)
        return self.store.logger(run_id)

    def forget(self, run_id: str) -> None:
        """A run that another process has taken over is not this session's any more."""
        self.opened.remove(run_id)
        self.store.forget(run_id)

    def create(
        self, *, name: str, tags: Mapping[str, str], params: Mapping[str, object], files: Mapping[str, str]
    ) -> str:
        """A new run, with where it comes from, its parameters and some text artifacts; returns its id.

        Raises:
            StoreError: it cannot be written.
        """
        tags = {"mlflow.source.git.commit": provenance.git_commit(), "mlflow.source.type": "LOCAL", **tags}
        tags |= {"creation": uuid4().hex, **self.store.signs.tags()}
        name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
        with self.store.signs.exclusive():
            run_id = patiently(partial(self._create, name, tags), uri=self.store.uri)
        self.store.client.log_batch(run_id, params=[Param(key, str(value)[:_LONGEST]) for key, value in params.items()])
        where_from = {
            "git_commit.txt": provenance.git_commit() + "\n",
            "git_diff.patch": masked(provenance.git_diff()),
            "package_versions.txt": provenance.package_versions(),
        }
        outbox = self.store.outbox(run_id)
        for file, content in {**where_from, **files}.items():
            outbox.keep_text(file, content)
        try:
            patiently(outbox.deliver, uri=self.store.uri)
            self._withdraw_twins(run_id, tags["creation"])
        except Exception as error:
            outbox.discard()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"run {run_id}: its artifacts cannot be written ({reason_of(error)})") from None
        return run_id

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        """Once, though it is tried again: an answer that was lost has left a run with the same `creation`."""
        client, experiment = self.store.raw_client, self.store.experiment_id
        with uninterrupted():
            found = client.search_runs([experiment], f"tags.creation = '{tags['creation']}'")
            run = found[0] if found else client.create_run(experiment, tags=dict(tags), run_name=name)
            run_id: str = run.info.run_id
            if not re.fullmatch(r"[\w-]+", run_id):  # it becomes the name of a folder
                raise StoreError(f"{self.store.public_uri}: run id {run_id!r}: must be of letters, digits, - and _")
            self._hold(run_id)
        return run_id

    def _withdraw_twins(self, run_id: str, creation: str) -> None:
        """A creation whose answer took too long was tried again, and may have come about after that."""
        for twin in self.store.runs(f"tags.creation = '{creation}'"):
            if twin.run_id != run_id:
                self._withdraw(twin.run_id)

    def _hold(self, run_id: str) -> None:
        self.opened.append(run_id)
        self.store.signs.hold(run_id)

    def claim(self, fingerprint: str, create: Callable[[], str], *, among: Mapping[str, str]) -> str:
        """The run that a stage's result comes from.

        A finished one, one that a living process trains, one that can go on from its checkpoint, or a new one.

        Args:
            fingerprint: what identifies the stage.
            create: makes a new run of this session.
            among: tags that the run must have.
        """
        same = " AND ".join(f"tags.{key} = '{value}'" for key, value in {"fingerprint": fingerprint, **among}.items())
        store = self.store
        with store.signs.exclusive():
            store.deliver_left()
            runs = list(store.runs(same))
            running = [run for run in runs if run.status == "RUNNING"]
            for run in (*filter(self._is_usable, runs), *filter(self._is_trained, running)):
                return run.run_id
            for run in runs:  # none of them is alive
                if run.status != "FINISHED" and any(self.checkpoints(run.run_id).glob("*.ckpt")):
                    is_ours = self._reopen(run, partial(store.runs, same))
                    return run.run_id if is_ours else self.claim(fingerprint, create, among=among)
            for run in running:
                if not store.bury(run.run_id, _DIED):  # it has ended since we looked
                    return self.claim(fingerprint, create, among=among)
            ended = [run.run_id for run in runs if run.status != "FINISHED"]
            if ended:
                log.info(f"trained anew, for these runs of it are FAILED or KILLED: {', '.join(ended)}")
            own = create()
        return self._settle(own, partial(store.runs, same)) or self.claim(fingerprint, create, among=among)

    def _settle(self, own: str, same: Callable[[], Iterable[RunRecord]]) -> str | None:
        """The one that stays, of runs that several jobs may have created between their looks and ours; None if none.

        By start, which is their clients' time, the later ones give way at once, the first one to a run that is still
        there after a while: a job that has seen no other trains it, or is slow.
        """
        deadline = time.monotonic() + _CONTEST_SECONDS
        while True:
            runs = list(same())
            finished = [run.run_id for run in runs if self._is_usable(run)]
            running = [run.run_id for run in runs if run.status == "RUNNING"]
            if not finished and running == [own]:
                return own
            if finished or running[:1] != [own] or time.monotonic() > deadline:
                self._withdraw(own)
                return next((run_id for run_id in (*finished, *running) if run_id != own), None)
            time.sleep(_CONTEST_SECONDS / 20)

    def attempt(self, fingerprint: str) -> dict[str, str]:
        """The tag that marks the runs of a job which trains anew: of one that was interrupted, or a new one.

        Args:
            fingerprint: what identifies the job's last stage.
        """
        with self.store.signs.exclusive():
            for run in self.store.runs(
                f"tags.fingerprint = '{fingerprint}' AND tags.{_ATTEMPT} LIKE '%'", newest_first=True, at_most=1
            ):
                look = partial(self.store.run, run.run_id)
                if run.status == "KILLED" or (run.status == "RUNNING" and self.store.signs.has_died(look)):
                    return {_ATTEMPT: run.tags[_ATTEMPT]}
        return {_ATTEMPT: uuid4().hex}

    def bury_dead(self) -> None:
        """End as KILLED what processes that died have left RUNNING, sweeps included; with a server at a second call.

        Raises:
            StoreError: a job on another machine uses the same SQLite file.
        """
        with self.store.signs.exclusive():
            self.store.deliver_left()
            for run in self.store.runs("attributes.status = 'RUNNING' AND tags.stage LIKE '%'"):
                if self.store.signs.is_dead(run):
                    self.store.bury(run.run_id, _DIED)

    def look_again(self) -> None:
        """`bury_dead`, some time later, what was only suspected then; not where the store is away now."""
        if self.store.signs.suspects_any:
            with suppress(StoreError):
                self.bury_dead()

    def _is_usable(self, run: RunRecord) -> bool:
        """Whether a run has finished, as far as is known with a result that can be read."""
        return run.status == "FINISHED" and run.run_id not in self._unreadable

    def _reopen(self, run: RunRecord, same: Callable[[], Iterable[RunRecord]]) -> bool:
        """Let an interrupted run go on, unless another job was faster; what it has logged is not logged again."""
        with uninterrupted():
            if not self.store.signs.take(run):
                return False
            if self.store.run(run.run_id).status == "FINISHED":  # between the looks at its state and at its owner
                self.store.signs.drop(run.run_id)
                return False
            self.opened.append(run.run_id)
            self.store.client.update_run(run.run_id, status="RUNNING")
            others = [other for other in same() if other.run_id != run.run_id]
            if any(self._is_usable(other) or self._is_trained(other) for other in others):
                self._give_up(run.run_id)
                return False
        log.info(f"run {run.run_id} goes on where it was interrupted")
        self.store.reopen(run.run_id)
        return True

    def _is_trained(self, run: RunRecord) -> bool:
        return run.status == "RUNNING" and self.store.signs.is_alive(run)

    def _give_up(self, run_id: str) -> None:
        """Leave a run that another one has made needless; whoever waits for it looks for the other."""
        self.store.client.set_terminated(run_id, "KILLED")
        self.store.signs.drop(run_id)
        if self.owns(run_id):
            self.opened.remove(run_id)

    def _withdraw(self, run_id: str) -> None:
        """Take a new run back, or a twin of one, of which nothing has come."""
        with uninterrupted():
            self._give_up(run_id)
            with suppress(MlflowException):  # a server may let nobody delete
                self.store.client.delete_run(run_id)

    def checkpoints(self, run_id: str) -> Path:
        """The folder for what a run needs to go on after an interruption."""
        return self.store.folder / "checkpoints" / run_id

    def wait(self, run_id: str) -> RunRecord | None:
        """Wait until another job's run ends; None if it has not finished. Says once what is waited for.

        Raises:
            SharedStageError: the run failed.
        """
        said = False
        while (run := self.store.run(run_id)).status == "RUNNING" and self.store.signs.is_alive(run):
            if not said:
                log.info(f"Waiting for {run.name}: another job trains it (run {run_id})")
                said = True
            time.sleep(_POLL_SECONDS)
        run = self.store.run(run_id)  # it may have ended between the two looks
        if run.status == "FAILED":
            reason = run.tags.get("error", "no reason is known")
            raise SharedStageError(f"{run.name} failed in another job (run {run_id}): {reason}")
        return run if run.status == "FINISHED" else None

    def result(self, run_id: str) -> Result | None:
        """What a finished run keeps; None, and a line that says why, if it cannot be read: then `claim` anew."""
        try:
            return self.store.result(run_id)
        except Unreadable as error:
            self._unreadable.add(run_id)
            log.warning(f"{error}: it is trained again")
            return None

    def finish(
        self,
        run_id: str,
        result: Result,
        *,
        metrics: Mapping[str, float],
        files: Mapping[str, str],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write what a stage ends with, then mark its run FINISHED; kept on disk where the store does not take it.

        Args:
            run_id: the stage's run.
            result: weights and hits.
            metrics: final values.
            files: texts by name.
            tags: those that follow from them.

        Raises:
            StoreError: it cannot be kept on disk either.
            LostRun: another process has taken the run over.
        """
        outbox = self.store.outbox(run_id)
        outbox.keep(results.FILE, result.save)
        for name, content in files.items():
            outbox.keep_text(name, content)
        outbox.log(metrics, step=0)
        self.end(run_id, "FINISHED", tags)
        if isinstance(outbox.gone, LostRun):
            raise outbox.gone

    def end(self, run_id: str, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Mark a run as ended, when all that was logged to it has arrived."""
        outbox = self.store.outbox(run_id)
        outbox.end(status, tags or {})
        outbox.try_to_deliver()
