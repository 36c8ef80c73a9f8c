"""The rule for transformers: whole blocks are inherited (Section 6, Figure 4)."""

from collections.abc import Sequence

from torch import Tensor, nn

from paramtransfer.checks import refusal, whole
from paramtransfer.stage import Stage
from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.blocks import plan_blocks
from paramtransfer.transfer.explained_variance import Target
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.rules import TransferRule
from paramtransfer.transfer.select import Selection
from paramtransfer.transfer.start import Start


class Layers(TransferRule):
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
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, target: Target | None = None
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
