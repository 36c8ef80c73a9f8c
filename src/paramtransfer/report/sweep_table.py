"""From the runs of a sweep to a table: one row per setting, seeds averaged."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from paramtransfer.figures.drawing import SweepData
from paramtransfer.metrics import sem_of
from paramtransfer.statistics import pooled
from paramtransfer.tracking.store import Store
from paramtransfer.tracking.sweeps import JobRecord

if TYPE_CHECKING:
    from paramtransfer.experiment.job import Job

_SEED = "seed"


def setting_text(overrides: Mapping[str, object]) -> str:
    """A setting as a command line has it: `alpha=0.5 seed=1`."""
    return " ".join(f"{key}={value}" for key, value in overrides.items())


def swept_keys(records: Sequence[JobRecord]) -> list[str]:
    """The keys that take more than one value over the jobs, in the order of the command."""
    keys = dict.fromkeys(key for record in records for key in record.overrides)
    return [key for key in keys if len({str(record.overrides.get(key)) for record in records}) > 1]


def job_rows(store: Store, records: Sequence[JobRecord]) -> pd.DataFrame:
    """One row per finished job: the keys that the command sets, its downstream's metrics, n, ids of its runs."""
    rows = []
    for record in records:
        if record.runs:
            run = store.run(record.runs["downstream"])
            ids = {f"{stage}_run_id": run_id for stage, run_id in record.runs.items()}
            rows.append({**record.overrides, **run.metrics, "n": int(run.params["replicates"]), **ids})
    return pd.DataFrame(rows)


def average_seeds(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per setting of the other swept keys, in the order of the jobs.

    Every replicate counts the same, whichever job it is of; standard errors are those of `statistics.pooled`.
    """
    by = [key for key in keys if key != _SEED]
    if _SEED not in keys or rows.empty:
        return rows
    groups = rows.groupby(by, sort=False, dropna=False) if by else [((), rows)]
    averaged = []
    for _, group in groups:
        row = group.drop(columns=_SEED).iloc[0].copy()
        numbers = group.drop(columns=[_SEED, *by]).select_dtypes("number")
        row.update(numbers.mul(group["n"], axis=0).sum() / group["n"].sum())
        for name in [str(name) for name in group if sem_of(str(name)) in group]:
            row[name], row[sem_of(name)] = pooled(group[name], group[sem_of(name)], group["n"])
        row["n"] = int(group["n"].sum())
        averaged.append(row)
    return pd.DataFrame(averaged).reset_index(drop=True)


def read_sweep(store: Store, records: Sequence[JobRecord], job: Callable[[], "Job"]) -> SweepData:
    """Everything that figures and tables of a sweep are made from.

    Args:
        store: where its runs are.
        records: its jobs; those that have not finished have no row.
        job: makes the first of them again, as objects.
    """
    keys = swept_keys(records)

    def history(run_id: str, name: str) -> pd.Series:
        return pd.Series(store.history(run_id, name), name=name)

    rows = job_rows(store, records)
    table = average_seeds(rows, keys)
    return SweepData(keys=[key for key in keys if key != _SEED], table=table, rows=rows, job=job, history=history)
