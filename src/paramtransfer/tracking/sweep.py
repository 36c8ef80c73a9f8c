"""The run of a sweep: which jobs it has, how they ended, and what is made of them."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from paramtransfer.stage import Stage
from paramtransfer.tracking.store import Store, as_json

_JOBS = "jobs"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job of a sweep, as it is kept in the sweep's run."""

    num: int
    overrides: dict[str, Any]
    """The keys that the sweep sets, with their resolved values."""
    runs: dict[Stage, str] = field(default_factory=dict)
    """Run ids by stage; empty if the job failed."""
    error: str | None = None
    """Why the job failed, in one sentence."""


def start_sweep(store: Store, opened: list[str], *, name: str, config: str) -> str:
    """A new run for a sweep, in `opened`; its id is the sweep's."""
    return store.create(opened, name=name, tags={"stage": "sweep"}, params={}, files={"config.yaml": config})


def tags_of(sweep_id: str, num: int) -> dict[str, str]:
    """What marks a run that job `num` of a sweep uses."""
    return {f"sweep.{sweep_id}": str(num)}


def record_job(store: Store, sweep_id: str, record: JobRecord) -> None:
    """Keep how a job ended; each job writes a file of its own, so that none waits for another."""
    store.write_files(sweep_id, {f"{record.num:06d}.json": as_json(asdict(record))}, folder=_JOBS)


def read_jobs(store: Store, sweep_id: str) -> list[JobRecord]:
    """The jobs that have ended so far, in order."""
    files = store.read_files(sweep_id, _JOBS)
    return [JobRecord(**json.loads(files[name])) for name in sorted(files)]


def read_config(store: Store, sweep_id: str) -> str:
    """The configuration that the sweep started from, as YAML."""
    return store.read_files(sweep_id, suffix="config.yaml")["config.yaml"]


def write_jobs(store: Store, sweep_id: str, records: list[JobRecord]) -> None:
    """Keep all jobs in one file of the sweep's run."""
    store.write_files(sweep_id, {"jobs.json": as_json([asdict(record) for record in records])})


def end_sweep(store: Store, sweep_id: str, records: list[JobRecord], *, interrupted: bool) -> None:
    """Close the sweep's run: KILLED if interrupted, FAILED if a job failed or none ended."""
    complete = bool(records) and all(record.error is None for record in records)
    store.client.set_terminated(sweep_id, "KILLED" if interrupted else "FINISHED" if complete else "FAILED")
