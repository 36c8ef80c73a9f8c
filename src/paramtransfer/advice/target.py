"""The target of an advice: whether its images can tell starts apart, and how long a training on them takes."""

import time

import torch
from torch.nn import functional

from paramtransfer.errors import ConfigError
from paramtransfer.experiment.job import Job
from paramtransfer.metrics import TRAINING_SECONDS
from paramtransfer.task.minibatches import ImageTask
from paramtransfer.tracking.runs import RunRecord
from paramtransfer.tracking.store import Store

SECONDS_TAG = "advise.seconds"
_TIMED_STEPS = 2  # of which the second counts


def target_of(job: Job) -> ImageTask:
    """The downstream's images.

    Raises:
        ConfigError: the job has no images.
    """
    data = job.tasks.data("downstream", seed=job.seed, replicates=job.replicates)
    if not isinstance(data, ImageTask):
        raise ConfigError("task: must be a task on images, such as whole, with experiment=advise")
    return data


def check_target(job: Job, other: Job) -> None:
    """Refuse a target that starts cannot be compared on.

    Args:
        job: with the first seed.
        other: the same with another one.

    Raises:
        ConfigError: names the key, or the class that has too few images.
    """
    data = target_of(job)
    if not job.reuse:
        raise ConfigError("reuse=false: must be true with experiment=advise, whose candidates share fresh starts")
    if job.trainer.ranks.size > 1:
        raise ConfigError(f"trainer.devices={job.trainer.ranks.size}: must be 1 with experiment=advise")
    counts = torch.bincount(data.parts["train"].labels_N, minlength=len(data.classes))
    if int(counts.min()) < 2:
        name = data.classes[int(counts.argmin())]
        raise ConfigError(
            f"class {name} of {data.dataset.place} has {int(counts.min())} images to train on: must have two or more "
            "with experiment=advise, to be compared with each other"
        )
    if list(target_of(other).classes) != list(data.classes):
        raise ConfigError(
            "task.target_classes=null: must name the target's classes with experiment=advise, whose seeds would draw "
            "others"
        )


def recorded_seconds(run: RunRecord) -> float:
    """What a training took: from its beginning to its stored end, where an advisor trained it, or training alone."""
    return float(run.tags.get(SECONDS_TAG, run.metrics[TRAINING_SECONDS]))


def seconds_of_training(job: Job, store: Store) -> float:
    """Of the fresh downstream network: as it took, if it is at hand, or by a timed step.

    An image to choose by takes a third of the time of one to train on, for nothing is differentiated.
    """
    same = f"attributes.status = 'FINISHED' and tags.fingerprint = '{job.stages['baseline'].fingerprint}'"
    for run in store.runs(same, at_most=1):
        return recorded_seconds(run)
    data, device = target_of(job), torch.device(job.trainer.device)
    model = job.model.build(data).to(device).train()
    images, labels = next(iter(data.calibration_batches(device)))
    for _ in range(_TIMED_STEPS):
        started = time.perf_counter()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for the device
        seconds = time.perf_counter() - started
    train, val = (len(data.parts[name].index_N) for name in ("train", "val"))
    return data.epochs * seconds * (train // data.batch_size + val / data.batch_size / 3)
