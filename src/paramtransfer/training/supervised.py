"""The LightningModule of an image job: classification on minibatches.

Shape letters: B images of a batch, N test images.
"""

import math
import time
from collections.abc import Collection
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from paramtransfer.checks import share
from paramtransfer.task.image_task import Batch
from paramtransfer.training.optimizers import MinibatchOptimizer


class Supervised(LightningModule):
    """Trains a network to tell classes apart.

    Attributes:
        inherited: names of the tensors that inherited something; set by the transfer.
        hits: after testing, which test images are right: (1, N) of bool.
        metrics: after fitting, what is known only then.
    """

    inherited: Collection[str] = ()
    hits: Tensor

    def __init__(self, *, model: nn.Module, optim: MinibatchOptimizer, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self._optim = optim
        self._label_smoothing = label_smoothing
        self._right: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._started = 0.0
        self.metrics: dict[str, float] = {"time/train": 0.0}

    def configure_optimizers(self) -> Any:
        """As the group `optim` says."""
        steps, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs or 1
        return self._optim.configure(self.model, inherited=self.inherited, steps=steps, epochs=epochs)

    def on_train_epoch_start(self) -> None:
        self._started = time.perf_counter()
        self._losses = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(batch.key)  # dropout and its like: a function of seed and step alone

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.model(batch.images), batch.labels_B, label_smoothing=self._label_smoothing)
        self._losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """Called after validation."""

    def on_validation_start(self) -> None:
        self._right = []
        loss = torch.stack(self._losses).mean().item()  # waits for the device
        self.metrics["time/train"] += time.perf_counter() - self._started
        if not math.isfinite(loss):
            raise RuntimeError(f"training diverged: the loss is {loss} after epoch {self.current_epoch + 1}")
        self.log("loss", loss, prog_bar=True, logger=False)
        self._log({"train/loss": loss})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._right.append(self._is_right(batch))

    def on_validation_epoch_end(self) -> None:
        accuracy = torch.cat(self._right).float().mean().item()
        self.log("val/acc", accuracy, prog_bar=True, logger=False)
        self._log({"val/acc": accuracy})

    def on_test_start(self) -> None:
        self._right = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._right.append(self._is_right(batch))

    def on_test_end(self) -> None:
        self.hits = torch.cat(self._right)[None].cpu()

    def _is_right(self, batch: Batch) -> Tensor:
        right: Tensor = self.model(batch.images).argmax(dim=1) == batch.labels_B
        return right

    def _log(self, metrics: dict[str, float]) -> None:
        if self.logger is not None:
            self.logger.log_metrics(metrics, step=self.global_step)


class SupervisedTraining:
    """Makes the LightningModule of each stage.

    Args:
        optim: what minimizes the loss.
        label_smoothing: share of the probability that is spread over all classes.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(self, *, optim: MinibatchOptimizer, label_smoothing: float) -> None:
        self._settings: dict[str, Any] = {
            "optim": optim,
            "label_smoothing": share("task.training.label_smoothing", label_smoothing),
        }

    def __call__(self, model: nn.Module) -> Supervised:
        return Supervised(model=model, **self._settings)
