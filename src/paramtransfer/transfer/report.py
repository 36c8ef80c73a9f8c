"""What was inherited: the account of every tensor of the downstream model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from torch import Tensor

_WIDTH = 140  # columns that full names need


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """What one tensor of the downstream model inherited."""

    target: str
    upstream: str | None
    """The tensor that it inherited from."""
    filters: int
    """Filters inherited."""
    of_filters: int
    """Filters that the tensor has; 0 where it has none."""
    mask: Tensor
    """Which of the tensor's numbers are inherited, of its shape."""
    reason: str
    """Why the tensor stayed fresh."""

    @property
    def elements(self) -> int:
        """Numbers inherited."""
        return int(self.mask.sum())

    @property
    def of_elements(self) -> int:
        """Numbers that the tensor has."""
        return self.mask.numel()

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
    explained: Mapping[str, float] = field(default_factory=dict)
    """Share of the variance of each of the upstream's levels that is found in the downstream's before training."""

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
    def masks(self) -> dict[str, Tensor]:
        """For each tensor that inherited something, which of its numbers did."""
        return {row.target: row.mask for row in self.rows if row.elements}

    def __str__(self) -> str:
        table = Table("tensor", "from", "filters", "numbers", "", title=self.summary)
        for row in self.rows:
            filters = f"{row.filters} of {row.of_filters}" if row.of_filters else ""
            numbers = f"{row.elements:,} of {row.of_elements:,}"
            table.add_row(row.target, row.upstream or "", filters, numbers, row.reason or row.status)
        console = Console(width=max(Console().width, _WIDTH))
        with console.capture() as printed:
            console.print(table)
            for level, share in self.explained.items():
                console.print(f"{share:6.1%} of what the upstream puts out after {level} is there before training")
        return printed.get()

    def as_dict(self) -> dict[str, object]:
        """Plain values, for a file."""
        tensors = [
            {
                "target": row.target,
                "upstream": row.upstream,
                "filters": row.filters,
                "of_filters": row.of_filters,
                "elements": row.elements,
                "of_elements": row.of_elements,
                "reason": row.reason,
                "status": row.status,
            }
            for row in self.rows
        ]
        return {"summary": self.summary, "tensors": tensors, "explained": dict(self.explained)}
