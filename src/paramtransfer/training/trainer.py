"""The Lightning Trainer that a stage is handed to."""

import logging
import warnings
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.loggers import Logger

from paramtransfer.checks import choice, flag, refusal
from paramtransfer.stage import Stage

# Lightning's own use of a function that torch 2.14 deprecates.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")

_PRECISIONS = ("32-true", "64-true")
_QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class StageProgress(TQDMProgressBar):
    """Lightning's progress bar, named after the stage; testing is too short for one."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(refresh_rate=5)
        self._stage = stage

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"{self._stage:<10}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def init_test_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)


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

    def __call__(self, stage: Stage, *, logger: Logger, callbacks: list[Callback]) -> Trainer:
        progress: list[Callback] = [StageProgress(stage)] if self._progress else []
        return Trainer(
            **self._settings,
            **{**_QUIET, "enable_progress_bar": self._progress},
            max_epochs=1,
            log_every_n_steps=1,
            logger=logger,
            callbacks=[*progress, *callbacks],
        )
