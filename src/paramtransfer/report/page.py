"""From what the store keeps of a sweep to one HTML page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from paramtransfer.report.sweep_table import swept_keys
from paramtransfer.stage import Stage
from paramtransfer.tracking.sweeps import JobRecord

_TABLE_ROWS = 150  # longer tables are named, not shown: they are what the figure draws
_FEW_DIGITS = 8
_PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "numpy", "hydra-core", "mlflow")
_STAGES: Sequence[Stage] = ("upstream", "baseline", "downstream")
_RESULTS = {
    "test/acc_without_transfer": "without transfer",
    "test/acc": "with transfer",
    "test/gain": "gain",
    "n": "n",
}
_THEORY = {
    "theory/transfer_ratio": "A/(B d), Theorem 4.2",
    "theory/scratch_ratio": "N₂‖s₂‖⁴/(σ₂⁴ d), Theorem 4.3",
    "theory/gamma": "Γ, Proposition 4.4",
}
_SIGNED = ("gain", "difference")  # columns that are differences: shown with sign and in standard errors


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that a page is made from."""

    sweep_id: str
    experiment: str
    """Its name; empty where the sweep is none."""
    status: str
    """As MLflow says it: RUNNING, FINISHED, FAILED or KILLED."""
    started: datetime
    question: str
    """What the experiment's file says of it; empty where there is none."""
    command: str
    commit: str
    changed: bool
    """Whether the code differed from that commit."""
    versions: str
    """One `name==version` a line."""
    config: str
    """The configuration that the sweep started from, as YAML."""
    records: Sequence[JobRecord]
    """The jobs, those that have not ended included."""
    stages: pd.DataFrame
    """A row for each run that the sweep uses: stage, status, trained (in this sweep, not reused), seconds."""
    verdict: str
    """What the theory says of the first job, in words."""
    plan: Mapping[str, Any] | None
    """The transfer report of one downstream run."""
    files: Mapping[str, bytes]
    """The artifacts of the sweep's run: tables, figures, notes."""


@dataclass(frozen=True)
class Table:
    """A table of finished texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(content: Content) -> str:
    """The page: no script, no link to anything outside, light and dark, for screen, phone and paper."""
    table = _read_table(content.files.get("table.csv", b""))
    keys = [key for key in swept_keys(content.records) if key in table]
    swept = " and ".join(keys)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.jinja").render(
        content=content,
        title=content.experiment or " over ".join(filter(None, ["Sweep", swept])),
        question=content.question or f"How do test accuracy and gain depend on {swept or 'the setting'}?",
        num_ended=sum(record.has_ended for record in content.records),
        settings=_settings(content.records),
        figures=_figures(content.files, _alternative(table, keys)),
        results=_results(table, keys),
        tables=list(other_tables(content.files)),
        notes=content.files.get("notes.txt", b"").decode().splitlines(),
        failed=[(_text(record.overrides), record.error) for record in content.records if record.error is not None],
        theory=_theory(table, keys),
        agreement=_agreement(table),
        plan=_plan(content.plan),
        costs=_costs(content.stages),
        versions=[line for line in content.versions.splitlines() if line.partition("==")[0] in _PACKAGES],
    )


def _read_table(csv: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(csv)) if csv.strip() else pd.DataFrame()


def _settings(records: Sequence[JobRecord]) -> dict[str, str]:
    """The keys that the command and the experiment set, each with all its values."""
    keys = dict.fromkeys(key for record in records for key in record.overrides)
    values = {key: dict.fromkeys(str(record.overrides.get(key)) for record in records) for key in keys}
    return {key: ", ".join(values[key]) for key in keys}


def _figures(files: Mapping[str, bytes], alternative: str) -> list[tuple[str, str]]:
    """Each figure as a data URI with its text alternative."""
    return [
        (f"data:image/png;base64,{base64.b64encode(content).decode()}", alternative)
        for name, content in sorted(files.items())
        if name.endswith(".png")
    ]


def _alternative(table: pd.DataFrame, keys: Sequence[str]) -> str:
    if table.empty:
        return "Figure of the sweep."
    ranges = [
        f"{name} from {table[column].min():.3f} to {table[column].max():.3f}"
        for column, name in (("test/acc", "with transfer"), ("test/acc_without_transfer", "without transfer"))
    ]
    over = f" over {' and '.join(keys)}" if keys else ""
    return f"Test accuracy{over}: {', '.join(ranges)}. The numbers are in the table below."


def _results(table: pd.DataFrame, keys: Sequence[str]) -> Table | None:
    if table.empty:
        return None
    shown = {
        **{key: key for key in keys},
        **_RESULTS,
        **{f"{name}_sem": f"{new}_sem" for name, new in _RESULTS.items()},
    }
    columns = [name for name in shown if name in table]
    return _shown("Test accuracy, mean ± standard error", table[columns].rename(columns=shown))


def _theory(table: pd.DataFrame, keys: Sequence[str]) -> Table | None:
    if "theory/negative_transfer" not in table:
        return None
    columns = {name: title for name, title in _THEORY.items() if name in table}
    theory = table[[*keys, *columns]].rename(columns=columns)
    theory["harm predicted"] = table["theory/negative_transfer"].map(_yes_or_no)
    theory["gain"], theory["gain_sem"] = table["test/gain"], table["test/gain_sem"]
    theory["Condition 4.1"] = table["theory/condition_holds"].map({0: "fails", 1: "holds"})
    return _shown("What the theory says of each setting", theory)


def _agreement(table: pd.DataFrame) -> str:
    """How often Proposition 4.4 has the sign of a gain right, where the gain is beyond 2 standard errors."""
    if "theory/negative_transfer" not in table:
        return ""
    clear = table[table["test/gain"].abs() > 2 * table["test/gain_sem"]]
    right = int(((clear["test/gain"] < 0) == (clear["theory/negative_transfer"] > 0)).sum())
    return (
        f"Proposition 4.4's condition for negative transfer has the sign of the gain right in {right} of the "
        f"{len(clear)} settings whose gain is beyond 2 s.e. ({len(table)} settings in all)."
    )


def other_tables(files: Mapping[str, bytes]) -> Any:
    """What the figure leaves beside the sweep's own table; `paper` and `ours` side by side where it knows both."""
    for name, content in sorted(files.items()):
        stem, _, suffix = name.rpartition(".")
        if suffix == "csv" and stem != "table":
            yield _shown(stem.replace("_", " ").capitalize(), _as_written(content))


