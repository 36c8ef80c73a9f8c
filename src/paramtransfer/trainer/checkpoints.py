"""What a training leaves every few minutes and on preemption, so that it can go on where it was."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from paramtransfer.errors import first_line
from paramtransfer.interrupts import begin_closing, is_interruption

_SIGNALS = (  # a cluster's warning, submitit's own, what sbatch's --signal often names, a closed terminal
    *(signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGHUP),
)
_FILES = "step-*.ckpt"
_KEPT = 2  # the last one, and the one before should that be damaged

Handler = Callable[[int, FrameType | None], object] | int | None

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Saves model, optimizer, schedule and step every so many minutes, and when the process is told to end.

    There are no random states to keep: every draw is a function of the seed and the step. A signal is answered after
    the step that it arrives in, and then handed to whoever handled it before. Files are written in one go.

    Args:
        folder: where the checkpoints of one run lie.
        minutes: time between two of them.
        before: what must be safe before a step is: the curves up to it.
    """

    def __init__(self, folder: Path, *, minutes: float, before: Callable[[], object]) -> None:
        self._folder = folder
        self._seconds = 60 * minutes
        self._before = before
        self._last = 0.0
        self._arrived: int | None = None
        self._handlers: dict[int, Handler] = {}

    def latest(self) -> Path | None:
        """The newest checkpoint that can be read."""
        for path in sorted(self._folder.glob(_FILES), reverse=True):
            try:
                torch.load(path, map_location="cpu", weights_only=True)
                return path
            except Exception as error:  # whatever is wrong with it, there may be one before
                reason = first_line(error)
                log.warning(f"{path}: this checkpoint cannot be read ({reason}); going back to the one before")
        return None

    def clear(self) -> None:
        """Remove what is not needed after a training."""
        for path in self._folder.glob("*"):
            path.unlink()
        if self._folder.exists():
            self._folder.rmdir()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.monotonic()
        self._take_signals()

    def _take_signals(self) -> None:
        for number in _SIGNALS if threading.current_thread() is threading.main_thread() else ():  # Python's rule
            handler = signal.getsignal(number)
            if callable(handler):  # nobody's own idea of a signal is changed
                self._handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._arrived = number

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if not trainer.is_last_batch:  # after the last one comes a validation that belongs to it
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        arrived = self._arrived
        is_due = arrived is not None or time.monotonic() - self._last > self._seconds
        if trainer.strategy.reduce_boolean_decision(is_due, all=False):  # all ranks save together
            self._save(trainer)
        if arrived is not None:
            self._give_back()
            self._take_signals()  # it was ignored, as submitit does with SIGTERM

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_interruption(exception):
            self._arrived = None
            begin_closing()
        self._give_back()

    def _give_back(self) -> None:
        """The signals to their handlers, with the one that has arrived meanwhile."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            signal.raise_signal(arrived)

    def _save(self, trainer: Trainer) -> None:
        self._last = time.monotonic()
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self._folder)  # it writes nothing, but waits for rank 0
            return
        self._before()
        path = self._folder / f"step-{trainer.fit_loop.total_batch_idx:012}.ckpt"  # by step: clocks are set back
        half = path.with_suffix(".half")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(half)
            half.replace(path)
        except OSError as error:
            trainer.strategy.barrier()  # where the others wait
            with suppress(OSError):
                half.unlink()
            log.warning(f"{path}: no checkpoint can be written ({error}); the training goes on without")
        for old in sorted(self._folder.glob(_FILES))[:-_KEPT]:
            old.unlink(missing_ok=True)
