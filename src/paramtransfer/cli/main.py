"""The command line: Hydra composes a configuration, a job is made of it and run, a sweep is closed with a table."""

import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from paramtransfer.cli.compose import check_root, register_resolvers, sweep_configs, sweep_jobs
from paramtransfer.errors import StoreError, Undelivered

if TYPE_CHECKING:
    from paramtransfer.stage import Stage

_STARTED = time.monotonic()
_FOLDER = Path("mlruns")
_CONF = Path(__file__).parents[3] / "conf"
_FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's: 1 asks for tracebacks
_SWEEP = "PARAMTRANSFER_SWEEP"  # in a job's environment: the id of the sweep that it belongs to


class Refusal(CompactHydraException):
    """Ends a job of a sweep with its message alone, without a traceback; the others run."""


def main() -> None:
    """Run the job or the sweep that the command line describes."""
    register_resolvers()
    _end_gracefully()
    wants_traceback = _FULL_ERROR in os.environ
    os.environ.setdefault(_FULL_ERROR, "1")  # Hydra raises what it would print with advice of its own
    try:
        with _closing_sweep():
            _run()
    except StoreError as error:
        _exit(error)
    except CompactHydraException as error:
        if wants_traceback:
            raise
        from paramtransfer.cli.mistakes import explain

        sys.exit(explain(error, _CONF))
    except Exception as error:
        if wants_traceback or not type(error).__module__.startswith("submitit."):
            raise
        sys.exit(f"hydra/launcher=slurm: the jobs were not handed to SLURM ({' '.join(str(error).split())})")


def _end_gracefully() -> None:
    """SIGTERM and Ctrl-C become exceptions of one word, so that no run is left RUNNING."""
    for number, word in ((signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, partial(_end, word))


def _end(word: str, *_: Any) -> None:
    SweepCallback.interrupted = True
    sys.exit(word)


@hydra.main(version_base="1.3", config_path=str(_CONF), config_name="config")
def _run(config: DictConfig) -> None:
    from paramtransfer.errors import ConfigError, SharedStageError, TrainingError

    _end_gracefully()  # a launcher may have started this job in a process of its own
    register_resolvers()
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if config.plan_only is True:
            _print_plan(config)
        elif config.dry_run is True:
            sys.exit(0 if _print_preview([config]) else 1)
        elif in_sweep:
            _run_in_sweep(config, os.environ[_SWEEP])
        else:
            _run_alone(config)
    except (ConfigError, SharedStageError, StoreError, TrainingError) as error:
        if in_sweep:
            raise Refusal(str(error)) from None
        _exit(error)


def _exit(error: Exception) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))


def _print_plan(config: DictConfig) -> None:
    from paramtransfer.cli.compose import make_job
    from paramtransfer.experiment.run import plan
    from paramtransfer.tracking.store import open_store

    print(plan(make_job(config), lambda run_id: open_store(_FOLDER).state(run_id)))


def _print_preview(configs: Sequence[DictConfig]) -> bool:
    """Print how much would be trained, jobs that are refused counted, too; whether none is."""
    from paramtransfer.cli.compose import make_job
    from paramtransfer.errors import ConfigError
    from paramtransfer.experiment.preview import preview
    from paramtransfer.tracking.store import open_store

    jobs, refused = [], []
    for config in configs:
        try:
            jobs.append(make_job(config))
        except ConfigError as error:
            refused.append(str(error))
    print(preview(open_store(_FOLDER), jobs, refused=refused), flush=True)
    return not refused


def _run_alone(config: DictConfig) -> None:
    from paramtransfer.cli.compose import make_job
    from paramtransfer.experiment.run import RANKS, follow, plan, run
    from paramtransfer.report.job_table import print_job
    from paramtransfer.tracking.store import open_store

    job = make_job(config)
    if job.trainer.ranks.rank > 0:
        follow(job, _FOLDER / RANKS)
        return
    store = open_store(_FOLDER)
    results = run(job, store, tags={})
    print_job(job, results, plan(job, store.state), seconds=time.monotonic() - _STARTED)
    store.settle()


def _run_in_sweep(config: DictConfig, sweep_id: str) -> None:
    from paramtransfer.cli.compose import make_job
    from paramtransfer.experiment.run import RANKS, follow, run
    from paramtransfer.report.job_table import print_job_line
    from paramtransfer.tracking.store import open_store
    from paramtransfer.tracking.sweeps import JobRecord, check_host, record_job, sweep_of_job, tags_of

    num = int(HydraConfig.get().job.num)
    overrides = _overrides(config, list(HydraConfig.get().overrides.task))
    if HydraConfig.get().launcher.get("n_jobs", 1) != 1 and "trainer.progress" not in overrides:
        config.trainer.progress = False  # bars of several jobs on one terminal overwrite each other
    if os.environ.get("SLURM_PROCID", "0") != "0" and (job := make_job(config)).trainer.ranks.rank > 0:
        follow(job, _FOLDER / RANKS)
        return
    store = open_store(_FOLDER)
    sweep = sweep_of_job(store, sweep_id)
    try:
        check_host(store, sweep)
        results = run(make_job(config), store, tags=tags_of(sweep_id, num))
    except BaseException as error:
        reason = str(error) or type(error).__name__
        record_job(store, sweep_id, JobRecord(num=num, overrides=overrides, error=reason.splitlines()[0]))
        raise
    runs: dict[Stage, str] = {stage: result.run_id for stage, result in results.items()}
    record_job(store, sweep_id, JobRecord(num=num, overrides=overrides, runs=runs))
    print_job_line(num, overrides, results)
    try:
        store.settle()
    except Undelivered as error:  # the job has finished; whoever closes the sweep tries again
        print(error, file=sys.stderr)


