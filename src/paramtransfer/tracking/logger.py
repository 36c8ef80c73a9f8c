"""A Lightning logger that writes to one MLflow run in batches: a call costs microseconds, not a round trip."""

from mlflow import MlflowClient
from pytorch_lightning.loggers import Logger

from paramtransfer.tracking.outbox import Outbox


class BufferedLogger(Logger):
    """Leaves metrics to a run's outbox; the run's life is its owner's business, not the logger's.

    Rank 0 of a job alone has one.
    """

    def __init__(self, client: MlflowClient, outbox: Outbox) -> None:
        super().__init__()
        self._client = client
        self._outbox = outbox

    @property
    def experiment(self) -> MlflowClient:
        return self._client

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> str:
        return self._outbox.run_id

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Parameters are written when the run is created."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._outbox.log(metrics, step or 0)

    def flush(self) -> None:
        """What was logged so far is in the store or, if that is away, on disk. (Lightning calls `save` every step.)"""
        self._outbox.try_to_deliver()
