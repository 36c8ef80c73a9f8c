"""What a process does with one configuration: print a plan or a preview, or run the job, alone or in a sweep."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from paramtransfer.cli.compose import make_job
from paramtransfer.cli.job_of_sweep import Member
from paramtransfer.cli.process import FOLDER, STARTED
from paramtransfer.errors import ConfigError, SharedStageError, StoreError, TrainingError, Undelivered
from paramtransfer.experiment.preview import preview
from paramtransfer.experiment.run import RANKS, plan, run
from paramtransfer.experiment.train import follow
from paramtransfer.report.terminal import print_job, print_job_line
from paramtransfer.tracking.store import open_store

FOLLOWER = (sys.executable, "-m", "paramtransfer.cli.rank_process")
"""The command that starts a further process of a job with several."""


class Refusal(CompactHydraException):
    """Ends a job of a sweep with its message alone, without a traceback; the others run."""


def run_configured(config: DictConfig) -> None:
    """Do what the root keys say; what a user can mend ends it with one sentence."""
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if config.plan_only is True:
            job = make_job(config)
            print(plan(job, lambda run_id: open_store(_folder()).result(run_id).state))
        elif config.dry_run is True:
            sys.exit(0 if print_preview(_folder(), _configs(config)) else 1)
        else:
            _run(config, Member.of(config) if in_sweep else None)
    except (ConfigError, SharedStageError, StoreError, TrainingError) as error:
        if in_sweep:
            raise Refusal(str(error)) from None
        _exit(error)


def _exit(error: Exception) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code if isinstance(error, StoreError) else 1)


def _configs(config: DictConfig) -> Sequence[DictConfig]:
    """What is run of a configuration; of a question at the least."""
    if "advise" not in config:
        return [config]
    from paramtransfer.cli.advise import first_configs

    return first_configs(config)


def _run(config: DictConfig, member: Member | None) -> None:
    try:
        if "advise" in config:
            _advise(config, member)
            return
        job = make_job(config)
        if job.trainer.ranks.rank > 0:
            follow(job, _folder() / RANKS)
            return
        store = open_store(_folder())
        tags = member.join(store) if member else {}
        results = run(job, store, tags=tags, follower=FOLLOWER)
    except BaseException as error:
        if member:
            member.record_end(open_store(_folder()), error)
        raise
    if member is None:
        print_job(job, results, seconds=time.monotonic() - STARTED)
        store.settle()
        return
    member.record(store, {stage: result.run_id for stage, result in results.items()})
    print_job_line(member.num, member.overrides, results)
    try:
        store.settle()
    except Undelivered as error:  # the job has finished; whoever closes the sweep tries again
        print(error, file=sys.stderr)


def _advise(config: DictConfig, member: Member | None) -> None:
    """A question is one job, whatever it trains."""
    from paramtransfer.cli.advise import advise
    from paramtransfer.report.advice import print_advice

    store = open_store(_folder())
    kept = advise(config, store, tags=member.join(store) if member else {})
    print_advice(kept, seconds=time.monotonic() - STARTED)
    if member and kept.runs:
        member.record(store, kept.runs)
    elif member:
        raise TrainingError("no candidate was trained for all epochs: advise.minutes was used up")
    store.settle()


def _folder() -> Path:
    """Where the process was started that started this one, whatever folder Hydra has made the job's own."""
    return Path(HydraConfig.get().runtime.cwd) / FOLDER


def print_preview(folder: Path, configs: Sequence[DictConfig]) -> bool:
    """Print how much would be trained, jobs that are refused counted, too; whether none is."""
    jobs, refused = [], []
    for config in configs:
        try:
            jobs.append(make_job(config))
        except ConfigError as error:
            refused.append(str(error))
    print(preview(open_store(folder), jobs, refused=refused), flush=True)
    return not refused
