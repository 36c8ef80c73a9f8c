"""The bar that a training shows."""

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from paramtransfer.stage import Stage


class StageProgress(Callback):
    """One bar for the whole training of a stage, with the time left; testing is too short for one."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._bar: Tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(trainer.estimated_stepping_batches)
        self._bar = Tqdm(
            desc=f"{self._stage:<10}", total=total, initial=trainer.global_step, dynamic_ncols=True, disable=None
        )

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
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
