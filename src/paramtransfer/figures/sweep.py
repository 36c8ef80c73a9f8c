"""What a sweep leaves: a table and, where one or two keys were swept, a figure."""

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from paramtransfer.figures import style
from paramtransfer.figures.curves import Curves
from paramtransfer.figures.heatmap import Heatmap
from paramtransfer.figures.table import SEED, average_seeds, job_rows, printed, swept_keys
from paramtransfer.tracking.store import Store
from paramtransfer.tracking.sweep import JobRecord

FigureOf = Callable[[pd.DataFrame], Figure]


def report_sweep(store: Store, records: Sequence[JobRecord], figure: FigureOf | None) -> dict[str, str | bytes]:
    """Print the table of a sweep; return the files that its run keeps: CSV, PNG and PDF.

    Args:
        store: where the runs of the sweep lie.
        records: the jobs that have ended.
        figure: how the table is drawn; None chooses by what was swept.
    """
    keys = swept_keys(records)
    table = average_seeds(job_rows(store, records), keys)
    Console().print(printed(table, keys, [record for record in records if record.error is not None]))
    files: dict[str, str | bytes] = {"table.csv": table.to_csv(index=False)}
    figure = figure or _choose([key for key in keys if key != SEED])
    if figure is not None and not table.empty:
        files |= style.files("figure", figure(table))
    return files


def _choose(keys: Sequence[str]) -> FigureOf | None:
    match keys:
        case [x]:
            return Curves(x=x)
        case [x, y]:
            return Heatmap(x=x, y=y)
    return None
