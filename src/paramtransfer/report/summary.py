"""What a sweep leaves in its run, from the store alone: job list, table, figure, description and page."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from paramtransfer.figures.drawing import Draw, SweepData, as_csv
from paramtransfer.figures.which_figure import choose, draw_in_style, mixed_keys
from paramtransfer.metrics import GAIN
from paramtransfer.report.page import read_content, render
from paramtransfer.report.sweep_table import read_sweep
from paramtransfer.report.terminal import print_mixed, print_notes, print_sweep
from paramtransfer.tracking.store import Store
from paramtransfer.tracking.sweeps import JobRecord, write_jobs

if TYPE_CHECKING:
    from paramtransfer.experiment.job import Job

PAGE = "report.html"
"""The page's name in the sweep's run."""


def summarize(
    store: Store, sweep_id: str, records: Sequence[JobRecord], draw: Draw | None, job: "Callable[[], Job]"
) -> None:
    """Keep what the jobs that have ended come to in the sweep's run, and show it in the terminal.

    Args:
        store: where the sweep is.
        sweep_id: its run.
        records: its jobs, as they ended.
        draw: how it is drawn; None chooses by what was swept.
        job: makes the first job again, as objects; called by figures that need its settings.
    """
    write_jobs(store, sweep_id, records)
    data = read_sweep(store, records, job)
    store.write_files(sweep_id, {"table.csv": as_csv(data.table)})
    print_sweep(data, records)
    _describe(store, sweep_id, records, data.table)
    _draw(store, sweep_id, data, draw or choose(data.keys))


def _describe(store: Store, sweep_id: str, records: Sequence[JobRecord], table: pd.DataFrame) -> None:
    """Metrics that a person may sort sweeps by in MLflow's UI, and the text on top of the run's page there."""
    gain = table.get(GAIN, pd.Series(dtype=float))
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
        store.run(sweep_id).tags.get("question", ""),
        f"{len(table)} settings. Gain from {gain.min():+.4f} to {gain.max():+.4f}." if len(gain) else "",
        f"Runs of this sweep: filter by tags.`sweep.{sweep_id}` LIKE '%'. Page, figure and table: Artifacts.",
    ]
    store.describe(sweep_id, "\n\n".join(filter(None, text)))


def _draw(store: Store, sweep_id: str, data: SweepData, draw: Draw | None) -> None:
    """Keep the figure, unless there is none for what was swept or no job has finished."""
    if draw is None or data.table.empty:
        return
    if mixed := mixed_keys(draw, data.keys):
        print_mixed(type(draw).__name__, mixed)
        return
    drawing = draw_in_style(draw, data)
    store.write_files(sweep_id, drawing.as_files())
    print_notes(drawing.notes)


def write_page(store: Store, sweep_id: str) -> str:
    """Make the page of a sweep from what its run keeps, and keep it there, too; returns the HTML.

    Raises:
        LookupError: there is no such run.
    """
    page = render(read_content(store, sweep_id))
    store.write_files(sweep_id, {PAGE: page})
    return page