def _as_written(csv: bytes) -> pd.DataFrame:
    """A table whose columns of few digits stay as they are written; a column may have no name."""
    table = _read_table(csv)
    texts = pd.read_csv(io.BytesIO(csv), dtype=str, keep_default_na=False)
    for name in texts:
        if texts[name].str.len().max() <= _FEW_DIGITS and f"{name}_sem" not in texts:
            table[name] = texts[name]
    return table.rename(columns=lambda name: "" if name.startswith("Unnamed: ") else name)


def _shown(title: str, table: pd.DataFrame, at_most: int = _TABLE_ROWS) -> Table:
    """Every column as text; `x` and `x_sem` become one."""
    if len(table) > at_most:
        return Table(f"{title}: {len(table)} rows, in the CSV beside this page", (), ())
    names = [str(name) for name in table]
    names = [name for name in names if not (name.endswith("_sem") and name.removesuffix("_sem") in table)]
    rows = [[_cell(name, row) for name in names] for row in table.to_dict("records")]
    return Table(title, names, rows)


def _cell(name: str, row: Mapping[Any, Any]) -> str:
    value, sem = row[name], row.get(f"{name}_sem")
    if isinstance(value, bool):
        return _yes_or_no(value)
    if isinstance(value, int | str):
        return str(value)
    if pd.isna(value):
        return "–"
    if sem is None or pd.isna(sem):
        signed = name in _SIGNED and value > 0
        return f"{'+' if signed else ''}{value:.4g}"
    if name not in _SIGNED:
        return f"{value:.4f} ± {sem:.4f}"
    errors = f" ({value / sem:+.1f} s.e.)" if sem else ""
    return f"{value:+.4f} ± {sem:.4f}{errors}"


def _yes_or_no(value: Any) -> str:
    return "yes" if value else "no"


def _plan(plan: Mapping[str, Any] | None) -> Table | None:
    if plan is None:
        return None
    tensors = pd.DataFrame(plan["tensors"]).rename(columns=lambda name: name.replace("_", " "))
    return _shown("Tensor by tensor", tensors, at_most=len(tensors))


def _costs(stages: pd.DataFrame) -> Table | None:
    """Seconds of training alone, summed over the runs of each stage."""
    if stages.empty:
        return None
    rows = []
    for stage in (*_STAGES, "all"):
        runs = stages if stage == "all" else stages[stages["stage"] == stage]
        trained = runs["trained"].astype(bool)
        parts = [(len(part), part["seconds"].sum()) for part in (runs[trained], runs[~trained])]
        rows.append([stage, *(text for number, seconds in parts for text in (str(number), f"{seconds:.1f} s"))])
    return Table("Training", ("stage", "trained", "time", "reused", "time saved"), rows)


def _text(overrides: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides.items())
