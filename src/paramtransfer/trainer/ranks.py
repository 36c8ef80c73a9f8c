"""Several processes that train one stage together: rank 0 decides and keeps, the others train along.

On one node rank 0 starts the others, from the job's resolved configuration; under SLURM srun has started them all.
Rank 0 hands a stage over with a file in a folder that all see.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from torch import Tensor, distributed

from paramtransfer.errors import TrainingError
from paramtransfer.interrupts import held_back
from paramtransfer.stage import Stage

CONFIG = "config.yaml"
_POLL_SECONDS = 0.1
_ALIVE = "alive"
_ALIVE_SECONDS = 10.0
_TIMEOUT = timedelta(minutes=5)
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class _OneNode(LightningEnvironment):
    """Ranks are what this job says, whatever a launcher has left in the environment.

    Lightning starts no processes: it would repeat the command line, and with it a whole sweep.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.set_global_rank(rank)

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self.global_rank()

    def node_rank(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Order:
    """A stage that all ranks train."""

    stage: Stage
    upstream: Mapping[str, Tensor] | None
    """What the downstream inherits from; None for the other stages, or if there is no upstream."""
    checkpoint: Path | None
    """Where training goes on from."""


def num_tasks() -> int:
    """How many tasks srun has started for this step; 1 without it."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


class Ranks:
    """The processes of one job.

    Args:
        size: how many.
        device: `cpu` or `cuda`.
    """

    def __init__(self, *, size: int, device: str) -> None:
        self.size = size
        self._backend = "nccl" if device == "cuda" else "gloo"
        self._by_srun = size > 1 and num_tasks() > 1
        self.rank = int(os.environ["SLURM_PROCID"]) if self._by_srun else 0
        self._num_orders = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder: Path | None = None
        self._config = ""
        self._follower: Sequence[str] = ()

    @property
    def num_nodes(self) -> int:
        """On how many machines they are."""
        return int(os.environ.get("SLURM_NNODES", 1)) if self._by_srun else 1

    def environment(self) -> ClusterEnvironment:
        """How Lightning finds them."""
        return SLURMEnvironment(auto_requeue=False) if self._by_srun else _OneNode(self.rank)

    @contextmanager
    def leading(self, config: str, folder: Path, follower: Sequence[str]) -> Iterator[None]:
        """Of rank 0: the others start when there is a stage to train, and end with the block.

        Args:
            config: the resolved configuration, as YAML.
            folder: where the tasks of srun find what is handed over.
            follower: the command that starts one of the others; it is given a folder, with the configuration in
                `config.yaml`, and a rank.
        """
        self._config = config
        self._follower = follower
        if self._by_srun:
            self._folder = folder / _step()
            self._folder.mkdir(parents=True)
            threading.Thread(target=self._show_life, args=[self._folder / _ALIVE], daemon=True).start()
        try:
            yield
        except BaseException:
            for process in self._processes:
                process.kill()
            raise
        finally:
            if self._folder is not None:
                self._write({})
                self._end()

    @staticmethod
    def _show_life(path: Path) -> None:
        for number in count():
            with suppress(OSError):  # the job has ended, or the disk is full for now
                path.write_text(str(number))
            time.sleep(_ALIVE_SECONDS)

    def hand_over(self, order: Order) -> None:
        """Of rank 0: let the others train a stage, too."""
        if self.size == 1:
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="paramtransfer-"))
            self._start()
        checkpoint = order.checkpoint and str(order.checkpoint)
        self._write({"stage": order.stage, "upstream": order.upstream, "checkpoint": checkpoint})

    def _start(self) -> None:
        assert self._folder is not None
        (self._folder / CONFIG).write_text(self._config)
        for rank in range(1, self.size):
            command = [*self._follower, str(self._folder), str(rank)]
            with held_back():
                self._processes.append(subprocess.Popen(command))
        self._join()

    def _join(self) -> None:
        os.environ.setdefault(f"{self._backend.upper()}_SOCKET_IFNAME", _LOOPBACK)
        meeting = f"file://{self._folder}/meeting"  # a TCP store would listen to the world
        distributed.init_process_group(
            self._backend, init_method=meeting, rank=self.rank, world_size=self.size, timeout=_TIMEOUT
        )

    def _write(self, order: dict[str, object]) -> None:
        assert self._folder is not None
        self._num_orders += 1
        new = self._folder / "new"
        torch.save(order, new)
        new.replace(self._folder / f"{self._num_orders}.pt")

    def _end(self) -> None:
        assert self._folder is not None
        for process in self._processes:
            process.wait()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        if not self._by_srun:  # there the others may not have read it yet
            shutil.rmtree(self._folder)

    def follow(self, folder: Path, train: Callable[[Order], object], *, rank: int | None = None) -> None:
        """Of the other ranks: train every stage that rank 0 hands over.

        Args:
            folder: where that is.
            train: trains one.
            rank: the own one, if rank 0 has started this process.

        Raises:
            TrainingError: rank 0 has died.
        """
        self._folder = folder if rank is not None else folder / _step()
        parent = os.getppid()
        if rank is not None:
            self.rank = rank
            self._join()
        for number in count(1):
            path = self._folder / f"{number}.pt"
            sign, seen = "", time.monotonic()
            while not path.exists():
                if os.getppid() != parent:
                    return
                time.sleep(_POLL_SECONDS)
                if sign != (sign := self._sign()):
                    seen = time.monotonic()
                if self._by_srun and time.monotonic() - seen > _TIMEOUT.total_seconds():
                    raise TrainingError("rank 0 has died: it has shown no sign of life for minutes")
            order = torch.load(path, weights_only=True)
            if not order:
                return
            checkpoint = order["checkpoint"] and Path(order["checkpoint"])
            train(Order(stage=order["stage"], upstream=order["upstream"], checkpoint=checkpoint))

    def _sign(self) -> str:
        assert self._folder is not None
        try:
            return (self._folder / _ALIVE).read_text()
        except OSError:
            return ""


def _step() -> str:
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return "-".join(os.environ.get(name, "0") for name in names)
