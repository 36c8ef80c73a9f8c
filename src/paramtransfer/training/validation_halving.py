"""Starts of a network compared on validation images by successive halving.

Shape letters: C candidates, N validation images.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from paramtransfer.checks import refusal
from paramtransfer.task.minibatches import ImageTask
from paramtransfer.training.supervised import Supervised
from paramtransfer.transfer.candidates import Account, Chosen, Comparison

_FINALISTS = 2  # besides the default
_FEWEST = 10  # validation images


class Halved(Chosen):
    """The start that is best on the target's validation images after trainings that grow longer as fewer are left.

    Every rung trains the default and all that are left for as many epochs and keeps the better half of these; the last
    one trains two for as many epochs as the downstream.

    Args:
        others: see `Chosen`.
    """

    def check_target(self, data: object) -> None:
        """Refuse data that starts cannot be compared on.

        Raises:
            ValueError: names the key.
        """
        if not isinstance(data, ImageTask):
            raise refusal("transfer", "chosen_images", "chosen for the synthetic task")
        num = len(data.parts["val"].index_N)
        if num < _FEWEST:
            raise refusal("transfer", "chosen_images", f"left out, or task.val_share larger: {num} images to choose by")

    def compare(
        self,
        starts: Sequence[Account],
        module: LightningModule,
        data: Any,
        make_trial: Callable[[int], Trainer],
    ) -> Comparison:
        assert isinstance(module, Supervised)

        def hits_N(index: int, epochs: int) -> Tensor:
            trial = copy.deepcopy(module)
            state, report = starts[index]
            trial.model.load_state_dict(state)
            trial.inherited = report.masks
            make_trial(epochs).fit(trial, data)
            return trial.validation_hits_N.double()

        left, scores = list(range(1, len(starts))), [torch.zeros(0)] * len(starts)
        for epochs, num in rungs(len(left), data.epochs):
            default_N = hits_N(0, epochs)
            for index in left:
                scores[index] = hits_N(index, epochs) - default_N
            left = sorted(left, key=lambda index: -float(scores[index].mean()))[:num]
        scores[0] = torch.zeros_like(default_N)
        return Comparison([torch.stack(scores)], finalists=[0, *left])


def rungs(num: int, epochs: int) -> Iterator[tuple[int, int]]:
    """For how many epochs each rung trains, and how many starts it leaves; the last one leaves all that it trains."""
    above = max(0, math.ceil(math.log2(num / _FINALISTS)))
    for rung in range(above, -1, -1):
        num = max(min(num, _FINALISTS), math.ceil(num / 2)) if rung else num
        yield max(1, epochs // 2**rung), num
