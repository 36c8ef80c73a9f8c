"""A job as a member of a sweep, in the process that runs it."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from paramtransfer.interrupts import Interrupted
from paramtransfer.stage import Stage
from paramtransfer.tracking.masking import masked
from paramtransfer.tracking.store import Store
from paramtransfer.tracking.sweeps import JobRecord, check_host, record_job, sweep_of_job, tags_of

SWEEP_ID: ContextVar[str] = ContextVar("SWEEP_ID")
"""The sweep that the job of this process belongs to; set when Hydra starts the job."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One job of a sweep."""

    sweep_id: str
    num: int
    overrides: Mapping[str, object]
    """The keys and groups set on the command line or by the sweep, with the values that they came to."""

    @classmethod
    def of(cls, config: DictConfig) -> "Member":
        """The member that Hydra runs in this process; its bar is off where several share a terminal."""
        running = HydraConfig.get()
        overrides = {}
        for override in running.overrides.task:
            key, _, text = override.lstrip("+~").partition("=")
            value = OmegaConf.select(config, key)
            overrides[key] = text if value is None or OmegaConf.is_config(value) else value
        if running.launcher.get("n_jobs", 1) != 1 and "trainer.progress" not in overrides:
            config.trainer.progress = False
        return cls(sweep_id=SWEEP_ID.get(), num=int(running.job.num), overrides=overrides)

    def join(self, store: Store) -> dict[str, str]:
        """The tags that mark the runs that this job uses.

        Raises:
            StoreError: the store is not the sweep's, or not one for this machine.
        """
        check_host(store, sweep_of_job(store, self.sweep_id))
        return tags_of(self.sweep_id, self.num)

    def record(self, store: Store, runs: Mapping[Stage, str]) -> None:
        """The job has succeeded, with these runs."""
        record_job(store, self.sweep_id, JobRecord(num=self.num, overrides=self.overrides, runs=runs))

    def record_end(self, store: Store, error: BaseException) -> None:
        """The job has failed, or hands over to itself: a batch system will start it again."""
        says_why = isinstance(error, SystemExit) and isinstance(error.code, str)  # submitit leaves with a number
        if isinstance(error, Exception | Interrupted) or says_why:
            reason = masked((str(error) or type(error).__name__).splitlines()[0])
            record_job(store, self.sweep_id, JobRecord(num=self.num, overrides=self.overrides, error=reason))
        else:
            record_job(store, self.sweep_id, JobRecord(num=self.num, overrides=self.overrides, preempted=True))
