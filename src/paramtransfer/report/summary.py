"""What a sweep comes to, from the store alone: job list, table, figure and page."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from paramtransfer.cli.compose import instantiate, make_job, parse
from paramtransfer.figures.drawing import SweepData
from paramtransfer.report.page import Content, render
from paramtransfer.report.sweep_table import read_sweep
from paramtransfer.report.terminal import draw_figure, print_table
from paramtransfer.tracking.store import Store
from paramtransfer.tracking.sweeps import JobRecord, read_config, read_jobs, runs_of, write_jobs


def summarize(store: Store, sweep_id: str, records: Sequence[JobRecord]) -> None:
    """Print the table of the jobs that have ended; keep it, the figure and the job list in the sweep's run.

    The run's description, and metrics that a person may sort sweeps by, are written, too.
    """
    write_jobs(store, sweep_id, list(records))
    config = parse(read_config(store, sweep_id))
    data = read_sweep(store, records, job=lambda: make_job(config))
    store.write_files(sweep_id, print_table(data, records))
    _describe(store, sweep_id, records, data)
    store.write_files(sweep_id, draw_figure(data, instantiate("figure", config.figure)))


def _describe(store: Store, sweep_id: str, records: Sequence[JobRecord], data: SweepData) -> None:
    tags = store.client.get_run(sweep_id).data.tags
    gain = data.table.get("test/gain", pd.Series(dtype=float))
    store.log_metrics(
        sweep_id,
        {
            "sweep/jobs": len(records),
            "sweep/ended": sum(record.has_ended for record in records),
            "sweep/failed": sum(record.error is not None for record in records),
            **({"sweep/gain_min": gain.min(), "sweep/gain_max": gain.max()} if len(gain) else {}),
        },
    )
    text = [
        tags.get("question", ""),
        f"{len(data.table)} settings. Gain from {gain.min():+.4f} to {gain.max():+.4f}." if len(gain) else "",
        f"Runs of this sweep: filter by tags.`sweep.{sweep_id}` LIKE '%'. Report, figure and table: Artifacts.",
    ]
    store.describe(sweep_id, "\n\n".join(filter(None, text)))


def write_page(store: Store, sweep_id: str) -> str:
    """Make the page of a sweep and keep it in the sweep's run."""
    page = render(_content(store, sweep_id))
    store.write_files(sweep_id, {"report.html": page})
    return page


def _content(store: Store, sweep_id: str) -> Content:
    run = store.client.get_run(sweep_id)
    tags = run.data.tags
    files = store.read_files(sweep_id, suffix=(".csv", ".png", ".txt", ".patch", ".yaml"))
    records = read_jobs(store, sweep_id)
    stages = [
        {
            "stage": stage.data.tags["stage"],
            "trained": stage.info.start_time >= run.info.start_time,
            "seconds": stage.data.metrics.get("time/train", 0.0),
        }
        for stage in runs_of(store, sweep_id)
    ]
    verdict, plan = _first_job(store, records)
    return Content(
        sweep_id=sweep_id,
        experiment=tags.get("experiment", ""),
        status=run.info.status,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        question=tags.get("question", ""),
        command=tags.get("command", f"python train.py -m {run.info.run_name.removeprefix('sweep ')}"),
        commit=tags.get("mlflow.source.git.commit", "unknown"),
        changed=bool(files.get("git_diff.patch", b"").strip()),
        versions=files.get("package_versions.txt", b"").decode(),
        config=files["config.yaml"].decode(),
        records=records,
        stages=pd.DataFrame(stages),
        verdict=verdict,
        plan=plan,
        files=files,
    )


def _first_job(store: Store, records: Sequence[JobRecord]) -> tuple[str, Any]:
    """The theory's verdict on the first job that finished, and what its downstream inherited."""
    for record in records:
        if record.runs:
            files = store.read_files(record.runs["downstream"], suffix=("theory.txt", "transfer.json"))
            return files.get("theory.txt", b"").decode(), json.loads(files["transfer.json"])
    return "", None
