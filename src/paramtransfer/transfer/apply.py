"""How: inherited slices are copied as they are, and every tensor is accounted for."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from paramtransfer.transfer.layout import Axis
from paramtransfer.transfer.plan import Plan, State
from paramtransfer.transfer.report import Inherited, Report

Select = Callable[[Axis | None, int, int], tuple[Tensor, Tensor]]


def inherit(plan: Plan, upstream: State, fresh: State, select: Select) -> tuple[dict[str, Tensor], Report]:
    """The downstream model's new state, in new tensors, and the account of it.

    Args:
        plan: one pairing for every tensor of `fresh`.
        upstream: state of the trained upstream model.
        fresh: state of the fresh downstream model.
        select: positions along a dimension, here and upstream, given its axis and its two sizes.
    """
    assert [pairing.target for pairing in plan] == list(fresh)
    state, rows = {}, []
    for pairing in plan:
        tensor = fresh[pairing.target].clone()
        counted = [dim for dim, axis in enumerate(pairing.axes) if axis is not None and axis.filters]
        filters = elements = 0
        if pairing.source is not None:
            sizes = zip(pairing.axes, pairing.shape, pairing.source_shape, strict=True)
            here, there = zip(*(select(*size) for size in sizes), strict=True)
            taken = upstream[pairing.source][torch.meshgrid(*there, indexing="ij")]
            tensor[torch.meshgrid(*here, indexing="ij")] = taken.to(tensor)
            elements = math.prod(len(index) for index in here)
            filters = sum(len(here[dim]) for dim in counted)
        state[pairing.target] = tensor
        rows.append(
            Inherited(
                target=pairing.target,
                source=pairing.source,
                filters=filters,
                of_filters=sum(pairing.shape[dim] for dim in counted),
                elements=elements,
                of_elements=tensor.numel(),
                reason=pairing.reason,
            )
        )
    return state, Report(rows)
