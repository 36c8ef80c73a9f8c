"""From what the store keeps of a sweep to one HTML page."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import jinja2
import pandas as pd

from paramtransfer.figures.significance import gain_p, harm_prediction
from paramtransfer.metrics import (
    ACCURACY,
    BASELINE_ACCURACY,
    CONDITION_HOLDS,
    GAIN,
    GAMMA,
    HARM_PREDICTED,
    SCRATCH_RATIO,
    TRAINING_SECONDS,
    TRANSFER_RATIO,
    sem_of,
)
from paramtransfer.report.page_tables import PageTable, figure_tables, read_table, shown, yes_or_no
from paramtransfer.report.sweep_table import setting_text, swept_keys
from paramtransfer.stage import SIDES
from paramtransfer.tracking.runs import RunRecord
from paramtransfer.tracking.store import Store
from paramtransfer.tracking.sweeps import JobRecord, read_jobs, runs_of

_PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "numpy", "hydra-core", "mlflow")
_RESULTS = {BASELINE_ACCURACY: "without transfer", ACCURACY: "with transfer", GAIN: "gain", "p": "p", "n": "n"}
_THEORY = {
    TRANSFER_RATIO: "A/(B d), Theorem 4.2",
    SCRATCH_RATIO: "N₂‖s₂‖⁴/(σ₂⁴ d), Theorem 4.3",
    GAMMA: "Γ, Proposition 4.4",
}


class Inherited(TypedDict):
    """What a downstream run keeps of its transfer, as `transfer.json`."""

    summary: str
    tensors: list[dict[str, object]]


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that a page is made from."""

    sweep: RunRecord
    """The sweep's own run."""
    jobs: Sequence[JobRecord]
    """Those that have not ended included."""
    runs: Sequence[RunRecord]
    """Every run that a job uses, trained in this sweep or reused."""
    verdict: str
    """What the theory says of the first job, in words."""
    inherited: Inherited | None
    """By the first job's downstream; None where no job has finished."""
    files: Mapping[str, bytes]
    """The artifacts of the sweep's run, by name: tables, figures, notes, configuration, code and packages."""

    def text(self, name: str) -> str:
        """One of the files; empty where it is missing."""
        return self.files.get(name, b"").decode()


def read_content(store: Store, sweep_id: str) -> Content:
    """What the store has of a sweep, whether or not its process still lives.

    Raises:
        LookupError: there is no such run.
    """
    sweep, jobs = store.run(sweep_id), read_jobs(store, sweep_id)
    kept: Mapping[str, bytes] = {}
    if finished := next((job for job in jobs if job.runs), None):
        kept = store.read_files(finished.runs["downstream"], suffix=("theory.txt", "transfer.json"))
    return Content(
        sweep=sweep,
        jobs=jobs,
        runs=list(runs_of(store, sweep_id)),
        verdict=kept.get("theory.txt", b"").decode(),
        inherited=json.loads(kept["transfer.json"]) if kept else None,
        files=store.read_files(sweep_id, suffix=(".csv", ".png", ".txt", ".patch", ".yaml")),
    )


