"""What a job prints when it ends."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from paramtransfer.experiment.run import Job, StageResult
from paramtransfer.stage import Stage
from paramtransfer.transfer.report import Report

_ROWS: tuple[tuple[str, Stage, str, str], ...] = (
    ("without transfer", "baseline", "test/acc", ".4f"),
    ("with transfer", "downstream", "test/acc", ".4f"),
    ("gain (paired)", "downstream", "test/gain", "+.4f"),
)


def print_job(job: Job, results: Mapping[Stage, StageResult], report: Report, *, seconds: float) -> None:
    """Test accuracy with and without transfer and the gain, what the theory says of it, and how to go on."""
    table = Table("", "test accuracy", "± s.e.", "training")
    upstream: tuple[tuple[str, Stage, str, str], ...] = (("upstream, on task 1", "upstream", "test/acc", ".4f"),)
    has_upstream = "upstream" in results and "test/acc" in results["upstream"].metrics
    for name, stage, key, form in (*(upstream if has_upstream else ()), *_ROWS):
        metrics = results[stage].metrics
        training = "" if key == "test/gain" else _training(results[stage])
        table.add_row(name, format(metrics[key], form), f"{metrics[f'{key}_sem']:.4f}", training)
    replicates, num_test = results["downstream"].hits_RN.shape
    repeated = (
        f"{replicates} replicates" if replicates > 1 else "1 replicate (s.e. over test samples; sweep seed for more)"
    )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"n = {repeated} × {num_test} test samples; {report.summary}")
    if verdict := job.tasks.verdict(job.transfer.alpha if "upstream" in results else 0.0):
        console.print(verdict)
    console.print(f"Done in {seconds:.1f} s. Compare the runs in the browser: make ui")


def print_job_line(num: int, overrides: Mapping[str, Any], results: Mapping[Stage, StageResult]) -> None:
    """The same for one job of a sweep, in one line."""
    setting = " ".join(f"{key}={value}" for key, value in overrides.items())
    estimates = [
        f"{name} {format(results[stage].metrics[key], form)} ± {results[stage].metrics[f'{key}_sem']:.4f}"
        for name, stage, key, form in _ROWS
    ]
    print(f"#{num} {setting}: {', '.join(estimates)}", flush=True)


def _training(result: StageResult) -> str:
    return "reused" if result.reused else f"{result.metrics['time/train']:.1f} s"
