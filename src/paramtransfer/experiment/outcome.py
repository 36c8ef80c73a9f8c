"""What follows from the hits that a run keeps: accuracy, gain and what the theory says of the setting.

Nothing here can change a stored result: other formulas give other values for the same hits, without any training.

Shape letters: R replicates, N test points.
"""

from torch import Tensor

from paramtransfer.experiment.job import Job
from paramtransfer.metrics import ACCURACY, BASELINE_ACCURACY, GAIN, sem_of
from paramtransfer.stage import Stage
from paramtransfer.statistics import accuracy, paired_gain


def outcome(job: Job, stage: Stage, hits_RN: Tensor, baseline_hits_RN: Tensor | None) -> dict[str, float]:
    """The metrics of a stage.

    Args:
        job: the experiment.
        stage: one of its stages.
        hits_RN: which test points it has right.
        baseline_hits_RN: the same points without transfer; None but for the downstream.
    """
    if not hits_RN.numel():  # weights from elsewhere are not tested
        return {}
    estimates = {ACCURACY: accuracy(hits_RN)}
    if baseline_hits_RN is not None:
        estimates |= {BASELINE_ACCURACY: accuracy(baseline_hits_RN), GAIN: paired_gain(hits_RN, baseline_hits_RN)}
    metrics = {name: estimate.mean for name, estimate in estimates.items()}
    metrics |= {sem_of(name): estimate.sem for name, estimate in estimates.items()}
    return {**metrics, **job.theory(stage)}
