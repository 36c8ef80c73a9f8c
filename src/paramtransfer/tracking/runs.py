"""A run of the store as a plain record: no other package sees MLflow's own types."""

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities import Run


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the store knew of a run when it was asked."""

    run_id: str
    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    started: float
    """Seconds since the epoch."""
    artifacts: str
    """Where its files lie: a folder or an address."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""

    @classmethod
    def of(cls, run: Run) -> "RunRecord":
        """From MLflow's own."""
        return cls(
            run_id=run.info.run_id,
            name=run.info.run_name,
            status=run.info.status,
            started=run.info.start_time / 1000,
            artifacts=run.info.artifact_uri.removeprefix("file://"),
            tags=run.data.tags,
            params=run.data.params,
            metrics=run.data.metrics,
        )
