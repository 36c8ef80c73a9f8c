"""What a figure is made from and what it leaves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import pandas as pd
from matplotlib.figure import Figure

from paramtransfer.figures import style

if TYPE_CHECKING:
    from paramtransfer.experiment.job import Job


@dataclass(frozen=True, kw_only=True)
class SweepData:
    """A sweep, read from the store."""

    keys: Sequence[str]
    """The swept keys, less the seed."""
    table: pd.DataFrame
    """One row per setting of the keys: metrics averaged over seeds, ids of the runs of the first seed."""
    rows: pd.DataFrame
    """One row per job: the keys that the command sets, its downstream's metrics, n, ids of its runs."""
    job: Callable[[], "Job"]
    """Makes the sweep's first job again, as objects."""
    history: Callable[[str, str], pd.Series]
    """A metric's curve by run id and name: values by step."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Figures and tables by file name, without suffix, and what they show in sentences."""

    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def as_files(self) -> dict[str, str | bytes]:
        """PNG and PDF of each figure, CSV of each table, and the notes as `notes.txt`, by file name."""
        files: dict[str, str | bytes] = {}
        with style.applied():
            for name, figure in self.figures.items():
                files |= style.as_files(name, figure)
        files |= {f"{name}.csv": as_csv(table) for name, table in self.tables.items()}
        return files | ({"notes.txt": "\n".join(self.notes) + "\n"} if self.notes else {})


def as_csv(table: pd.DataFrame) -> str:
    """A table's file; text that a spreadsheet would take for a formula begins with a quote there."""
    return table.map(_quoted).to_csv(index=False)


def _quoted(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


class Draw(Protocol):
    """A way to draw a sweep; `figure._target_` names one."""

    @property
    def keys(self) -> Sequence[str] | None:
        """The swept keys that the figure tells apart; None stands for any."""

    def __call__(self, data: SweepData) -> Drawing: ...
