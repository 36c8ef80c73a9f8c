"""A Lightning logger that writes to one MLflow run in batches: a call costs microseconds, not a round trip."""

import time
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_utilities.core.rank_zero import rank_zero_only
from mlflow import MlflowClient
from mlflow.entities import Metric
from pytorch_lightning.loggers import Logger

_FLUSH_SECONDS = 2.0
_FLUSH_METRICS = 900  # MLflow takes at most 1,000 in one call


class BufferedLogger(Logger):
    """Buffers metrics and sends them every two seconds; the run's life is its owner's business, not the logger's."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        super().__init__()
        self._client = client
        self._run_id = run_id
        self._buffer: list[Metric] = []
        self._last_flush = time.monotonic()

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        return self._client

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> str:
        return self._run_id

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Parameters are written when the run is created."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        now = time.time_ns() // 1_000_000
        self._buffer += [Metric(key, float(value), now, step or 0) for key, value in metrics.items()]
        if len(self._buffer) >= _FLUSH_METRICS or time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        while self._buffer:
            batch = self._buffer[:_FLUSH_METRICS]
            self._client.log_batch(self._run_id, metrics=batch)
            del self._buffer[: len(batch)]
        self._last_flush = time.monotonic()
