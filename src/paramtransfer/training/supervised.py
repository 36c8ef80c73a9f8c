"""The LightningModule of an image job: classification on minibatches.

Shape letters: B images of a batch, N test images.
"""

import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn import functional

from paramtransfer.checks import number, share
from paramtransfer.errors import TrainingError
from paramtransfer.metrics import (
    BALANCED_ACCURACY,
    LOSS_CURVE,
    TEST_CURVE,
    TRAINING_SECONDS,
    VALIDATION_CURVE,
    sem_of,
)
from paramtransfer.optim.optimizers import Configured, MinibatchOptimizer
from paramtransfer.stage import Stage
from paramtransfer.statistics import balanced_accuracy
from paramtransfer.task.minibatches import Batch
from paramtransfer.training.fit import StageModule


class Supervised(StageModule):
    """Trains a network to tell classes apart.

    Attributes:
        inherited: a mask of what was inherited, for each tensor that has any; set by the transfer.
        hits: after testing, which test images are right: (1, N) of bool.
        metrics: after fitting, what is known only then.
    """

    inherited: Mapping[str, Tensor] = MappingProxyType({})

    def __init__(
        self, *, model: nn.Module, optim: MinibatchOptimizer, label_smoothing: float, mixup: float, cutmix: float
    ) -> None:
        super().__init__()
        self.model = model
        self._optim = optim
        self._label_smoothing = label_smoothing
        self._mixing = {"mixup_alpha": mixup, "cutmix_alpha": cutmix} if mixup or cutmix else None
        self._mix: Mixup | None = None
        self._right: dict[str, list[Tensor]] = {}
        self._losses: list[Tensor] = []
        self._tested: list[Tensor] = []
        self._started = 0.0
        self.metrics: dict[str, float] = {TRAINING_SECONDS: 0.0}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the curves of this epoch are made from."""
        within = time.perf_counter() - self._started if self._losses else 0.0  # none: the epoch has ended
        losses = list(self._mean_over_ranks()) if self._losses else []
        checkpoint["so_far"] = {"seconds": self.metrics[TRAINING_SECONDS] + within, "losses": losses}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with it."""
        self.metrics[TRAINING_SECONDS] = checkpoint["so_far"]["seconds"]
        self._losses = checkpoint["so_far"]["losses"]

    def configure_optimizers(self) -> Configured:
        """As the group `optim` says."""
        steps, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs or 1
        return self._optim.configure(self.model, inherited=self.inherited, steps=steps, epochs=epochs)

    def on_train_start(self) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_start(self) -> None:
        self._started = time.perf_counter()

    def on_fit_start(self) -> None:
        if self._mixing:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            classes = len(data.classes)
            self._mix = Mixup(  # type: ignore[no-untyped-call]
                **self._mixing, label_smoothing=self._label_smoothing, num_classes=classes
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(batch.key + self.global_rank)  # of dropout and its like: a function of seed and step alone
        np.random.seed(batch.key % 2**32)  # of timm's Mixup

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Scores of the classes."""
        scores: Tensor = self.model(images_BCHW.to(self.dtype))
        return scores

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._mix is not None:
            even = len(batch.labels_B) // 2 * 2  # timm mixes pairs
            images, targets = self._mix(batch.images[:even], batch.labels_B[:even])
            loss = functional.cross_entropy(self(images), targets)
        else:
            predicted = self(batch.images)
            loss = functional.cross_entropy(predicted, batch.labels_B, label_smoothing=self._label_smoothing)
        self._losses.append(loss.detach())
        return loss

    def on_validation_start(self) -> None:
        self._right = {}
        loss = self._mean_over_ranks().mean().item()  # waits for the device
        self._losses = []
        self.metrics[TRAINING_SECONDS] += time.perf_counter() - self._started
        if not math.isfinite(loss):
            raise TrainingError(f"training diverged: the loss is {loss} after epoch {self.current_epoch + 1}")
        self._log(LOSS_CURVE, loss)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._count((VALIDATION_CURVE, TEST_CURVE)[dataloader_idx], batch)

    def on_validation_epoch_end(self) -> None:
        for name, right in self._right.items():
            self._log(name, torch.cat(right).float().mean().item())

    @property
    def validation_hits_N(self) -> Tensor:
        """Which validation images were right after the last epoch: (N,) of bool."""
        return torch.cat(self._right[VALIDATION_CURVE]).cpu()

    def on_test_start(self) -> None:
        self._right, self._tested = {}, []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._count("test", batch)
        self._tested.append(batch.labels_B)

    def on_test_end(self) -> None:
        self.hits = torch.cat(self._right["test"])[None].cpu()
        labels_N = torch.cat(self._tested).cpu()
        if len(set(torch.bincount(labels_N).tolist())) > 1:
            estimate = balanced_accuracy(self.hits[0], labels_N)
            self.metrics |= {BALANCED_ACCURACY: estimate.mean, sem_of(BALANCED_ACCURACY): estimate.sem}

    def _mean_over_ranks(self) -> Tensor:
        """The loss of each step of this epoch."""
        losses: Tensor = self.trainer.strategy.reduce(torch.stack(self._losses), reduce_op="mean")
        return losses

    def _count(self, name: str, batch: Batch) -> None:
        right = self(batch.images).argmax(dim=1) == batch.labels_B
        self._right.setdefault(name, []).append(right)

    def _log(self, name: str, value: float) -> None:
        """To the progress bar and, after so many steps, to the run."""
        self.log(name.rpartition("/")[2], value, prog_bar=True, logger=False, add_dataloader_idx=False, sync_dist=True)
        if self.logger is not None:
            self.logger.log_metrics({name: value}, step=self.global_step)


class SupervisedTraining:
    """Makes the LightningModule of each stage.

    Args:
        optim: what minimizes the loss.
        label_smoothing: share of the probability that is spread over all classes.
        mixup: alpha of timm's Mixup; 0 for none.
        cutmix: alpha of its CutMix; 0 for none.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(self, *, optim: MinibatchOptimizer, label_smoothing: float, mixup: float, cutmix: float) -> None:
        self._settings: dict[str, Any] = {
            "optim": optim,
            "label_smoothing": share("task.training.label_smoothing", label_smoothing),
            "mixup": number("task.training.mixup", mixup, at_least=0),
            "cutmix": number("task.training.cutmix", cutmix, at_least=0),
        }

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on."""
        return {name: value for name, value in self._settings.items() if name != "optim"}

    def __call__(self, model: nn.Module) -> Supervised:
        return Supervised(model=model, **self._settings)