def _overrides(config: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """The keys and groups set on the command line or by the sweep, with the values that they came to."""
    values = {}
    for override in overrides:
        key, _, text = override.lstrip("+~").partition("=")
        value = OmegaConf.select(config, key)
        values[key] = text if value is None or OmegaConf.is_config(value) else value
    return values


class SweepCallback(Callback):
    """Opens the run of a sweep in the process that starts it, and tells each job, wherever it runs, which one it is."""

    opened: ClassVar[list[str]] = []
    """The sweep's run, in the process that started it."""
    interrupted: ClassVar[bool] = False

    def __init__(self) -> None:
        self.sweep_id = ""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra would end with a traceback where its own folder cannot be made."""
        try:
            _FOLDER.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=_FOLDER):
                pass
        except OSError as error:
            sys.exit(f"{_FOLDER.absolute()}: must be a folder that can be written ({error.strerror})")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.on_run_start(config)
        try:
            check_root(config)
            if config.plan_only is not True:
                jobs = sweep_jobs(config)
                is_fine = jobs is None or _print_preview(list(sweep_configs(config, jobs)))
                if config.dry_run is True:
                    sys.exit(0 if is_fine else 1)
                self._start(config, jobs)
        except CompactHydraException as error:
            from paramtransfer.cli.mistakes import explain

            sys.exit(explain(error, _CONF))
        except Exception as error:  # left to Hydra, it would be no more than a warning
            sys.exit(str(error))

    def _start(self, config: DictConfig, jobs: list[list[str]] | None) -> None:
        from paramtransfer.tracking.store import open_store
        from paramtransfer.tracking.sweeps import start_sweep

        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        experiment = config.hydra.runtime.choices.get("experiment")
        question, command = _head_comment(config, experiment), shlex.join(["python", "train.py", *sys.argv[1:]])
        self.sweep_id = start_sweep(
            open_store(_FOLDER),
            SweepCallback.opened,
            name=" ".join(["sweep", *config.hydra.overrides.task]),
            tags={"command": command, "question": question, **({"experiment": experiment} if experiment else {})},
            config=OmegaConf.to_yaml(own),
            jobs=_values(jobs or []),
        )

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """In the job's own process, wherever its launcher has started it, before torch is imported there."""
        os.environ[_SWEEP] = self.sweep_id
        cores = config.hydra.launcher.get("cpus_per_task") or os.environ.get("SLURM_CPUS_ON_NODE")
        if cores:
            os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def _values(jobs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What each job of a sweep sets."""
    parse = OverridesParser.create().parse_overrides
    return [{override.key_or_group: override.value() for override in parse(list(job))} for job in jobs]


def _head_comment(config: DictConfig, experiment: str | None) -> str:
    """What an experiment's file says of itself above its first key."""
    for source in config.hydra.runtime.config_sources:
        path = Path(source.path) / "experiment" / f"{experiment}.yaml"
        if source.schema == "file" and path.is_file():
            lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
            return "\n".join(line[1:].removeprefix(" ") for line in lines if not line.startswith("# @package"))
    return ""


@contextmanager
def _closing_sweep() -> Iterator[None]:
    """However the block ends, the run of a sweep that was started in it gets its table and its end."""
    try:
        yield
    finally:
        if SweepCallback.opened:
            _close_sweep(SweepCallback.opened.pop())


def _close_sweep(sweep_id: str) -> None:
    """Table, figure and page from the store alone, when all jobs have ended, and the end of the sweep's run."""
    from paramtransfer.report.summary import summarize, write_page
    from paramtransfer.tracking.store import open_store
    from paramtransfer.tracking.sweeps import bury_jobs, end_sweep, wait_for_jobs

    store = open_store(_FOLDER)
    with store.closing() as opened:
        opened.append(sweep_id)
        store.settle()
        if not SweepCallback.interrupted:
            wait_for_jobs(store, sweep_id)
        store.deliver_left()
        records = bury_jobs(store, sweep_id, interrupted=SweepCallback.interrupted)
        summarize(store, sweep_id, records)
        end_sweep(store, sweep_id, records, interrupted=SweepCallback.interrupted)
        store.settle()
    write_page(store, sweep_id)
    store.settle()
    folder = store.client.get_run(sweep_id).info.artifact_uri.removeprefix("file://")
    print(f"Table, figure and report.html of sweep {sweep_id}: {folder}\nCompare the runs in the browser: make ui")
