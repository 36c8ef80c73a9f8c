"""How a downstream training starts from what was inherited: each off unless asked for."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import cycle, islice

import torch
from torch import nn
from torch.nn.functional import mse_loss

from paramtransfer.checks import choice, whole
from paramtransfer.transfer.explained_variance import Labelled, at_same_places, common_levels, inputs_of, testing

FROZEN_NORMS = ("train", "eval")
_MATCH_LR = 1e-3  # of Adam


@dataclass(frozen=True, kw_only=True)
class Start:
    """What happens between the inheritance and a training of everything.

    Raises:
        ValueError: a value that is out of range, named by its configuration key.
    """

    head_epochs: int = 0
    """For how many epochs the head is trained alone."""
    freeze_epochs: int = 0
    """For how many epochs what was inherited is held as it is."""
    frozen_norms: str = "train"
    """Whether norms that are held normalize as in training, their statistics going on, or as in tests (`eval`)."""
    match_steps: int = 0
    """Steps that bring the downstream's levels closer to the upstream's, on the target's images without labels."""
    recalibrate: bool = False
    """Whether batch norm statistics are measured on the downstream's images."""

    def __post_init__(self) -> None:
        for name in ("head_epochs", "freeze_epochs", "match_steps"):
            object.__setattr__(self, name, whole(f"transfer.{name}", getattr(self, name), at_least=0))
        choice("transfer.frozen_norms", self.frozen_norms, FROZEN_NORMS)

    def identity(self) -> dict[str, object]:
        """Its settings, under their configuration keys."""
        return {name: value for name, value in asdict(self).items() if name != "recalibrate"}

    @property
    def label(self) -> str:
        """What is not as usual, in a few words."""
        usual = Start()
        return " ".join(f"{name}={value}" for name, value in self.identity().items() if value != getattr(usual, name))


def match(upstream: nn.Module, downstream: nn.Module, images: Iterable[Labelled], *, steps: int) -> None:
    """Bring what the downstream's levels put out closer to what the upstream's do.

    The squared distance is taken in units of the upstream's variance, through a linear map where widths differ.

    Args:
        upstream: the trained model, on the images' device.
        downstream: changed in place.
        images: passed over until the steps are done.
        steps: of Adam.
    """
    levels = common_levels(upstream, downstream)
    batches = [images_BCHW for images_BCHW, _ in images]
    parameters = list(downstream.parameters())
    maps: dict[str, nn.Module] = {}
    optimizer: torch.optim.Optimizer | None = None
    training = downstream.training
    downstream.train()
    with (
        inputs_of(upstream, [there for there, _ in levels.values()]) as theirs,
        inputs_of(downstream, [here for _, here in levels.values()]) as ours,
    ):
        for images_BCHW in islice(cycle(batches), steps):
            with testing(upstream):
                upstream(images_BCHW)
            downstream(images_BCHW)
            pairs = {level: at_same_places(theirs[there], ours[here]) for level, (there, here) in levels.items()}
            if optimizer is None:
                maps = {level: _map(given.shape[1], target.shape[1]) for level, (target, given) in pairs.items()}
                inside = nn.ModuleList(maps.values()).to(images_BCHW.device)
                optimizer = torch.optim.Adam([*parameters, *inside.parameters()], lr=_MATCH_LR)
            loss = torch.stack(
                [mse_loss(maps[level](given), target) / target.var() for level, (target, given) in pairs.items()]
            ).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    downstream.zero_grad()
    downstream.train(training)


def _map(given: int, wanted: int) -> nn.Module:
    return nn.Identity() if given == wanted else nn.Conv2d(given, wanted, 1)
