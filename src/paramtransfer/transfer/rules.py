"""The transfer rules that a configuration can name: each turns two states into the downstream model's start."""

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from torch import Tensor

from paramtransfer.checks import share
from paramtransfer.transfer.apply import Report, copy_filters
from paramtransfer.transfer.plan import Pairing, State, pair_by_name
from paramtransfer.transfer.select import first


class TransferRule(Protocol):
    """What is inherited and how; a rule of your own needs these three names."""

    alpha: float
    """The share of filters inherited, which the theory is evaluated at."""
    needs_upstream: bool

    def __call__(
        self, upstream: State, fresh: State, filter_dims: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], Report]:
        """The downstream model's start and the account of it, from the upstream's trained and its own fresh state."""


class Filters:
    """The share `alpha` of the filters of each sign is inherited (Algorithm 1).

    Raises:
        ValueError: `alpha` is not in [0, 1].
    """

    needs_upstream = True

    def __init__(self, *, alpha: float) -> None:
        self.alpha = share("alpha", alpha)

    def __call__(
        self, upstream: State, fresh: State, filter_dims: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], Report]:
        return copy_filters(upstream, fresh, pair_by_name(upstream, fresh, filter_dims), partial(first, self.alpha))


class Nothing:
    """Everything stays fresh (Algorithm 2); no upstream is trained."""

    alpha = 0.0
    needs_upstream = False

    def __call__(
        self, upstream: State, fresh: State, filter_dims: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], Report]:
        plan = [Pairing(target=name, source=None, reason="nothing is inherited") for name in fresh]
        return copy_filters(upstream, fresh, plan, partial(first, 0.0))
