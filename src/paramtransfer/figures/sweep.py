"""What a sweep leaves: a table and, where one or two keys were swept, a figure."""

import sys
from collections.abc import Sequence

import matplotlib
import pandas as pd
from rich.console import Console

from paramtransfer.figures import style
from paramtransfer.figures.curves import Curves
from paramtransfer.figures.drawing import Draw, SweepData
from paramtransfer.figures.heatmap import Heatmap
from paramtransfer.figures.table import printed
from paramtransfer.tracking.sweep import JobRecord


def report_sweep(data: SweepData, records: Sequence[JobRecord], draw: Draw | None) -> dict[str, str | bytes]:
    """Print the table of a sweep and what its figure shows; return the files that its run keeps, by name.

    Args:
        data: the sweep.
        records: the jobs that have ended.
        draw: how the table is drawn; None chooses by what was swept.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(printed(data.table, data.keys, [record for record in records if record.error is not None]))
    files: dict[str, str | bytes] = {"table.csv": data.table.to_csv(index=False)}
    draw = draw or _choose(data.keys)
    if draw is None or data.table.empty:
        return files
    with matplotlib.rc_context(style.STYLE):
        drawing = draw(data)
        for name, figure in drawing.figures.items():
            files |= style.files(name, figure)
    for name, table in drawing.tables.items():
        files[f"{name}.csv"] = pd.DataFrame(table).to_csv(index=False)
    for note in drawing.notes:
        console.print(note, highlight=False)
    if drawing.notes:
        files["notes.txt"] = "\n".join(drawing.notes) + "\n"
    return files


def _choose(keys: Sequence[str]) -> Draw | None:
    match keys:
        case [x]:
            return Curves(x=x)
        case [x, y]:
            return Heatmap(x=x, y=y)
    return None
