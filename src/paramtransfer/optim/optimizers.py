"""Optimizers and their schedules."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from paramtransfer.checks import choice, flag, number
from paramtransfer.stage import Stage


class Group(TypedDict):
    """Parameters that share their settings, as torch's optimizers take them."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


class Schedule(TypedDict):
    """A schedule, as Lightning takes it."""

    scheduler: LambdaLR
    interval: str


class Configured(TypedDict):
    """What Lightning's `configure_optimizers` returns."""

    optimizer: Optimizer
    lr_scheduler: Schedule


class _Minibatch(TypedDict):
    lr: float
    weight_decay: float
    schedule: str
    warmup_epochs: float
    inherited_lr_scale: float


class GradientDescent:
    """Full-batch gradient descent with step size `lr` (eta), the rule of Algorithms 1 and 2.

    Raises:
        ValueError: `lr` is not a finite number above 0.
    """

    def __init__(self, *, lr: float) -> None:
        self.lr = number("optim.lr", lr, above=0)

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on."""
        return {"lr": self.lr}


class MinibatchOptimizer(ABC):
    """An optimizer on minibatches with a warm-up and a schedule, set anew at every step.

    Args:
        lr: the largest step size.
        weight_decay: of weights with more than one dimension; biases and norms have none.
        schedule: `cosine`, down to zero, or `constant`.
        warmup_epochs: over which the step size grows linearly from zero.
        inherited_lr_scale: what the step size of each inherited number is multiplied by.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(
        self, *, lr: float, weight_decay: float, schedule: str, warmup_epochs: float, inherited_lr_scale: float
    ) -> None:
        self.lr = number("optim.lr", lr, above=0)
        self._weight_decay = number("optim.weight_decay", weight_decay, at_least=0)
        self._schedule = choice("optim.schedule", schedule, ("cosine", "constant"))
        self._warmup_epochs = number("optim.warmup_epochs", warmup_epochs, at_least=0)
        self._inherited_lr_scale = number("optim.inherited_lr_scale", inherited_lr_scale, at_least=0)

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on; nothing is inherited but downstream."""
        shared = {
            "lr": self.lr,
            "weight_decay": self._weight_decay,
            "schedule": self._schedule,
            "warmup_epochs": self._warmup_epochs,
        }
        return {**shared, "inherited_lr_scale": self._inherited_lr_scale} if stage == "downstream" else {**shared}

    @abstractmethod
    def make(self, groups: list[dict[str, object]]) -> Optimizer:
        """The optimizer of some groups of parameters."""

    def configure(self, model: nn.Module, *, inherited: Mapping[str, Tensor], steps: int, epochs: int) -> Configured:
        """What Lightning's `configure_optimizers` returns.

        Args:
            model: what is trained.
            inherited: a mask of what was inherited, for each tensor that has any.
            steps: of the whole training.
            epochs: of the whole training.
        """
        optimizer = self.make(self._groups(model))
        if self._inherited_lr_scale != 1 and inherited:
            _scale_steps(optimizer, model, inherited, self._inherited_lr_scale)
        warmup = self._warmup_epochs * steps / epochs

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            progress = (step - warmup) / max(1, steps - warmup)
            return (1 + math.cos(math.pi * progress)) / 2 if self._schedule == "cosine" else 1.0

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def _groups(self, model: nn.Module) -> list[dict[str, object]]:
        groups: dict[bool, Group] = {}
        exempt: Collection[str] = getattr(model, "no_weight_decay", set)()  # timm: position embeddings and their like
        for name, parameter in model.named_parameters():
            decays = parameter.dim() > 1 and name not in exempt
            weight_decay = self._weight_decay if decays else 0.0
            group = groups.setdefault(decays, {"params": [], "lr": self.lr, "weight_decay": weight_decay})
            group["params"].append(parameter)
        return [{**group} for group in groups.values()]


def _scale_steps(optimizer: Optimizer, model: nn.Module, inherited: Mapping[str, Tensor], scale: float) -> None:
    """Let each step move inherited numbers by a share of what it would: as if their step size were scaled.

    That is the same for every optimizer whose step is proportional to its step size, weight decay included.
    """
    parts = [(parameter, inherited[name]) for name, parameter in model.named_parameters() if name in inherited]
    before: list[Tensor] = []

    def keep(*_: object) -> None:
        before[:] = [parameter.detach().clone() for parameter, _ in parts]

    @torch.no_grad()
    def shorten(*_: object) -> None:
        for (parameter, mask), start in zip(parts, before, strict=True):
            shorter = start + scale * (parameter - start)
            parameter.copy_(torch.where(mask.to(parameter.device), shorter, parameter))

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(shorten)


class SGD(MinibatchOptimizer):
    """Stochastic gradient descent with momentum; see `MinibatchOptimizer`."""

    def __init__(self, *, momentum: float, nesterov: bool, **others: Unpack[_Minibatch]) -> None:
        super().__init__(**others)
        self._momentum = number("optim.momentum", momentum, at_least=0)
        self._nesterov = flag("optim.nesterov", nesterov)

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on."""
        return {**super().identity(stage), "momentum": self._momentum, "nesterov": self._nesterov}

    def make(self, groups: list[dict[str, object]]) -> Optimizer:
        """The optimizer of some groups of parameters."""
        return torch.optim.SGD(groups, momentum=self._momentum, nesterov=self._nesterov)


class AdamW(MinibatchOptimizer):
    """Adam with decoupled weight decay; see `MinibatchOptimizer`."""

    def make(self, groups: list[dict[str, object]]) -> Optimizer:
        """The optimizer of some groups of parameters."""
        return torch.optim.AdamW(groups)
