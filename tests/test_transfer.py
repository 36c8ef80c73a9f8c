"""Plans, selection and copying of filters."""

import pytest
import torch

from paramtransfer.transfer.apply import copy_filters
from paramtransfer.transfer.plan import pair_by_name
from paramtransfer.transfer.rules import Filters, Nothing
from paramtransfer.transfer.select import num_inherited


@pytest.mark.parametrize(
    ("alpha", "filters", "expected"), [(0, 40, 0), (1, 40, 40), (0.5, 5, 3), (0.29, 10, 3), (0.24, 10, 2), (0.5, 1, 1)]
)
def test_alpha_m_rounds_to_the_nearest_whole_filter(alpha: float, filters: int, expected: int) -> None:
    """Halves go up."""
    assert num_inherited(alpha, filters) == expected


def test_every_tensor_is_inherited_partly_inherited_or_fresh_and_accounted_for() -> None:
    """A plain loop over filters makes the same tensors; the report's numbers add up to the model's size."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"whole": (4, 3), "inner": (2, 6, 5), "other shape": (3, 3), "alone": (7,), "no filters": (2,)}
    fresh = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    upstream = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items() if name != "alone"}
    upstream["other shape"] = torch.randn(4, 3, generator=generator)
    dims = {"whole": 0, "inner": 1, "other shape": 0, "alone": 0}
    plan = pair_by_name(upstream, fresh, dims)
    state, report = copy_filters(upstream, fresh, plan, lambda num: torch.arange(1, num, 2))

    expected = {name: tensor.clone() for name, tensor in fresh.items()}
    for r in range(1, 4, 2):
        expected["whole"][r] = upstream["whole"][r]
    for r in range(1, 6, 2):
        expected["inner"][:, r] = upstream["inner"][:, r]
    assert all(torch.equal(state[name], expected[name]) for name in shapes)
    assert [row.elements for row in report.rows] == [6, 30, 0, 0, 0]
    assert sum(row.of_elements for row in report.rows) == sum(tensor.numel() for tensor in fresh.values())
    assert [bool(row.reason) for row in report.rows] == [False, False, True, True, True]


def test_rules_leave_their_inputs_alone() -> None:
    """Applying a rule is pure: neither state changes, and nothing is shared with the result."""
    upstream, fresh = {"filters": torch.ones(1, 2, 4, 3)}, {"filters": torch.zeros(1, 2, 4, 3)}
    for rule, inherited in ((Filters(alpha=0.5), 12.0), (Nothing(), 0.0)):
        state, _ = rule(upstream, fresh, {"filters": 2})
        assert state["filters"].sum() == inherited
        state["filters"].fill_(7)
        assert upstream["filters"].unique().tolist() == [1]
        assert fresh["filters"].unique().tolist() == [0]
