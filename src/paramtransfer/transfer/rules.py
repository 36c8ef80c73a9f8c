"""The transfer rules that a configuration can name: each gives the downstream model its start."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from paramtransfer.checks import choice, refusal, share, whole
from paramtransfer.stage import Stage
from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.blocks import plan_blocks
from paramtransfer.transfer.plan import BATCHNORM, CHANNELS, plan_filters, plan_nothing
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.select import Selection


class TransferRule(Protocol):
    """What is inherited and how; a rule of your own needs these names."""

    alpha: float
    """The share of filters inherited, which the theory is evaluated at."""
    label: str
    """What is inherited, in a few words, for the names of runs."""
    needs_upstream: bool
    freeze_epochs: int
    """How long what was inherited is held as it is."""
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

    def __init__(
        self,
        *,
        alpha: float,
        channels: str = "independent",
        batchnorm: str = "inherit",
        freeze_epochs: int = 0,
    ) -> None:
        self.alpha = share("alpha", alpha)
        self.freeze_epochs = whole("transfer.freeze_epochs", freeze_epochs, at_least=0)
        self.channels = choice("transfer.channels", channels, CHANNELS)
        self.batchnorm = choice("transfer.batchnorm", batchnorm, BATCHNORM)
        self.recalibrate = batchnorm == "recalibrate"
        others = [value for value in (channels, batchnorm) if value not in (CHANNELS[0], BATCHNORM[0])]
        self.label = " ".join([f"α={alpha:g}", *others])

    def identity(self, stage: Stage) -> dict[str, object]:
        """What the downstream's result depends on."""
        names = ("alpha", "channels", "batchnorm", "freeze_epochs")
        return {name: getattr(self, name) for name in names}

    def __call__(self, upstream: nn.Module, downstream: nn.Module, *, seed: int) -> tuple[dict[str, Tensor], Report]:
        plan = plan_filters(upstream, downstream, channels=self.channels, batchnorm=self.batchnorm)
        select = Selection(alpha=self.alpha, seed=seed)
        return inherit(plan, upstream.state_dict(), downstream.state_dict(), select)


class Layers:
    """Whole blocks of a transformer are inherited; see `plan_blocks`.

    Args:
        layers: the upstream's blocks, counted from 0.
        into: the downstream's block for each of them; None for the same positions.
        also: other parts to inherit, such as `patch_embed`.
        freeze_epochs: for how many epochs they are held as they are.
        alpha: None: the share of filters is for `transfer=filters`.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    needs_upstream = True
    recalibrate = False

    def __init__(
        self,
        *,
        layers: Sequence[int],
        into: Sequence[int] | None = None,
        also: Sequence[str] = (),
        freeze_epochs: int = 0,
        alpha: None = None,
    ) -> None:
        if alpha is not None:
            raise refusal("alpha", alpha, "left out with transfer=layers, which inherits whole blocks")
        self.alpha = 1.0
        self.layers = _positions("transfer.layers", layers)
        self.into = self.layers if into is None else _positions("transfer.into", into)
        if len(self.into) != len(self.layers):
            raise refusal("transfer.into", into, f"as many blocks as transfer.layers={self.layers}")
        self.also = list(also)
        self.label = f"blocks={','.join(map(str, self.layers))}"
        self.freeze_epochs = whole("transfer.freeze_epochs", freeze_epochs, at_least=0)

    def identity(self, stage: Stage) -> dict[str, object]:
        """What the downstream's result depends on."""
        return {name: getattr(self, name) for name in ("layers", "into", "also", "freeze_epochs")}

    def __call__(self, upstream: nn.Module, downstream: nn.Module, *, seed: int) -> tuple[dict[str, Tensor], Report]:
        plan = plan_blocks(upstream, downstream, layers=self.layers, into=self.into, also=self.also)
        select = Selection(alpha=self.alpha, seed=seed)
        return inherit(plan, upstream.state_dict(), downstream.state_dict(), select)


def _positions(key: str, values: Sequence[int]) -> list[int]:
    if not isinstance(values, list | tuple):
        raise refusal(key, values, "a list of blocks, counted from 0")
    positions = [whole(key, value, at_least=0) for value in values]
    if len(set(positions)) < len(positions):
        raise refusal(key, positions, "different blocks")
    return positions


class Nothing:
    """Everything stays fresh (Algorithm 2); no upstream is trained."""

    alpha = 0.0
    label = "nothing inherited"
    needs_upstream = False
    freeze_epochs = 0
    recalibrate = False

    def __call__(self, upstream: nn.Module, downstream: nn.Module, *, seed: int) -> tuple[dict[str, Tensor], Report]:
        return inherit(plan_nothing(downstream), {}, downstream.state_dict(), Selection(alpha=0.0, seed=seed))
