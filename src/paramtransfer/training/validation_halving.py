"""Starts of a network compared on validation images by successive halving.

Shape letters: C candidates, N validation images.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from paramtransfer.checks import refusal
from paramtransfer.errors import TrainingError
from paramtransfer.task.minibatches import ImageTask
from paramtransfer.training.supervised import Supervised
from paramtransfer.transfer.candidates import Account, Chosen, Comparison

_FINALISTS = 2  # besides the default
_FEWEST = 10  # validation images
_ORDERS = 10**6  # between the seeds of two orders of the training images


class Halved(Chosen):
    """The start that is best on the target's validation images after trainings that grow longer as fewer are left.

    Every rung trains the default and all that are left for as many epochs and keeps the better half of these; the last
    one trains two for as many epochs as the downstream, twice, with images in another order: a difference of the
    default's has to exceed the noise of validation images and that of trainings. There is no verdict, for so few
    trainings cannot carry one; `experiment=advise` gives one.

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
        super().check_target(data)
        num = len(data.parts["val"].index_N)
        if num < _FEWEST:
            raise refusal(
                "transfer",
                "chosen_images",
                f"left out, or task.val_share larger: {num} images to choose by, not {_FEWEST}",
            )

    def compare(
        self,
        starts: Sequence[Account],
        module: LightningModule,
        data: Any,
        make_trial: Callable[[int], Trainer],
    ) -> Comparison:
        assert isinstance(module, Supervised)

        def leads_N(names: Sequence[int], epochs: int, order: int) -> dict[int, Tensor]:
            """How far each start's hits are above the default's."""
            ordered = copy.copy(data)
            ordered.seed, ordered.test_every_epoch = data.seed + order * _ORDERS, False
            hits = {index: _hits_N(starts[index], module, ordered, make_trial(epochs)) for index in (0, *names)}
            return {index: found - hits[0] for index, found in hits.items()}

        left, scores = list(range(1, len(starts))), dict[int, Tensor]()
        for epochs, num in rungs(len(left), data.epochs):
            scores |= leads_N(left, epochs, 0)
            left = sorted(left, key=lambda index: -float(scores[index].mean()))[:num]
        again = leads_N(left, data.epochs, 1)
        variance = fmean((float((scores[index] - again[index]).mean()) / 2) ** 2 for index in left)
        scores |= {index: (scores[index] + again[index]) / 2 for index in left}
        scores_CN = torch.stack([scores[index] for index in range(len(starts))])
        return Comparison([scores_CN], training_variance=variance, finalists=[0, *left], is_claim=False)


def _hits_N(start: Account, module: Supervised, data: ImageTask, trainer: Trainer) -> Tensor:
    """Which validation images a training from a start has right at its end; none where it diverges."""
    trial, (state, report) = copy.deepcopy(module), start
    trial.model.load_state_dict(state)
    trial.inherited = report.masks
    try:
        trainer.fit(trial, data)
    except TrainingError:
        return torch.zeros(len(data.parts["val"].index_N), dtype=torch.float64)
    return trial.validation_hits_N.double()


def rungs(num: int, epochs: int) -> Iterator[tuple[int, int]]:
    """For how many epochs each rung trains, and how many starts it leaves; the last one leaves all that it trains."""
    above = max(0, math.ceil(math.log2(num / _FINALISTS)))
    for rung in range(above, -1, -1):
        num = max(min(num, _FINALISTS), math.ceil(num / 2)) if rung else num
        yield max(1, math.ceil(epochs / 2**rung)), num
