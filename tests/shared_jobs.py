"""Jobs in processes that have imported everything already, with trainings that last as long as a test wants."""

import os
import signal
import time
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_dir

from paramtransfer.cli.arithmetic import register_resolvers
from paramtransfer.cli.compose import make_job
from paramtransfer.experiment import run as stages
from paramtransfer.experiment.job import Job, StageResult
from paramtransfer.experiment.run import run
from paramtransfer.experiment.train import train
from paramtransfer.stage import Stage
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.store import Store
from paramtransfer.tracking.sweeps import start_sweep
from paramtransfer.training.solver import GramSolver

PRELOADED = ["paramtransfer.experiment.run", "paramtransfer.task.synthetic", "hydra", "mlflow"]
CONF = str(Path(__file__).parents[1] / "conf")
GATE = "TEST_GATE"  # names a file: a training waits until it is there, and fails with what it says


class GatedSolver(GramSolver):
    """Trains when the gate is open."""

    def advance(self, num_steps: int) -> None:
        gate = Path(os.environ[GATE])
        while not gate.exists():
            time.sleep(0.05)
        if reason := gate.read_text():
            raise RuntimeError(reason)
        super().advance(num_steps)


PARTIAL = partial(GramSolver)


class SlowSolver(GramSolver):
    """Takes its time until the gate is open."""

    def advance(self, num_steps: int) -> None:
        if not Path(os.environ[GATE]).exists():
            time.sleep(0.1)
        super().advance(num_steps)


def compose_and_run(overrides: list[str], folder: Path) -> None:
    """Run the job that a command line describes, with the store in a folder."""
    register_resolvers()
    with initialize_config_dir(CONF, version_base="1.3"):
        job = make_job(compose("config", overrides))
    run(job, Store(folder), tags={})


def leave_runs(overrides: list[str], folder: Path) -> None:
    """Begin a sweep and a job, and die when its first stage is done."""

    sweep = Session(Store(folder))
    start_sweep(sweep, name="sweep", tags={}, config="", jobs=[])

    def until_baseline(job: Job, stage: Stage, *more: Any) -> StageResult:
        if stage == "baseline":
            os.kill(os.getpid(), signal.SIGKILL)
        return train(job, stage, *more)

    with mock.patch.object(stages, "train", until_baseline):
        compose_and_run(overrides, folder)


def run_job(overrides: list[str], folder: Path, uri: str | None, barrier: Any, answers: "Queue[Any]") -> None:
    """Run a job and answer with its runs by stage, or with the error."""
    os.environ[GATE] = str(folder / "gate")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    register_resolvers()
    with initialize_config_dir(CONF, version_base="1.3"):
        job = make_job(compose("config", [*overrides, "solver=gram", "solver._target_=shared_jobs.GatedSolver"]))
    store = Store(folder / "mlruns")
    try:
        barrier.wait(300)
        results = run(job, store, tags={})
    except Exception as error:
        answers.put(error)
    else:
        answers.put({stage: (result.run_id, result.reused) for stage, result in results.items()})
