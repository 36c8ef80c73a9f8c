"""The tables of a page: from numbers and their standard errors to finished texts."""

import io
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from paramtransfer.metrics import sem_of

_MOST_ROWS = 150  # longer tables are named, not shown: they are what the figure draws
_FEW_DIGITS = 8
_SIGNED = ("gain", "difference")  # columns that are differences: shown with sign and in standard errors


@dataclass(frozen=True)
class PageTable:
    """A table of finished texts; without columns, its title stands for it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def read_table(csv: bytes) -> pd.DataFrame:
    """A table that the sweep's run keeps; empty where the file is or is missing."""
    return pd.read_csv(io.BytesIO(csv)) if csv.strip() else pd.DataFrame()


def figure_tables(files: Mapping[str, bytes]) -> Iterator[PageTable]:
    """What the figure leaves beside the sweep's own `table.csv`, each file under its name in words."""
    for name, content in sorted(files.items()):
        stem, _, suffix = name.rpartition(".")
        if suffix == "csv" and stem != "table":
            yield shown(stem.replace("_", " ").capitalize(), _as_written(content))


def _as_written(csv: bytes) -> pd.DataFrame:
    """A table whose columns of few digits stay as they are written; a column may have no name."""
    table = read_table(csv)
    texts = pd.read_csv(io.BytesIO(csv), dtype=str, keep_default_na=False)
    for name in texts:
        if texts[name].str.len().max() <= _FEW_DIGITS and sem_of(str(name)) not in texts:
            table[name] = texts[name]
    return table.rename(columns=lambda name: "" if name.startswith("Unnamed: ") else name)


def shown(title: str, table: pd.DataFrame, at_most: int = _MOST_ROWS) -> PageTable:
    """Every column as text; one of values and that of their standard errors become one.

    Args:
        title: says what the table is of.
        table: numbers, texts and truth values.
        at_most: rows; of a longer table the title alone is left, with their number.
    """
    if len(table) > at_most:
        return PageTable(f"{title}: {len(table)} rows, in the CSV beside this page", (), ())
    names = [str(name) for name in table]
    errors = {sem_of(name) for name in names}
    names = [name for name in names if name not in errors]
    rows = [[_cell(name, row) for name in names] for row in table.to_dict("records")]
    return PageTable(title, names, rows)


def _cell(name: str, row: Mapping[Hashable, str | float | None]) -> str:
    value, sem = row[name], row.get(sem_of(name))
    if isinstance(value, bool):
        return yes_or_no(value)
    if isinstance(value, int | str):
        return str(value)
    if value is None or pd.isna(value):
        return "–"
    signed = name in _SIGNED
    if not isinstance(sem, float | int) or pd.isna(sem):
        return f"{'+' if signed and value > 0 else ''}{value:.4g}"
    errors = f" ({value / sem:+.1f} s.e.)" if signed and sem else ""
    return f"{value:{'+' if signed else ''}.4f} ± {sem:.4f}{errors}"


def yes_or_no(value: object) -> str:
    """A truth value, or a 0 or 1 that stands for one, as a word."""
    return "yes" if value else "no"
