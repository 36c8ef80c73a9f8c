"""The Lightning callback that lets a fresh model inherit before its first step."""

import copy
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from paramtransfer.transfer.report import Report
from paramtransfer.transfer.rules import TransferRule


class ParameterTransfer(Callback):
    """Applies a transfer rule to `module.model` before its optimizer is made; `report` says what it did.

    The module is told the names of the tensors that inherited something, as its attribute `inherited`.

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
        self._start: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or hasattr(self, "report"):  # once: a second fit goes on with what was trained
            return
        model: Any = pl_module.model
        self._start, self.report = self._rule(self._upstream, model, seed=self._seed)
        if self._rule.freeze_epochs:
            self._held = self._inherited_elements(model)
        model.load_state_dict(self._start)
        pl_module.inherited = self.report.inherited  # type: ignore[assignment]

    def _inherited_elements(self, model: nn.Module) -> dict[str, Tensor]:
        """Where each tensor inherits: the rule applied to a model of ones and one of zeros."""
        ones, zeros = copy.deepcopy(self._upstream), copy.deepcopy(model)
        for filled, value in ((ones, 1), (zeros, 0)):
            for tensor in filled.state_dict().values():
                tensor.fill_(value)
        return {name: mask.bool() for name, mask in self._rule(ones, zeros, seed=self._seed)[0].items() if mask.any()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._rule.recalibrate and trainer.ckpt_path is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            if not hasattr(data, "calibration_batches"):
                raise ValueError(
                    "transfer.batchnorm=recalibrate: must be inherit or reset without an ImageTask as data"
                )
            model: Any = pl_module.model
            with torch.random.fork_rng():
                torch.manual_seed(self._seed)  # of dropout and its like
                update_bn(data.calibration_batches(pl_module.device), model)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """What is held goes back to where it started, bit for bit."""
        if self._held and trainer.current_epoch < self._rule.freeze_epochs:
            model: Any = pl_module.model
            state = model.state_dict()
            for name, mask in self._held.items():
                tensor = state[name]
                tensor.copy_(torch.where(mask.to(tensor.device), self._start[name].to(tensor.device), tensor))
