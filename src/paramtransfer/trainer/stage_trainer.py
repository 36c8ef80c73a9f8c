"""The Lightning Trainer that a stage is handed to."""

import os
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from torch import nn

from paramtransfer.checks import choice, flag, number, refusal, whole
from paramtransfer.stage import Stage
from paramtransfer.task.stage_data import StageData
from paramtransfer.trainer.progress import StageProgress
from paramtransfer.trainer.ranks import Ranks, num_tasks

_PRECISIONS = ("32-true", "64-true", "bf16-mixed")
_QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class StageTrainer:
    """Makes the Trainer of each stage of a job.

    Args:
        accelerator: `cpu`, `gpu` (a CUDA device) or `auto`, a CUDA device where there is one.
        devices: how many processes train a network together, each with a device of its own.
        precision: Lightning's name of the precision: `32-true`, `64-true` or, for networks, `bf16-mixed`.
        progress: whether a progress bar runs during training.
        channels_last: whether images lie in memory by pixel, not by channel.
        compile: whether the network is compiled before training.
        deterministic: whether CUDA, too, computes the same to the last digit whenever it is asked; slower there.
        checkpoint_minutes: time between two checkpoints, from which an interrupted training goes on.
        test_every_epoch: whether an image job logs its test accuracy after each epoch too.

    Attributes:
        device: `cpu` or `cuda`: where a stage trains.
        ranks: the processes that train it.

    Raises:
        ValueError: an argument that is out of range or not there, named by its configuration key.
    """

    def __init__(
        self,
        *,
        accelerator: str,
        devices: int,
        precision: str,
        channels_last: bool,
        compile: bool,
        deterministic: bool,
        progress: bool,
        checkpoint_minutes: float,
        test_every_epoch: bool,
    ) -> None:
        self._settings: dict[str, Any] = {
            "accelerator": "cpu" if self._on_cpu(accelerator) else "cuda",
            "precision": choice("trainer.precision", precision, _PRECISIONS),
            "deterministic": flag("trainer.deterministic", deterministic),
        }
        self._channels_last = flag("trainer.channels_last", channels_last)
        self._compile = flag("trainer.compile", compile)
        self._progress = flag("trainer.progress", progress)
        self.checkpoint_minutes = number("trainer.checkpoint_minutes", checkpoint_minutes, at_least=0)
        self.test_every_epoch = flag("trainer.test_every_epoch", test_every_epoch)
        self.device: str = self._settings["accelerator"]
        self.ranks = Ranks(size=self._num_devices(devices), device=self.device)

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on; curves on test images are not the upstream's."""
        shared = {
            "device": self.device,
            "devices": self.ranks.size,
            "precision": self._settings["precision"],
            "deterministic": self._settings["deterministic"],
            "channels_last": self._channels_last,
            "compile": self._compile,
        }
        return shared if stage == "upstream" else {**shared, "test_every_epoch": self.test_every_epoch}

    def _num_devices(self, devices: int) -> int:
        number = whole("trainer.devices", devices, at_least=1)
        if number > 1 and num_tasks() not in (1, number):
            raise refusal("trainer.devices", devices, f"{num_tasks()}, the number of tasks that srun has started")
        if number > 1 and num_tasks() > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:  # Lightning asks for it
            raise refusal("trainer.devices", devices, "started with srun's --ntasks-per-node instead of --ntasks")
        if self.device == "cuda" and number > torch.cuda.device_count() and num_tasks() == 1:
            raise refusal("trainer.devices", devices, f"at most {torch.cuda.device_count()}, the number of GPUs here")
        return number

    def check(self, data: StageData) -> None:
        """Refuse what several processes cannot train as one would.

        Raises:
            ValueError: names the key.
        """
        size = self.ranks.size
        if size > 1 and data.batch_size is None:
            raise refusal("trainer.devices", size, "1 with task=synthetic, whose steps are on all samples at once")
        if size > 1 and data.batch_size is not None and data.batch_size % size:
            raise refusal("task.batch_size", data.batch_size, f"a multiple of trainer.devices={size}")

    @staticmethod
    def _on_cpu(accelerator: str) -> bool:
        choice("trainer.accelerator", accelerator, ("auto", "cpu", "gpu"))
        if accelerator == "gpu" and not torch.cuda.is_available():
            raise refusal("trainer.accelerator", accelerator, "auto or cpu on this machine, which has no CUDA device")
        return accelerator == "cpu" or not torch.cuda.is_available()

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model, laid out and compiled as set."""
        if self._channels_last:
            model.to(memory_format=torch.channels_last)
        if self._compile:
            model.compile()
        return model

    def __call__(self, stage: Stage, *, epochs: int, logger: Logger | None, callbacks: list[Callback]) -> Trainer:
        progress: list[Callback] = [StageProgress(stage)] if self._progress and self.ranks.rank == 0 else []
        return Trainer(
            **self._settings,
            **_QUIET,
            strategy="ddp" if self.ranks.size > 1 else "auto",
            devices=self.ranks.size // self.ranks.num_nodes,
            num_nodes=self.ranks.num_nodes,
            plugins=self.ranks.environment(),  # as many devices as are asked for, whatever a cluster has started
            max_epochs=epochs,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1,
            logger=logger or False,
            callbacks=[*progress, *callbacks],
        )
