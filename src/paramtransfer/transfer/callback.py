"""The Lightning callback that lets a fresh model inherit before its first step."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from paramtransfer.transfer.apply import Report
from paramtransfer.transfer.plan import State
from paramtransfer.transfer.rules import TransferRule


class ParameterTransfer(Callback):
    """Applies a transfer rule to `module.model` when fitting starts; `report` says what it did.

    Args:
        rule: what is inherited and how.
        upstream: state of the trained upstream model, in the downstream task's coordinates.
    """

    report: Report

    def __init__(self, rule: TransferRule, upstream: State) -> None:
        self._rule = rule
        self._upstream = upstream

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.model
        state, self.report = self._rule(self._upstream, model.state_dict(), model.filter_dims)
        model.load_state_dict(state)
