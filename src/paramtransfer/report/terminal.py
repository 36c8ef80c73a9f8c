"""What a person sees in the terminal of jobs and sweeps."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from paramtransfer.figures.drawing import SweepData
from paramtransfer.figures.significance import gain_p
from paramtransfer.metrics import (
    ACCURACY,
    BALANCED_ACCURACY,
    BASELINE_ACCURACY,
    GAIN,
    HARM_PREDICTED,
    TRAINING_SECONDS,
    TRANSFER_RATIO,
    as_text,
)
from paramtransfer.report.sweep_table import setting_text
from paramtransfer.stage import Stage
from paramtransfer.tracking.sweeps import NOT_STARTED, JobRecord

if TYPE_CHECKING:
    from paramtransfer.experiment.job import Job, StageResult

_WIDTH = 120  # of tables in a file or a pipe
_NARROW = 60  # a terminal that has no room for frames
_ROWS: tuple[tuple[str, Stage, str], ...] = (
    ("without transfer", "baseline", ACCURACY),
    ("with transfer", "downstream", ACCURACY),
    ("gain (paired)", "downstream", GAIN),
)
_BALANCED: tuple[tuple[str, Stage, str], ...] = (
    ("without, mean of classes", "baseline", BALANCED_ACCURACY),
    ("with, mean of classes", "downstream", BALANCED_ACCURACY),
)


def print_job(job: "Job", results: "Mapping[Stage, StageResult]", *, seconds: float) -> None:
    """Print the table of one job, what the theory says of it, and how to go on.

    Args:
        job: what was run.
        results: how its stages ended.
        seconds: since the process was started.
    """
    console = Console(highlight=False)
    table = _job_table(results)
    if console.width < _NARROW:
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    console.print(table)
    replicates, num_test = results["downstream"].hits_RN.shape
    repeated = (
        f"{replicates} replicates" if replicates > 1 else "1 replicate (s.e. over test samples; sweep seed for more)"
    )
    console.print(f"n = {repeated} × {num_test} test samples; {results['downstream'].inherited}")
    if job.verdict:
        console.print(job.verdict)
    console.print(f"Done in {seconds:.1f} s. Compare the runs in the browser: make ui")


def _job_table(results: "Mapping[Stage, StageResult]") -> Table:
    """Accuracies of all stages that were tested, and the gain; how long each was trained."""
    table = Table("", "test accuracy", "± s.e.", "training")
    upstream: tuple[tuple[str, Stage, str], ...] = (("upstream, on task 1", "upstream", ACCURACY),)
    is_tested = "upstream" in results and ACCURACY in results["upstream"].metrics  # weights from elsewhere are not
    is_uneven = BALANCED_ACCURACY in results["downstream"].metrics
    for title, stage, name in (*(upstream if is_tested else ()), *_ROWS, *(_BALANCED if is_uneven else ())):
        result = results[stage]
        mean, _, sem = as_text(result.metrics, name).partition(" ± ")
        training = "reused" if result.reused else f"{result.metrics[TRAINING_SECONDS]:.1f} s"
        table.add_row(title, mean, sem, training if name == ACCURACY else "")
    return table


def print_job_line(num: int, overrides: Mapping[str, object], results: "Mapping[Stage, StageResult]") -> None:
    """Print one job of a sweep in one line.

    Args:
        num: its number in the sweep.
        overrides: what it sets.
        results: how its stages ended.
    """
    estimates = [f"{title} {as_text(results[stage].metrics, name)}" for title, stage, name in _ROWS]
    print(f"#{num} {setting_text(overrides)}: {', '.join(estimates)}", flush=True)


def print_sweep(data: SweepData, records: Sequence[JobRecord]) -> None:
    """Print the table of a sweep, then which jobs failed and how many were not started."""
    failed = [record for record in records if record.error not in (None, NOT_STARTED)]
    if not data.table.empty:
        console().print(_sweep_table(data.table, data.keys, failed))
        if (data.table["n"] == 1).any():
            print("n = 1: the standard error is over the test samples alone; sweep seed for more.")
    for record in failed:
        own = {
            key: value
            for key, value in record.overrides.items()
            if any(other.overrides.get(key) != value for other in records)
        }
        print(f"failed: #{record.num} {setting_text(own)}: {record.error}")
    left = sum(record.error == NOT_STARTED for record in records)
    if left:
        print(f"{left} jobs were not started: the same command goes on with them.")


def _sweep_table(table: pd.DataFrame, keys: Sequence[str], failed: Sequence[JobRecord]) -> Table:
    """What was measured, and what Theorem 4.2 and Proposition 4.4 (predicted) say of it."""
    has_theory = TRANSFER_RATIO in table
    theory = ("A/(B d)", "predicted") if has_theory else ()
    shown = Table(box=box.SIMPLE_HEAD, title="Test accuracy ± s.e.", padding=(0, 1, 0, 0))
    short = [key.rpartition(".")[2] for key in keys]
    names = short if len(set(short)) == len(keys) else keys
    for name in (*names, "without transfer", "with transfer", "gain", "p", "n", *theory):
        shown.add_column(name, no_wrap=True)
    for (_, row), p in zip(table.iterrows(), gain_p(table), strict=True):
        estimates = [as_text(row, name) for name in (BASELINE_ACCURACY, ACCURACY, GAIN)]
        cells = [*(str(row[key]) for key in keys), *estimates, f"{p:.2g}", str(int(row["n"]))]
        if has_theory:
            ratio, harm = row[TRANSFER_RATIO], row[HARM_PREDICTED]
            cells += ["–", "–"] if pd.isna(ratio) else [f"{ratio:.3g}", "harm" if harm else "–"]
        shown.add_row(*cells)
    for record in failed:
        shown.add_row(*(str(record.overrides.get(key)) for key in keys), "failed")
    return shown


def print_mixed(figure: str, keys: Sequence[str]) -> None:
    """Print why a sweep gets no figure.

    Args:
        figure: the name of the class that would have drawn it.
        keys: the swept keys that it does not tell apart.
    """
    console().print(f"No figure: {', '.join(keys)} was swept too, which {figure} does not tell apart.")


def print_notes(notes: Sequence[str]) -> None:
    """Print what a figure shows, a sentence a line."""
    if notes:
        console().print(*notes, sep="\n", highlight=False)


def console() -> Console:
    """Of the terminal's width, or of one that tables fit in."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH)
