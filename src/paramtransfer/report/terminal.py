"""What a sweep leaves: a table and, where one or two keys were swept, a figure."""

import sys
from collections.abc import Sequence

import matplotlib
from rich.console import Console

from paramtransfer.figures import style
from paramtransfer.figures.curves import Curves
from paramtransfer.figures.drawing import Draw, SweepData
from paramtransfer.figures.heatmap import Heatmap
from paramtransfer.report.sweep_table import printed
from paramtransfer.tracking.sweeps import NOT_STARTED, JobRecord


def print_table(data: SweepData, records: Sequence[JobRecord]) -> dict[str, str | bytes]:
    """Print the table of a sweep, failed jobs included; return the file that its run keeps."""
    failed = [record for record in records if record.error not in (None, NOT_STARTED)]
    if not data.table.empty:
        _console().print(printed(data.table, data.keys, failed))
        if (data.table["n"] == 1).any():
            print("n = 1: the standard error is over the test samples alone; sweep seed for more.")
    for record in failed:
        setting = " ".join(
            f"{key}={value}"
            for key, value in record.overrides.items()
            if any(other.overrides.get(key) != value for other in records)
        )
        print(f"failed: #{record.num} {setting}: {record.error}")
    left = sum(record.error == NOT_STARTED for record in records)
    if left:
        print(f"{left} jobs were not started: the same command goes on with them.")
    return {"table.csv": data.table.to_csv(index=False)}


def draw_figure(data: SweepData, draw: Draw | None) -> dict[str, str | bytes]:
    """Draw a sweep and print what the figure shows; return the files that its run keeps, by name.

    Args:
        data: the sweep.
        draw: how it is drawn; None chooses by what was swept.
    """
    draw = draw or _choose(data.keys)
    if draw is None or data.table.empty:
        return {}
    mixed = [key for key in data.keys if draw.keys is not None and key not in draw.keys]
    if mixed:
        _console().print(
            f"No figure: {', '.join(mixed)} was swept too, which {type(draw).__name__} does not tell apart."
        )
        return {}
    files: dict[str, str | bytes] = {}
    with matplotlib.rc_context(style.STYLE):
        drawing = draw(data)
        for name, figure in drawing.figures.items():
            files |= style.files(name, figure)
    for name, table in drawing.tables.items():
        files[f"{name}.csv"] = table.to_csv(index=False)
    if drawing.notes:
        files["notes.txt"] = "\n".join(drawing.notes) + "\n"
        _console().print(*drawing.notes, sep="\n", highlight=False)
    return files


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def _choose(keys: Sequence[str]) -> Draw | None:
    match keys:
        case [x]:
            return Curves(x=x)
        case [x, y]:
            return Heatmap(x=x, y=y)
    return None
