"""The Lightning callback that lets a fresh model inherit before its first step."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.optim.swa_utils import update_bn

from paramtransfer.transfer.report import Report
from paramtransfer.transfer.rules import TransferRule


class ParameterTransfer(Callback):
    """Applies a transfer rule to `module.model` when fitting starts; `report` says what it did.

    Args:
        rule: what is inherited and how.
        upstream: the trained upstream model.
        seed: which filters are drawn.
    """

    report: Report

    def __init__(self, rule: TransferRule, upstream: nn.Module, *, seed: int) -> None:
        self._rule = rule
        self._upstream = upstream
        self._seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.model
        state, self.report = self._rule(self._upstream, model, seed=self._seed)
        model.load_state_dict(state)
        if self._rule.recalibrate:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            update_bn(data.calibration_batches(pl_module.device), model)
