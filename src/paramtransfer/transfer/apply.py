"""How: inherited filters are copied as they are, and every tensor is accounted for."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from paramtransfer.transfer.plan import Pairing, State


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


@dataclass(frozen=True)
class Report:
    """One row for every tensor of the downstream model."""

    rows: list[Inherited]

    @property
    def summary(self) -> str:
        """What was inherited, in one line."""
        filters, of_filters = sum(row.filters for row in self.rows), sum(row.of_filters for row in self.rows)
        return f"{filters} of {of_filters} filters inherited"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {"summary": self.summary, "tensors": [asdict(row) for row in self.rows]}


def copy_filters(
    upstream: State, fresh: State, plan: list[Pairing], select: Callable[[int], Tensor]
) -> tuple[dict[str, Tensor], Report]:
    """The downstream model's new state, in new tensors, and the account of it.

    Args:
        upstream: state of the trained upstream model.
        fresh: state of the fresh downstream model.
        plan: one pairing for every tensor of `fresh`.
        select: the indices to inherit, given the number of filters; they keep their positions.
    """
    assert [pairing.target for pairing in plan] == list(fresh)
    state, rows = {}, []
    for pairing in plan:
        tensor = fresh[pairing.target].clone()
        filters = of_filters = elements = 0
        if pairing.source is not None:
            of_filters = tensor.shape[pairing.filter_dim]
            index = select(of_filters).to(tensor.device)
            source = upstream[pairing.source].to(tensor).index_select(pairing.filter_dim, index)
            tensor.index_copy_(pairing.filter_dim, index, source)
            filters, elements = len(index), source.numel()
        state[pairing.target] = tensor
        rows.append(
            Inherited(
                target=pairing.target,
                source=pairing.source,
                filters=filters,
                of_filters=of_filters,
                elements=elements,
                of_elements=tensor.numel(),
                reason=pairing.reason,
            )
        )
    return state, Report(rows)
