"""What was inherited: the account of every tensor of the downstream model."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH = 140  # columns that full names need


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """What one tensor of the downstream model inherited."""

    target: str
    source: str | None
    filters: int
    """Filters inherited."""
    of_filters: int
    """Filters that the tensor has; 0 where it has none."""
    elements: int
    """Numbers inherited."""
    of_elements: int
    """Numbers that the tensor has."""
    reason: str
    """Why the tensor stayed fresh."""

    @property
    def status(self) -> str:
        """`inherited`, `partly inherited` or `fresh`."""
        if not self.elements:
            return "fresh"
        return "inherited" if self.elements == self.of_elements else "partly inherited"


@dataclass(frozen=True)
class Report:
    """One row for every tensor of the downstream model; printed, a table."""

    rows: list[Inherited]

    @property
    def summary(self) -> str:
        """What was inherited, in one line."""
        weights = [row for row in self.rows if row.of_elements > row.of_filters > 0]  # not what goes with filters
        filters, of_filters = sum(row.filters for row in weights), sum(row.of_filters for row in weights)
        elements, of_elements = sum(row.elements for row in self.rows), sum(row.of_elements for row in self.rows)
        parts = [f"{filters:,} of {of_filters:,} filters"] if of_filters else []
        if len(self.rows) > 1:
            parts.append(f"{elements:,} of {of_elements:,} numbers")
        return f"{', '.join(parts)} inherited"

    @property
    def inherited(self) -> set[str]:
        """Names of the tensors that inherited something."""
        return {row.target for row in self.rows if row.elements}

    def __str__(self) -> str:
        table = Table("tensor", "from", "filters", "numbers", "", title=self.summary)
        for row in self.rows:
            filters = f"{row.filters} of {row.of_filters}" if row.of_filters else ""
            numbers = f"{row.elements:,} of {row.of_elements:,}"
            table.add_row(row.target, row.source or "", filters, numbers, row.reason or row.status)
        console = Console(width=max(Console().width, _WIDTH))
        with console.capture() as printed:
            console.print(table)
        return printed.get()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        tensors = [{**asdict(row), "status": row.status} for row in self.rows]
        return {"summary": self.summary, "tensors": tensors}
