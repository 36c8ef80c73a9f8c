"""The run of a sweep: which jobs it has, how they ended, and what is made of them."""

import json
import logging
import math
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from paramtransfer.errors import StoreError
from paramtransfer.stage import Stage
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.runs import RunRecord
from paramtransfer.tracking.signs_of_life import HOST
from paramtransfer.tracking.store import Store

_JOBS = "jobs"
_QUIET_SECONDS = 60.0  # the longest time that a cluster takes from one job's end to the next one's first run
_REQUEUE_SECONDS = 600.0  # the same for a job that was preempted
_POLL_SECONDS = 5.0
_SHOWN = 5
NOT_STARTED = "not started"
"""What is said of a job that an interrupted sweep has not come to."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job of a sweep, as it is kept in the sweep's run."""

    num: int
    overrides: Mapping[str, object]
    """The keys that the sweep sets, with their resolved values."""
    runs: Mapping[Stage, str] = field(default_factory=dict)
    """Run ids by stage; empty unless the job has succeeded."""
    error: str | None = None
    """Why the job failed, in one sentence."""
    preempted: bool = False
    """Whether the job was interrupted by a batch system that starts it again."""

    @property
    def has_ended(self) -> bool:
        """Whether the job has said how it ended."""
        return bool(self.runs) or self.error is not None


def start_sweep(
    session: Session, *, name: str, tags: Mapping[str, str], config: str, jobs: Sequence[Mapping[str, object]]
) -> str:
    """A new run for a sweep; its id is the sweep's.

    Args:
        session: opens it.
        name: what the run is called.
        tags: `command`, `question` and, where it is one of the shipped or the user's, `experiment`.
        config: the configuration that the sweep starts from, as YAML.
        jobs: what each job sets, as far as it is known beforehand.
    """
    session.bury_dead()
    tags = {"stage": "sweep", HOST: socket.gethostname(), **tags}
    sweep_id = session.create(name=name, tags=tags, params={}, files={"config.yaml": config})
    session.begin(sweep_id)
    records = [JobRecord(num=num, overrides=overrides) for num, overrides in enumerate(jobs)]
    _write_records(session.store, sweep_id, records)
    return sweep_id


def find_sweep(store: Store, name: str) -> RunRecord:
    """The run of the sweep with that id, or of the newest sweep of the experiment with that name.

    Raises:
        LookupError: there is none; one sentence that names the newest sweeps.
    """
    with suppress(LookupError):  # it need not be an id
        run = store.run(name)
        if run.tags.get("stage") == "sweep":
            return run
    sweeps = list(store.runs("tags.stage = 'sweep'", newest_first=True))
    for run in sweeps:
        if name in (run.tags.get("experiment"), run.name):
            return run
    newest = [f"{run.run_id} ({run.name})" for run in sweeps[:_SHOWN]]
    among = f"the newest are {', '.join(newest)}" if newest else "there are no sweeps"
    raise LookupError(f"{name}: must be the id of a sweep or the name of an experiment that was swept; {among}")


def runs_of(store: Store, sweep_id: str) -> Iterator[RunRecord]:
    """The runs that the sweep's jobs use, trained or reused, whatever their state."""
    return store.runs(f"tags.`sweep.{sweep_id}` LIKE '%'")


def tags_of(sweep_id: str, num: int) -> dict[str, str]:
    """What marks a run that job `num` of a sweep uses."""
    return {f"sweep.{sweep_id}": str(num)}


def sweep_of_job(store: Store, sweep_id: str) -> RunRecord:
    """The run of the sweep that a job belongs to.

    Raises:
        StoreError: the job's store is not the sweep's.
    """
    try:
        return store.run(sweep_id)
    except LookupError:
        raise StoreError(
            f"MLFLOW_TRACKING_URI={store.public_uri}: has no sweep {sweep_id}; a job's store must be the one of the "
            f"process that started the sweep (does its environment reach {socket.gethostname()}?)"
        ) from None


def check_host(store: Store, sweep: RunRecord) -> None:
    """A SQLite file is not shared by machines: their locks on it cannot be relied on.

    Raises:
        StoreError: this job runs on another machine than the process that started the sweep.
    """
    host, started_on = socket.gethostname(), sweep.tags[HOST]
    if store.is_file and host != started_on:
        raise StoreError(
            f"MLFLOW_TRACKING_URI={store.public_uri}: a SQLite store serves one machine, and this job of a sweep that "
            f"was started on {started_on} runs on {host}; for several machines it must be http://HOST:PORT of an "
            "MLflow server (mlflow server --host HOST --port PORT)"
        )


