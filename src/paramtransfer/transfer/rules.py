"""The transfer rules that a configuration can name: each gives the downstream model its start."""

from typing import Protocol

from torch import Tensor, nn

from paramtransfer.checks import choice, share
from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.plan import BATCHNORM, CHANNELS, plan_filters, plan_nothing
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.select import Selection


class TransferRule(Protocol):
    """What is inherited and how; a rule of your own needs these names."""

    alpha: float
    """The share of filters inherited, which the theory is evaluated at."""
    needs_upstream: bool
    recalibrate: bool
    """Whether batch norm statistics are measured on the downstream's images before training."""

    def __call__(self, upstream: nn.Module, downstream: nn.Module, *, seed: int) -> tuple[dict[str, Tensor], Report]:
        """The downstream model's start and the account of it, from the trained and the fresh model, both unchanged."""


class Filters:
    """The share `alpha` of every layer's filters is inherited (Algorithm 1); see `plan_filters` for the rest.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    needs_upstream = True

    def __init__(self, *, alpha: float, channels: str = "independent", batchnorm: str = "inherit") -> None:
        self.alpha = share("alpha", alpha)
        self.channels = choice("transfer.channels", channels, CHANNELS)
        self.batchnorm = choice("transfer.batchnorm", batchnorm, BATCHNORM)
        self.recalibrate = batchnorm == "recalibrate"

    def __call__(self, upstream: nn.Module, downstream: nn.Module, *, seed: int) -> tuple[dict[str, Tensor], Report]:
        plan = plan_filters(upstream, downstream, channels=self.channels, batchnorm=self.batchnorm)
        select = Selection(alpha=self.alpha, seed=seed)
        return inherit(plan, upstream.state_dict(), downstream.state_dict(), select)


class Nothing:
    """Everything stays fresh (Algorithm 2); no upstream is trained."""

    alpha = 0.0
    needs_upstream = False
    recalibrate = False

    def __call__(self, upstream: nn.Module, downstream: nn.Module, *, seed: int) -> tuple[dict[str, Tensor], Report]:
        return inherit(plan_nothing(downstream), {}, downstream.state_dict(), Selection(alpha=0.0, seed=seed))
