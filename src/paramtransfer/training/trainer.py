"""The Lightning Trainer that a stage is handed to."""

import logging
import warnings
from typing import Any

import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.loggers import Logger

from paramtransfer.checks import choice, flag, refusal
from paramtransfer.stage import Stage

# Lightning's own use of a function that torch 2.14 deprecates.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
# A job is one process, also where SLURM is installed.
warnings.filterwarnings("ignore", message="The `srun` command is available")

_PRECISIONS = ("32-true", "64-true")
_QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class StageProgress(Callback):
    """One bar for the whole training of a stage, with the time left; testing is too short for one."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._bar: Tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(trainer.estimated_stepping_batches)
        self._bar = Tqdm(desc=f"{self._stage:<10}", total=total, initial=trainer.global_step, dynamic_ncols=True)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        assert self._bar is not None
        values = {name: float(value) for name, value in trainer.progress_bar_metrics.items()}
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
        self._bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class StageTrainer:
    """Makes the Trainer of each stage of a job.

    Args:
        accelerator: `cpu`, `gpu` (a CUDA device) or `auto`, a CUDA device where there is one.
        precision: Lightning's name of the precision: `32-true` or `64-true`.
        progress: whether a progress bar runs during training.

    Attributes:
        device: `cpu` or `cuda`: where a stage trains.

    Raises:
        ValueError: an argument that is out of range or not there, named by its configuration key.
    """

    def __init__(self, *, accelerator: str, precision: str, progress: bool) -> None:
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        self._settings: dict[str, Any] = {
            "accelerator": "cpu" if self._on_cpu(accelerator) else "cuda",
            "devices": 1,
            "precision": choice("trainer.precision", precision, _PRECISIONS),
        }
        self._progress = flag("trainer.progress", progress)
        self.device: str = self._settings["accelerator"]

    @staticmethod
    def _on_cpu(accelerator: str) -> bool:
        choice("trainer.accelerator", accelerator, ("auto", "cpu", "gpu"))
        if accelerator == "gpu" and not torch.cuda.is_available():
            raise refusal("trainer.accelerator", accelerator, "auto or cpu on this machine, which has no CUDA device")
        return accelerator == "cpu" or not torch.cuda.is_available()

    def __call__(self, stage: Stage, *, epochs: int, logger: Logger, callbacks: list[Callback]) -> Trainer:
        progress: list[Callback] = [StageProgress(stage)] if self._progress else []
        return Trainer(
            **self._settings,
            **_QUIET,
            plugins=LightningEnvironment(),  # one device, whatever a cluster has started
            max_epochs=epochs,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1,
            logger=logger,
            callbacks=[*progress, *callbacks],
        )