def record_job(store: Store, sweep_id: str, record: JobRecord) -> None:
    """Keep how a job ended; each job writes a file of its own, so that none waits for another."""
    _write_records(store, sweep_id, [record])


def _write_records(store: Store, sweep_id: str, records: Sequence[JobRecord]) -> None:
    files = {f"{record.num:06d}.json": _as_json(asdict(record)) for record in records}
    if files:
        store.write_files(sweep_id, files, folder=_JOBS)


def read_jobs(store: Store, sweep_id: str) -> list[JobRecord]:
    """The jobs in order, those that have not ended included."""
    files = store.read_files(sweep_id, _JOBS)
    return [_record(int(Path(name).stem), files[name]) for name in sorted(files)]


def _record(num: int, text: bytes) -> JobRecord:
    try:
        return JobRecord(**json.loads(text))
    except json.JSONDecodeError:  # read while the job wrote it, or died as it did
        return JobRecord(num=num, overrides={})


def wait_for_jobs(store: Store, sweep_id: str) -> None:
    """Wait for the jobs that go on although their launcher has given up, as it may when one of them died.

    A sweep none of whose jobs has started or shown a sign of life for a minute is not waited for; nor for ten, if one
    was preempted.
    """
    ended: set[int] = set()
    last_sign = -math.inf
    said = False
    while True:
        records = read_jobs(store, sweep_id)
        pending = [record.num for record in records if not record.has_ended]
        now_ended = {record.num for record in records if record.has_ended}
        if now_ended != ended or any(store.signs.is_alive(run) for run in _running(store, sweep_id)):
            last_sign = time.monotonic()
        ended = now_ended
        is_coming = any(record.preempted for record in records if not record.has_ended)
        if not pending or time.monotonic() - last_sign > (_REQUEUE_SECONDS if is_coming else _QUIET_SECONDS):
            return
        if not said:
            log.info(f"Waiting for jobs {', '.join(map(str, pending))}, which have not ended; Ctrl-C closes the sweep")
            said = True
        time.sleep(_POLL_SECONDS)


def bury_jobs(store: Store, sweep_id: str, *, interrupted: bool) -> list[JobRecord]:
    """The jobs in order; one that has not said how it ended has failed, and no run of a dead one stays RUNNING.

    Args:
        store: where the sweep is.
        sweep_id: its run.
        interrupted: whether a person or SIGTERM has ended it, and with it the jobs.
    """
    records = read_jobs(store, sweep_id)
    reasons = {}
    for run in _running(store, sweep_id):
        if store.signs.is_alive(run):
            reason = "had not ended when the sweep did"
        else:
            reason = "interrupted" if interrupted else "died: killed, out of memory, or its node failed"
            store.bury(run.run_id, reason)
        reasons[run.tags[f"sweep.{sweep_id}"]] = reason
    return [
        record
        if record.has_ended
        else replace(record, error=reasons.get(str(record.num), _absent(record, interrupted)))
        for record in records
    ]


def _absent(record: JobRecord, interrupted: bool) -> str:
    if record.preempted:
        return "preempted, and not started again"
    return NOT_STARTED if interrupted else "never started, or died before it created a run"


def _running(store: Store, sweep_id: str) -> Iterator[RunRecord]:
    return store.runs(f"attributes.status = 'RUNNING' AND tags.`sweep.{sweep_id}` LIKE '%'")


def read_config(store: Store, sweep_id: str) -> str:
    """The configuration that the sweep started from, as YAML."""
    return store.read_files(sweep_id, suffix="config.yaml")["config.yaml"].decode()


def write_jobs(store: Store, sweep_id: str, records: Sequence[JobRecord]) -> None:
    """Keep all jobs in one file of the sweep's run."""
    store.write_files(sweep_id, {"jobs.json": _as_json([asdict(record) for record in records])})


def end_sweep(session: Session, sweep_id: str, records: Sequence[JobRecord], *, interrupted: bool) -> None:
    """Close the sweep's run: KILLED if interrupted, FAILED if a job failed or none ended."""
    complete = bool(records) and all(record.error is None for record in records)
    session.end(sweep_id, "KILLED" if interrupted else "FINISHED" if complete else "FAILED")


def _as_json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
