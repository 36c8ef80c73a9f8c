"""How: inherited slices are copied, and every tensor is accounted for."""

from collections.abc import Callable

import torch
from torch import Tensor

from paramtransfer.transfer.layout import Axis
from paramtransfer.transfer.plan import Pairing, Plan, State
from paramtransfer.transfer.report import Inherited, Report

Select = Callable[[Axis | None, int, int], tuple[Tensor, Tensor]]
Land = Callable[[Pairing, Tensor, Tensor], Tensor]


def as_it_is(pairing: Pairing, taken: Tensor, fresh: Tensor) -> Tensor:
    """The upstream's numbers."""
    return taken


def inherit(
    plan: Plan, upstream: State, fresh: State, select: Select, land: Land = as_it_is
) -> tuple[dict[str, Tensor], Report]:
    """The downstream model's new state, in new tensors, and the account of it, with a mask of what was inherited.

    Args:
        plan: one pairing for every tensor of `fresh`.
        upstream: state of the trained upstream model.
        fresh: state of the fresh downstream model.
        select: positions along a dimension, here and upstream, given its axis and its two sizes.
        land: what a slice becomes, given the upstream's numbers and the fresh ones at its place, in the same shape.

    Raises:
        ValueError: a state that is not of the models that the plan was made from.
    """
    _check_state("the downstream's", fresh, {pairing.target: pairing.shape for pairing in plan})
    if missing := [name for name in fresh if name not in {pairing.target for pairing in plan}]:
        raise ValueError(f"the downstream's state has {missing[0]}, which the plan does not know: must be made anew")
    _check_state("the upstream's", upstream, {p.upstream: p.upstream_shape for p in plan if p.upstream is not None})
    state, rows = {}, []
    for pairing in plan:
        state[pairing.target], row = _inherit_tensor(pairing, upstream, fresh, select, land)
        rows.append(row)
    return state, Report(rows)


def _inherit_tensor(
    pairing: Pairing, upstream: State, fresh: State, select: Select, land: Land
) -> tuple[Tensor, Inherited]:
    tensor = fresh[pairing.target].clone()
    mask = torch.zeros(pairing.shape, dtype=torch.bool)
    counted = [dim for dim, axis in enumerate(pairing.axes) if axis is not None and axis.counted]
    filters = 0
    if pairing.upstream is not None:
        sizes = zip(pairing.axes, pairing.shape, pairing.upstream_shape, strict=True)
        here, there = zip(*(select(*size) for size in sizes), strict=True)
        taken = upstream[pairing.upstream].view(pairing.upstream_shape)[torch.meshgrid(*there, indexing="ij")]
        place = torch.meshgrid(*here, indexing="ij")
        into = tensor.view(pairing.shape)
        into[place] = land(pairing, taken.to(tensor), into[place])
        mask[place] = True
        filters = sum(len(here[dim]) for dim in counted)
    return tensor, Inherited(
        target=pairing.target,
        upstream=pairing.upstream,
        filters=filters,
        of_filters=sum(pairing.shape[dim] for dim in counted),
        mask=mask.view(tensor.shape),
        reason=pairing.reason,
    )


def _check_state(whose: str, state: State, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name not in state or (tuple(state[name].shape) or (1,)) != shape:
            found = f"one of {tuple(state[name].shape)}" if name in state else "none"
            raise ValueError(
                f"{whose} state: must be of the model that the plan was made from, with {name} of {shape}, not {found}"
            )
