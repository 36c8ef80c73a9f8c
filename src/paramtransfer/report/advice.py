"""What a person sees of an advice in the terminal: the table of its candidates and the verdict."""

import math

from rich import box
from rich.table import Table

from paramtransfer.advice.advisor import Kept
from paramtransfer.advice.verdict import COLUMNS, Row
from paramtransfer.report.terminal import console


def print_advice(kept: Kept, *, seconds: float) -> None:
    """Print table, verdict and how to load the start.

    Args:
        kept: the advice and where it is.
        seconds: since the process was started.
    """
    terminal = console()
    table = Table(
        *COLUMNS, box=box.SIMPLE_HEAD, title="Gain over a fresh start on validation images", padding=(0, 1, 0, 0)
    )
    for row in kept.advice.rows:
        table.add_row(*_cells(row))
    terminal.print(table)
    for sentence in kept.advice.sentences():
        terminal.print(sentence, highlight=False, markup=False)
    terminal.print(f"The {kept.advice.start} start:", highlight=False, markup=False)
    print(kept.loading)  # to be copied: no line is broken
    print(f"Verdict, table and start of run {kept.run_id}: {kept.folder}")
    terminal.print(f"Done in {seconds:.1f} s. Compare the runs in the browser: make ui", highlight=False)


def _cells(row: Row) -> list[str]:
    gain = "–" if math.isnan(row.gain) else f"{row.gain:+.4f}"
    sem = "–" if math.isnan(row.sem) else f"{row.sem:.4f}"
    return [row.candidate, f"{row.knn:.3f}", f"{row.logme:.3f}", str(row.epochs), gain, sem, *map(str, row[-3:])]
