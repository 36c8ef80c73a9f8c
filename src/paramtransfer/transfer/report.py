"""What was inherited: the account of every tensor of the downstream model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from paramtransfer.metrics import (
    ABOVE,
    CHOICE_P,
    CHOICE_SECONDS,
    HINDSIGHT,
    INHERITING,
    of_candidate,
    sem_of,
)
from paramtransfer.transfer.keep_default import Choice

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


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How the start was chosen, for each replicate."""

    candidates: Sequence[str]
    """Names, the default first."""
    choices: Sequence[Choice]
    seconds: float
    """What the comparison took."""
    accuracies_RC: Tensor | None = None
    """Test accuracies of all candidates, looked up after the choice; None where nobody has asked."""

    @property
    def summary(self) -> str:
        """What was kept and what that is worth, in one line."""
        kept = Counter(self.candidates[choice.index] for choice in self.choices)
        texts = [f"{name} ({num} of {len(self.choices)})" for name, num in kept.most_common()]
        verdicts = Counter(choice.verdict for choice in self.choices)
        says = ", ".join(f"{verdict} ({num})" for verdict, num in verdicts.most_common())
        return f"chosen on the target's training data: {', '.join(texts)}; verdict: {says}"

    @property
    def metrics(self) -> dict[str, float]:
        """Means over replicates."""
        means = {
            CHOICE_SECONDS: self.seconds,
            CHOICE_P: fmean(choice.p for choice in self.choices),
            INHERITING: fmean(choice.inherits for choice in self.choices),
        }
        return means | (self._in_hindsight(self.accuracies_RC) if self.accuracies_RC is not None else {})

    def _in_hindsight(self, accuracies_RC: Tensor) -> dict[str, float]:
        """Each candidate's test accuracy, and how far above it the choice is."""
        chosen_R = accuracies_RC[torch.arange(len(accuracies_RC)), [choice.index for choice in self.choices]]
        metrics = {}
        for name, accuracy_R in zip(self.candidates, accuracies_RC.T, strict=True):
            above_R = chosen_R - accuracy_R
            above = of_candidate(ABOVE, name)
            metrics[of_candidate(HINDSIGHT, name)] = accuracy_R.mean().item()
            metrics[above] = above_R.mean().item()
            if len(above_R) > 1:
                metrics[sem_of(above)] = above_R.std().item() / len(above_R) ** 0.5
        return metrics

    def as_dict(self) -> dict[str, object]:
        """Plain values, for a file."""
        replicates = [
            {
                "kept": self.candidates[choice.index],
                "p": choice.p,
                "verdict": choice.verdict,
                "differences": [
                    {"candidate": name, "mean": mean, "sem": sem}
                    for name, (mean, sem) in zip(self.candidates, choice.differences, strict=True)
                ],
            }
            for choice in self.choices
        ]
        return {"seconds": self.seconds, "replicates": replicates}


@dataclass(frozen=True)
class Report:
    """One row for every tensor of the downstream model; printed, a table."""

    rows: list[Inherited]
    explained: Mapping[str, float] = field(default_factory=dict)
    """Share of the variance of each of the upstream's levels that is found in the downstream's before training."""
    what: str = "inherited"
    """What became of the filters and numbers that are counted."""
    compared: Compared | None = None
    """Of `transfer=chosen`: how the start was chosen."""
    candidates: Sequence[str] = ()
    """Of the same before anything is compared: what will be."""

    @property
    def summary(self) -> str:
        """What was inherited, in one line."""
        if self.compared is not None:
            return self.compared.summary
        if self.candidates:
            return f"to be chosen on the target's training data: {', '.join(self.candidates)}"
        weights = [row for row in self.rows if row.of_elements > row.of_filters > 0]  # not what goes with filters
        filters, of_filters = sum(row.filters for row in weights), sum(row.of_filters for row in weights)
        elements, of_elements = sum(row.elements for row in self.rows), sum(row.of_elements for row in self.rows)
        parts = [f"{filters:,} of {of_filters:,} filters"] if of_filters else []
        if len(self.rows) > 1:
            parts.append(f"{elements:,} of {of_elements:,} numbers")
        return f"{', '.join(parts)} {self.what}" if parts else "nothing inherited"

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
        compared = {} if self.compared is None else {"compared": self.compared.as_dict()}
        return {"summary": self.summary, "tensors": tensors, "explained": dict(self.explained), **compared}
