"""The Lightning callback that lets a fresh model inherit before its first step."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from paramtransfer.transfer.explained_variance import ImageData, Target, TargetData, explained_variance
from paramtransfer.transfer.reader import head_of
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.rules import TransferRule
from paramtransfer.transfer.start import match
from paramtransfer.transfer.wrapped_models import is_transformer, unwrap

State = dict[str, Tensor]


@runtime_checkable
class Choosing(Protocol):
    """A rule that compares starts on the target's training data before the training."""

    def choose(
        self,
        starts: Sequence[tuple[State, Report]],
        module: LightningModule,
        data: object,
        make_trial: Callable[[int], Trainer],
    ) -> tuple[State, Report]:
        """The start that is kept."""

    def starts(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, target: Target | None = None
    ) -> list[tuple[State, Report]]:
        """What is compared."""


@dataclass
class _Inheritance:
    """What one module was given."""

    start: dict[str, Tensor]
    """The state that it starts from."""
    body: dict[str, Tensor]
    """Masks of the parameters that a head trained alone leaves as they are."""
    inherited: dict[str, Tensor]
    """Masks of the parameters that inherited something."""
    begun: bool = False
    """Whether the module has been fitted."""


class ParameterTransfer(Callback):
    """Applies a transfer rule to `module.model` before its optimizer is made; `report` says what it did, last.

    The module is told which numbers are inherited, as its attribute `inherited`: a mask for each tensor that has any.
    Each module that is fitted inherits once: a second fit goes on with what was trained.

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
        self._chosen: tuple[State, Report] | None = None
        self._inheritances: WeakKeyDictionary[LightningModule, _Inheritance] = WeakKeyDictionary()

    def compare(self, module: LightningModule, data: object, make_trial: Callable[[int], Trainer]) -> None:
        """Let a rule that chooses among starts try them out, with trainers for so many epochs."""
        if isinstance(self._rule, Choosing):
            starts = self._rule.starts(self._upstream, _model(module), seed=self._seed, **self._target(data))
            self._chosen = self._rule.choose(starts, module, data, make_trial)

    def preview(self, model: nn.Module, data: object, *, explain: bool = True) -> Report:
        """What a model would inherit, without any training; with images, how much of the upstream's features arrives.

        Args:
            model: left as it is.
            data: the downstream's data module.
            explain: whether to measure what arrives: for a trained upstream.
        """
        state, report = self._inherit(model, data)
        if not explain or not isinstance(data, ImageData) or not report.masks or is_transformer(unwrap(model).network):
            return report
        made = copy.deepcopy(model)
        made.load_state_dict(state)
        images = data.calibration_batches(torch.device("cpu"))
        return Report(report.rows, explained=explained_variance(self._upstream, made, images))

    def _inherit(self, model: nn.Module, data: object) -> tuple[dict[str, Tensor], Report]:
        return self._rule(self._upstream, model, seed=self._seed, **self._target(data))

    def _target(self, data: object) -> dict[str, Target]:
        """The target's samples, for a rule that looks at them."""
        if not self._rule.needs_target:
            return {}
        return {"target": _target_data(data, self._rule.label).calibration_batches}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or pl_module in self._inheritances:
            return
        model, start, data = _model(pl_module), self._rule.start, _data_of(trainer)
        if start.recalibrate:
            _image_data(data, "transfer.batchnorm=recalibrate")
        if start.match_steps:
            _image_data(data, f"transfer.match_steps={start.match_steps}")
        state, report = self._chosen or self._inherit(model, data)
        model.load_state_dict(state)
        parameters = dict(model.named_parameters())
        head = head_of(model) if start.head_epochs else frozenset[str]()
        if start.head_epochs and not head:
            raise ValueError(f"transfer.head_epochs={start.head_epochs}: must be 0, {type(model).__name__} has no head")
        self.report = report
        self._inheritances[pl_module] = _Inheritance(
            start=state,
            body={n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items() if head and n not in head},
            inherited={name: mask for name, mask in report.masks.items() if name in parameters},
        )
        pl_module.inherited = report.masks  # type: ignore[assignment]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What happens before the first step, unless training goes on; what is held is so from here."""
        inheritance = self._inheritances[pl_module]
        if trainer.ckpt_path is None and not inheritance.begun:
            self._prepare(trainer, pl_module)
        elif trainer.ckpt_path is None:
            inheritance.body, inheritance.inherited = {}, {}
        inheritance.begun = True
        inheritance.start = {name: tensor.clone() for name, tensor in _model(pl_module).state_dict().items()}

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start, model = self._rule.start, _model(pl_module)
        if not (start.recalibrate or start.match_steps):
            return
        data = _image_data(_data_of(trainer), "transfer")
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)  # of dropout and its like
            if start.recalibrate:
                update_bn(data.calibration_batches(pl_module.device), model)
            if start.match_steps:
                upstream = self._upstream.to(pl_module.device)
                match(upstream, model, data.calibration_batches(pl_module.device), steps=start.match_steps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Norms that are held may normalize as in tests."""
        if self._rule.start.frozen_norms == "eval":
            held = self._held(trainer, pl_module)
            for name, module in _model(pl_module).named_modules():
                if isinstance(module, _BatchNorm):
                    mask = held.get(f"{name}.weight")
                    module.train(mask is None or not bool(mask.all()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """What is held gathers no momentum."""
        for parameter, mask, _ in self._held_parameters(trainer, pl_module):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """What is held goes back to where it started, bit for bit, from weight decay too."""
        for parameter, mask, start in self._held_parameters(trainer, pl_module):
            parameter.copy_(torch.where(mask, start, parameter))

    def _held_parameters(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """Each parameter that is held in this epoch, which of its numbers are, and where it started."""
        if held := self._held(trainer, pl_module):
            start = self._inheritances[pl_module].start
            for name, parameter in _model(pl_module).named_parameters():
                if name in held:
                    yield parameter, held[name].to(parameter.device), start[name].to(parameter.device)

    def _held(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Masks of what is held in this epoch: parameters alone, for statistics have to follow the images."""
        inheritance = self._inheritances[pl_module]
        if trainer.current_epoch < self._rule.start.head_epochs:
            return inheritance.body
        return inheritance.inherited if trainer.current_epoch < self._rule.start.freeze_epochs else {}


def _model(pl_module: LightningModule) -> nn.Module:
    model: nn.Module = pl_module.model  # type: ignore[assignment]
    return model


def _data_of(trainer: Trainer) -> object:
    return getattr(trainer, "datamodule", None)


def _target_data(data: object, key: str) -> TargetData:
    if not isinstance(data, TargetData):
        raise ValueError(
            f"{key}: must be left out without an ImageTask as data, or a SyntheticTask, whose samples it needs"
        )
    return data


def _image_data(data: object, key: str) -> ImageData:
    if not isinstance(data, ImageData):
        raise ValueError(f"{key}: must be left out without an ImageTask as data, whose images it needs")
    return data
