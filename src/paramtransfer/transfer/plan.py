"""Where: which tensor of the downstream model inherits from which tensor of the upstream model."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """One tensor of the downstream model and where it may inherit from."""

    target: str
    source: str | None
    """The upstream tensor; None leaves the target fresh."""
    filter_dim: int = 0
    """The dimension that counts filters."""
    reason: str = ""
    """Why the target stays fresh."""


def pair_by_name(upstream: State, fresh: State, filter_dims: Mapping[str, int]) -> list[Pairing]:
    """Pair the tensors of one name and shape; every tensor of the downstream model is in the plan."""
    plan = []
    for name, tensor in fresh.items():
        if name not in filter_dims:
            plan.append(Pairing(target=name, source=None, reason="has no filters"))
        elif name not in upstream:
            plan.append(Pairing(target=name, source=None, reason="has no partner upstream"))
        elif upstream[name].shape != tensor.shape:
            plan.append(Pairing(target=name, source=None, reason="differs in shape from its partner upstream"))
        else:
            plan.append(Pairing(target=name, source=name, filter_dim=filter_dims[name]))
    return plan
