"""A sweep in the process that starts it: its run is opened before the jobs and closed after them, whatever happens."""

import os
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from paramtransfer.cli.process import CONF, FOLDER
from paramtransfer.cli.root_keys import check_root
from paramtransfer.errors import ConfigError, StoreError
from paramtransfer.interrupts import Interrupted, begin_closing

if TYPE_CHECKING:
    from paramtransfer.tracking.claims import Session
    from paramtransfer.tracking.store import Store
    from paramtransfer.tracking.sweeps import JobRecord


@dataclass
class OpenSweep:
    """A sweep that may have been started; empty until then."""

    sweep_id: str = ""
    session: "Session | None" = None


_SWEEP: ContextVar[OpenSweep] = ContextVar("_SWEEP")


@contextmanager
def closing_sweep() -> Iterator[None]:
    """However the block ends, the run of a sweep that was started in it gets its table and its end."""
    sweep, interrupted = OpenSweep(), False
    token = _SWEEP.set(sweep)
    try:
        yield
    except Interrupted:
        interrupted = True
        raise
    finally:
        begin_closing()
        _SWEEP.reset(token)
        if sweep.session is not None:
            _close(sweep.session, sweep.sweep_id, interrupted=interrupted)


class SweepCallback(Callback):
    """Opens the run of a sweep, and tells each job, wherever its launcher starts it, which sweep it belongs to."""

    def __init__(self) -> None:
        self._sweep_id = ""  # travels with the callback to the jobs

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        """Hydra would end with a traceback where its own folder cannot be made."""
        try:
            FOLDER.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=FOLDER):
                pass
        except OSError as error:
            sys.exit(f"{FOLDER.absolute()}: must be a folder that can be written ({error.strerror})")

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Say what the sweep comes to, and open its run."""
        self.on_run_start(config)
        try:
            check_root(config)
            if config.plan_only is not True:
                self._begin(config)
        except CompactHydraException as error:
            from paramtransfer.cli.mistakes import explain

            sys.exit(explain(error, CONF))
        except (StoreError, ValueError) as error:  # left to Hydra, it would be no more than a warning
            sys.exit(str(error))
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    def _begin(self, config: DictConfig) -> None:
        from paramtransfer.cli.run_job import print_preview
        from paramtransfer.cli.sweep_grid import job_values, sweep_configs, sweep_jobs
        from paramtransfer.tracking.claims import Session
        from paramtransfer.tracking.masking import masked
        from paramtransfer.tracking.store import open_store
        from paramtransfer.tracking.sweeps import start_sweep
        from paramtransfer.trainer.ranks import num_tasks

        if num_tasks() > 1:
            raise ConfigError(
                f"SLURM_STEP_NUM_TASKS={num_tasks()}: must be 1 where a sweep is started, not a task of srun for each "
                "rank; hydra/launcher=slurm hydra.launcher.tasks_per_node starts those of its jobs"
            )
        if config.hydra.launcher._target_.endswith(".SlurmLauncher") and not shutil.which("srun"):
            raise ValueError("hydra/launcher=slurm: must be used where SLURM is installed, and there is no srun here")
        jobs = sweep_jobs(config)
        is_fine = jobs is None or print_preview(FOLDER.absolute(), list(sweep_configs(config, jobs)))
        if config.dry_run is True:
            sys.exit(0 if is_fine else 1)
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        experiment = config.hydra.runtime.choices.get("experiment")
        question = _head_comment(config, experiment)
        command = masked(shlex.join(["python", "train.py", *sys.argv[1:]]))
        _hide_secrets(config, masked)
        with Session(open_store(FOLDER.absolute())) as session:
            self._sweep_id = start_sweep(
                session,
                name=masked(" ".join(["sweep", *config.hydra.overrides.task])),
                tags={"command": command, "question": question, **({"experiment": experiment} if experiment else {})},
                config=OmegaConf.to_yaml(own),
                jobs=job_values(jobs or []),
            )
            sweep = _SWEEP.get()
            sweep.sweep_id, sweep.session = self._sweep_id, session

    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        """In the job's own process, before torch is imported there."""
        cores = config.hydra.launcher.get("cpus_per_task") or os.environ.get("SLURM_CPUS_ON_NODE")
        if cores:
            os.environ.setdefault("OMP_NUM_THREADS", str(cores))
        if self._sweep_id:
            from paramtransfer.cli.job_of_sweep import SWEEP_ID

            SWEEP_ID.set(self._sweep_id)


def _hide_secrets(config: DictConfig, masked: Callable[[str], str]) -> None:
    """Hydra writes its own configuration to files, where only SLURM need see what the jobs' set-up has of passwords."""
    lines = list(config.hydra.launcher.get("setup") or [])
    if lines != list(map(masked, lines)):
        OmegaConf.register_new_resolver("hidden", lambda number: lines[number], replace=True)
        with flag_override(config, ["struct", "readonly"], [False, False]):
            config.hydra.launcher.setup = [f"${{hidden:{number}}}" for number in range(len(lines))]
            config.hydra.overrides.hydra = list(map(masked, config.hydra.overrides.hydra))


def _head_comment(config: DictConfig, experiment: str | None) -> str:
    """What an experiment's file says of itself above its first key."""
    for source in config.hydra.runtime.config_sources:
        path = Path(source.path) / "experiment" / f"{experiment}.yaml"
        if source.schema == "file" and path.is_file():
            lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
            return "\n".join(line[1:].removeprefix(" ") for line in lines if not line.startswith("# @package"))
    return ""


def summarize_sweep(store: "Store", sweep_id: str, records: "Sequence[JobRecord]") -> None:
    """Table, figure and job list of a sweep, from the store alone."""
    from paramtransfer.cli.compose import instantiate, make_job, parse
    from paramtransfer.report.summary import summarize
    from paramtransfer.tracking.sweeps import read_config

    config = parse(read_config(store, sweep_id))
    draw = instantiate("figure", config.figure)
    summarize(store, sweep_id, records, draw=draw, job=lambda: make_job(config))


def _close(session: "Session", sweep_id: str, *, interrupted: bool) -> None:
    """When all jobs have ended: table, figure and page, and the end of the sweep's run."""
    from paramtransfer.report.summary import write_page
    from paramtransfer.tracking.sweeps import bury_jobs, end_sweep, wait_for_jobs

    store = session.store
    with session:
        store.settle()
        if not interrupted:
            wait_for_jobs(store, sweep_id)
        store.deliver_left()
        records = bury_jobs(store, sweep_id, interrupted=interrupted)
        summarize_sweep(store, sweep_id, records)
        end_sweep(session, sweep_id, records, interrupted=interrupted)
        store.settle()
    write_page(store, sweep_id)
    store.settle()
    folder = store.run(sweep_id).artifacts
    print(f"Table, figure and report.html of sweep {sweep_id}: {folder}\nCompare the runs in the browser: make ui")
