"""From the runs of a sweep to a table: one row per setting, seeds averaged."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from paramtransfer.figures.drawing import SweepData
from paramtransfer.tracking.store import Store
from paramtransfer.tracking.sweeps import JobRecord

if TYPE_CHECKING:
    from paramtransfer.experiment.run import Job

SEED = "seed"
_ESTIMATES = ("test/acc", "test/acc_without_transfer", "test/gain")


def swept_keys(records: Sequence[JobRecord]) -> list[str]:
    """The keys that take more than one value over the jobs, in the order of the command."""
    keys = dict.fromkeys(key for record in records for key in record.overrides)
    return [key for key in keys if len({str(record.overrides.get(key)) for record in records}) > 1]


def job_rows(store: Store, records: Sequence[JobRecord]) -> pd.DataFrame:
    """One row per finished job: the keys that the command sets, its downstream's metrics, n, ids of its runs."""
    rows = []
    for record in records:
        if record.runs:
            run = store.client.get_run(record.runs["downstream"])
            ids = {f"{stage}_run_id": run_id for stage, run_id in record.runs.items()}
            rows.append({**record.overrides, **run.data.metrics, "n": int(run.data.params["replicates"]), **ids})
    return pd.DataFrame(rows)


def average_seeds(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per setting of the other swept keys, in the order of the jobs.

    Seeds are independent: a mean over them has the root of their summed squared errors over their number as its
    standard error, or their spread's where each has one replicate.
    """
    by = [key for key in keys if key != SEED]
    if SEED not in keys or rows.empty:
        return rows
    groups = rows.groupby(by, sort=False, dropna=False) if by else [((), rows)]
    averaged = []
    for _, group in groups:
        row = group.drop(columns=SEED).iloc[0].copy()
        row.update(group.drop(columns=[SEED, *by]).mean(numeric_only=True))
        for name in _ESTIMATES:
            if (group["n"] == 1).all() and len(group) > 1:
                row[f"{name}_sem"] = group[name].std() / len(group) ** 0.5
            else:
                row[f"{name}_sem"] = np.sqrt((group[f"{name}_sem"] ** 2).sum()) / len(group)
        row["n"] = int(group["n"].sum())
        averaged.append(row)
    return pd.DataFrame(averaged).reset_index(drop=True)


def read_sweep(store: Store, records: Sequence[JobRecord], job: Callable[[], "Job"]) -> SweepData:
    """The sweep, from the store."""
    keys = swept_keys(records)

    def history(run_id: str, name: str) -> pd.Series:
        points = store.client.get_metric_history(run_id, name)
        return pd.Series({point.step: point.value for point in points}, name=name)

    rows = job_rows(store, records)
    table = average_seeds(rows, keys)
    return SweepData(keys=[key for key in keys if key != SEED], table=table, rows=rows, job=job, history=history)


def printed(table: pd.DataFrame, keys: Sequence[str], failed: Sequence[JobRecord]) -> Table:
    """The table for a terminal: what was measured, and what Theorem 4.2 and Proposition 4.4 (predicted) say of it."""
    has_theory = "theory/transfer_ratio" in table
    theory = ("A/(B d)", "predicted") if has_theory else ()
    shown = Table(box=box.SIMPLE_HEAD, title="Test accuracy ± s.e.", padding=(0, 1, 0, 0))
    short = [key.rpartition(".")[2] for key in keys]
    names = short if len(set(short)) == len(keys) else keys
    for name in (*names, "without transfer", "with transfer", "gain", "n", *theory):
        shown.add_column(name, no_wrap=True)
    for _, row in table.iterrows():
        estimates = [f"{row[name]:.4f} ± {row[f'{name}_sem']:.4f}" for name in (_ESTIMATES[1], _ESTIMATES[0])]
        gain = f"{row['test/gain']:+.4f} ± {row['test/gain_sem']:.4f}"
        cells = [*(str(row[key]) for key in keys), *estimates, gain, str(int(row["n"]))]
        if has_theory:
            cells += [f"{row['theory/transfer_ratio']:.3g}", "harm" if row["theory/negative_transfer"] else "no harm"]
        shown.add_row(*cells)
    for record in failed:
        shown.add_row(*(str(record.overrides.get(key)) for key in keys), "failed")
    return shown