def render(content: Content) -> str:
    """The page: no script, no link to anything outside, light and dark, for screen, phone and paper."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    table = read_table(content.files.get("table.csv", b""))
    keys = [key for key in swept_keys(content.jobs) if key in table]
    sections = {**_head(content, keys), **_results(content, table, keys), **_code(content)}
    return environment.get_template("page.html.jinja").render(sections)


def _head(content: Content, keys: Sequence[str]) -> dict[str, object]:
    """What was asked, of what, and how far it is."""
    sweep, jobs = content.sweep, content.jobs
    swept = " and ".join(keys)
    return {
        "sweep": sweep,
        "started": datetime.fromtimestamp(sweep.started, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "title": sweep.tags.get("experiment") or " over ".join(filter(None, ["Sweep", swept])),
        "question": sweep.tags.get("question") or f"How do test accuracy and gain depend on {swept or 'the setting'}?",
        "num_jobs": len(jobs),
        "num_ended": sum(job.has_ended for job in jobs),
        "failed": [(setting_text(job.overrides), job.error) for job in jobs if job.error is not None],
        "settings": _settings(jobs),
        "config": content.text("config.yaml"),
    }


def _results(content: Content, table: pd.DataFrame, keys: Sequence[str]) -> dict[str, object]:
    """What was measured, what the theory says of it, what was inherited, and what it cost."""
    return {
        "figures": list(_figures(content.files, _alternative(table, keys))),
        "results": _result_table(table, keys),
        "tables": list(figure_tables(content.files)),
        "notes": content.text("notes.txt").splitlines(),
        "theory": _theory(table, keys),
        "agreement": harm_prediction(table),
        "verdict": content.verdict,
        "inherited": content.inherited,
        "tensors": _tensors(content.inherited),
        "costs": _costs(content),
    }


def _code(content: Content) -> dict[str, object]:
    """What the sweep can be repeated with."""
    sweep = content.sweep
    return {
        "command": sweep.tags.get("command", f"python train.py -m {sweep.name.removeprefix('sweep ')}"),
        "commit": sweep.tags.get("mlflow.source.git.commit", "unknown"),
        "is_changed": bool(content.files.get("git_diff.patch", b"").strip()),
        "versions": [
            line for line in content.text("package_versions.txt").splitlines() if line.partition("==")[0] in _PACKAGES
        ],
    }


def _settings(jobs: Sequence[JobRecord]) -> dict[str, str]:
    """The keys that the command and the experiment set, each with all its values."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    values = {key: dict.fromkeys(str(job.overrides.get(key)) for job in jobs) for key in keys}
    return {key: ", ".join(values[key]) for key in keys}


def _figures(files: Mapping[str, bytes], alternative: str) -> Iterator[tuple[str, str]]:
    """Each figure as a data URI with its text alternative."""
    for name, content in sorted(files.items()):
        if name.endswith(".png"):
            yield f"data:image/png;base64,{base64.b64encode(content).decode()}", alternative


def _alternative(table: pd.DataFrame, keys: Sequence[str]) -> str:
    if table.empty:
        return "Figure of the sweep."
    ranges = [
        f"{_RESULTS[column]} from {table[column].min():.3f} to {table[column].max():.3f}"
        for column in (ACCURACY, BASELINE_ACCURACY)
    ]
    over = f" over {' and '.join(keys)}" if keys else ""
    return f"Test accuracy{over}: {', '.join(ranges)}. The numbers are in the table below."


def _result_table(table: pd.DataFrame, keys: Sequence[str]) -> PageTable | None:
    if table.empty:
        return None
    titles = {
        **{key: key for key in keys},
        **_RESULTS,
        **{sem_of(name): sem_of(new) for name, new in _RESULTS.items()},
    }
    table = table.assign(p=gain_p(table))
    columns = [name for name in titles if name in table]
    return shown("Test accuracy, mean ± standard error", table[columns].rename(columns=titles))


def _theory(table: pd.DataFrame, keys: Sequence[str]) -> PageTable | None:
    if HARM_PREDICTED not in table:
        return None
    columns = {name: title for name, title in _THEORY.items() if name in table}
    theory = table[[*keys, *columns]].rename(columns=columns)
    theory["harm predicted"] = table[HARM_PREDICTED].map(yes_or_no)
    theory["gain"], theory[sem_of("gain")] = table[GAIN], table[sem_of(GAIN)]
    theory["Condition 4.1"] = table[CONDITION_HOLDS].map({0: "fails", 1: "holds"})
    return shown("What the theory says of each setting", theory)


def _tensors(inherited: Inherited | None) -> PageTable | None:
    if inherited is None:
        return None
    tensors = pd.DataFrame(inherited["tensors"]).rename(columns=lambda name: name.replace("_", " "))
    return shown("Tensor by tensor", tensors, at_most=len(tensors))


def _costs(content: Content) -> PageTable | None:
    """Seconds of training alone, summed over the runs of each stage; of reused runs, those that they took once."""
    if not content.runs:
        return None
    rows = []
    for stage in (*SIDES, "all"):
        runs = [run for run in content.runs if stage in ("all", run.tags["stage"])]
        row = [stage]
        for is_reused in (False, True):
            part = [run for run in runs if (run.started < content.sweep.started) == is_reused]
            seconds = sum(run.metrics.get(TRAINING_SECONDS, 0.0) for run in part)
            row += [str(len(part)), f"{seconds:.1f} s"]
        rows.append(row)
    return PageTable("Training", ("stage", "trained", "time", "reused", "time saved"), rows)
