"""One stage from start to end: fitted, then tested once.

Shape letters: R replicates, N test points.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from paramtransfer.task.stage_data import StageData


class StageModule(LightningModule):
    """A LightningModule that trains the model of a stage.

    Attributes:
        model: what is trained.
        hits: after testing, which test points each replicate has right: (R, N) of bool.
        metrics: after fitting, what is known only then; `time/train` is among them.
    """

    model: nn.Module
    hits: Tensor
    metrics: dict[str, float]


@runtime_checkable
class Compares(Protocol):
    """A callback that tries several starts out before the training."""

    def compare(self, module: StageModule, data: StageData, make_trial: Callable[[int], Trainer]) -> None:
        """Try them out on the target's training data, with trainers for so many epochs."""


def fit_and_test(
    module: StageModule,
    data: StageData,
    *,
    inheritance: Callback | None,
    others: Sequence[Callback],
    make_trainer: Callable[[list[Callback]], Trainer],
    make_trial: Callable[[int], Trainer],
    checkpoint: Path | None,
) -> None:
    """Train a stage and look at its test points once.

    Args:
        module: holds the model.
        data: of the stage's side.
        inheritance: lets the model inherit before its first step; None where it does not.
        others: further callbacks; what is held goes back to its place before they see it.
        make_trainer: Lightning's Trainer with some callbacks.
        make_trial: one for so many epochs that logs nothing.
        checkpoint: where training goes on from, if anywhere.
    """
    if isinstance(inheritance, Compares):
        inheritance.compare(module, data, make_trial)
    trainer = make_trainer([*([inheritance] if inheritance else []), *others])
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    trainer.test(module, data, verbose=False)
