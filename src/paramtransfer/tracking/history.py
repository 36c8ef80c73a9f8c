"""What the store knows of earlier trainings."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from paramtransfer.tracking.store import Store

_NEWEST = 1000  # MLflow hands out at most so many in one answer


class Training(NamedTuple):
    """A training that has finished: its stage, parameters and seconds."""

    stage: str
    params: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class History:
    """Earlier trainings."""

    fingerprints: Collection[str]
    """Of those asked for, the ones that have finished."""
    trainings: Collection[Training]
    """The newest, whatever their fingerprint."""


def read_history(store: Store, fingerprints: Collection[str]) -> History:
    """Which of some fingerprints have finished, and how long the newest trainings took.

    One answer of the store for all that is recent; a question more for each fingerprint that is not in it.
    """
    finished = "attributes.status = 'FINISHED'"
    newest = store.client.search_runs([store.experiment_id], finished, max_results=_NEWEST)
    found = {run.data.tags["fingerprint"] for run in newest if "fingerprint" in run.data.tags}
    if newest.token:
        for fingerprint in set(fingerprints) - found:
            own = f"{finished} and tags.fingerprint = '{fingerprint}'"
            if store.client.search_runs([store.experiment_id], own, max_results=1):
                found.add(fingerprint)
    trainings = [
        Training(run.data.tags["stage"], run.data.params, run.data.metrics["time/train"])
        for run in newest
        if "time/train" in run.data.metrics
    ]
    return History(fingerprints=found & set(fingerprints), trainings=trainings)
