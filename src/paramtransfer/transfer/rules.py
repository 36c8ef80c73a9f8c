"""The transfer rules that a configuration can name: each gives the downstream model its start."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from paramtransfer.checks import choice, refusal, share, whole
from paramtransfer.stage import Stage
from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.blocks import plan_blocks
from paramtransfer.transfer.explained_variance import Images
from paramtransfer.transfer.plan import BATCHNORM, CHANNELS, UNITS, plan_filters, plan_nothing
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.scores import NEEDS_IMAGES, SELECT, score_channels
from paramtransfer.transfer.select import Selection
from paramtransfer.transfer.start import Start


class TransferRule(Protocol):
    """What is inherited and how; a rule of your own needs these names, and has those with values by subclassing it."""

    alpha: float
    """The share of filters inherited, which the theory is evaluated at."""
    label: str
    """What is inherited, in a few words, for the names of runs."""
    needs_upstream: bool = True
    needs_images: bool = False
    """Whether it looks at the target's training images, and is then called with them as `images`."""
    start: Start = Start()
    """What happens before and while the training begins."""

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, images: Images | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        """The downstream model's start and the account of it, from the trained and the fresh model, both unchanged."""


class Filters:
    """The share `alpha` of every layer's filters is inherited (Algorithm 1).

    Args:
        alpha: that share.
        unit: see `plan_filters`.
        select: which filters: `random` (the paper), or those with the largest `norm`, scale in their batch norm
            (`batchnorm`), mean output on the target's images (`activation`), or those that tell the target's classes
            apart best (`aligned`).
        channels: see `plan_filters`.
        batchnorm: see `plan_filters`.
        freeze_epochs: see `Start`, and for the others.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    needs_upstream = True

    def __init__(
        self,
        *,
        alpha: float,
        unit: str = "auto",
        select: str = "random",
        channels: str = "auto",
        batchnorm: str = "inherit",
        freeze_epochs: int = 0,
        frozen_norms: str = "train",
        head_epochs: int = 0,
        match_steps: int = 0,
    ) -> None:
        self.alpha = share("alpha", alpha)
        self.unit = choice("transfer.unit", unit, UNITS)
        self.select = choice("transfer.select", select, SELECT)
        self.channels = choice("transfer.channels", channels, CHANNELS)
        self.batchnorm = choice("transfer.batchnorm", batchnorm, BATCHNORM)
        self.start = Start(
            head_epochs=head_epochs,
            freeze_epochs=freeze_epochs,
            frozen_norms=frozen_norms,
            match_steps=match_steps,
            recalibrate=batchnorm == "recalibrate",
        )
        self.needs_images = select in NEEDS_IMAGES
        usual = (UNITS[0], SELECT[0], CHANNELS[0], BATCHNORM[0])
        given = (unit, select, channels, batchnorm)
        others = [value for value, default in zip(given, usual, strict=True) if value != default]
        self.label = " ".join(filter(None, [f"α={alpha:g}", *others, self.start.label]))

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, images: Images | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        plan = plan_filters(upstream, downstream, unit=self.unit, channels=self.channels, batchnorm=self.batchnorm)
        device = next((tensor.device for tensor in upstream.parameters()), torch.device("cpu"))
        scores = score_channels(self.select, plan, upstream, None if images is None else images(device))
        selection = Selection(alpha=self.alpha, seed=seed, scores=scores)
        return inherit(plan, upstream.state_dict(), downstream.state_dict(), selection)

    def identity(self, stage: Stage) -> dict[str, object]:
        """The settings that a stage's result depends on, under their configuration keys: the downstream's alone."""
        if stage != "downstream":
            return {}
        own = {"alpha": self.alpha, "unit": self.unit, "select": self.select}
        return {**own, "channels": self.channels, "batchnorm": self.batchnorm, **self.start.identity()}


class Layers:
    """Whole blocks of a transformer are inherited; see `plan_blocks`.

    Args:
        layers: the upstream's blocks, counted from 0.
        into: the downstream's block for each of them; None for the same positions.
        also: other parts to inherit, such as `patch_embed`.
        freeze_epochs: for how many epochs they are held as they are.
        head_epochs: for how many epochs the head is trained alone.
        alpha: None: the share of filters is for `transfer=filters`.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    needs_upstream = True
    needs_images = False

    def __init__(
        self,
        *,
        layers: Sequence[int],
        into: Sequence[int] | None = None,
        also: Sequence[str] = (),
        freeze_epochs: int = 0,
        head_epochs: int = 0,
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
        self.start = Start(freeze_epochs=freeze_epochs, head_epochs=head_epochs)
        self.label = " ".join(filter(None, [f"blocks={','.join(map(str, self.layers))}", self.start.label]))

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, images: Images | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        plan = plan_blocks(upstream, downstream, layers=self.layers, into=self.into, also=self.also)
        select = Selection(alpha=self.alpha, seed=seed)
        return inherit(plan, upstream.state_dict(), downstream.state_dict(), select)

    def identity(self, stage: Stage) -> dict[str, object]:
        """The settings that a stage's result depends on, under their configuration keys: the downstream's alone."""
        if stage != "downstream":
            return {}
        start = {"freeze_epochs": self.start.freeze_epochs, "head_epochs": self.start.head_epochs}
        return {"layers": self.layers, "into": self.into, "also": self.also, **start}


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
    needs_images = False
    start = Start()

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, images: Images | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        return inherit(plan_nothing(downstream), {}, downstream.state_dict(), Selection(alpha=0.0, seed=seed))

    def identity(self, stage: Stage) -> dict[str, object]:
        """Nothing: there are no settings."""
        return {}
