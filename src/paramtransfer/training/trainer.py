"""The Lightning Trainer that a stage is handed to."""

import logging
import warnings
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.loggers import Logger

from paramtransfer.stage import Stage

# Lightning's own use of a function that torch 2.14 deprecates.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")

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
        accelerator: Lightning's name of the device type: `auto`, `cpu`, `gpu`.
        devices: devices that a stage trains on.
        precision: Lightning's name of the precision, such as `32-true`.
        progress: whether a progress bar runs during training.
    """

    def __init__(self, *, accelerator: str, devices: int, precision: str, progress: bool) -> None:
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        self._settings: dict[str, Any] = {"accelerator": accelerator, "devices": devices, "precision": precision}
        self._progress = progress

    @property
    def device(self) -> str:
        """`cpu` or `cuda`: where a stage would train."""
        return Trainer(**self._settings, logger=False, **_QUIET).strategy.root_device.type

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
