"""The start that a downstream training has, as a file to begin a training of one's own with."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from pytorch_lightning import Trainer
from safetensors.torch import save
from torch import Tensor

from paramtransfer.advice.target import target_of
from paramtransfer.experiment.job import Job
from paramtransfer.experiment.run import foreign_state
from paramtransfer.tracking.runs import RunRecord
from paramtransfer.tracking.store import Store
from paramtransfer.transfer.callback import ParameterTransfer

FILE = "start.safetensors"


def start_of(job: Job, store: Store) -> dict[str, Tensor]:
    """The downstream's state before its first step: what the rule gives the fresh network of the job's seed."""
    data = job.tasks.data("downstream", seed=job.seed, replicates=job.replicates)
    module = job.training(job.model.build(data))
    upstream = job.model.upstream(foreign_state(job, lambda run_id: store.result(run_id).state), data)
    callback = ParameterTransfer(job.transfer, upstream, seed=job.seed)
    before_training = cast(Trainer, SimpleNamespace(datamodule=data, ckpt_path=None))
    callback.setup(before_training, module, "fit")
    callback.on_fit_start(before_training, module)
    return {name: tensor.detach() for name, tensor in module.model.state_dict().items()}


def fresh_start(job: Job) -> dict[str, Tensor]:
    """The state of the fresh network of the job's seed."""
    return job.model.build(job.tasks.data("downstream", seed=job.seed, replicates=job.replicates)).state_dict()


def as_file(state: dict[str, Tensor]) -> bytes:
    """The content of a safetensors file."""
    return save({name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()})


def loading_lines(job: Job, run: RunRecord) -> str:
    """Three lines of Python that make the network with a start.

    Args:
        job: any that has its downstream network.
        run: keeps the start, in a folder or on a server.
    """
    is_local = Path(run.artifacts).is_absolute()
    path = repr(f"{run.artifacts}/{FILE}" if is_local else f"runs:/{run.run_id}/{FILE}")
    settings, prefix = job.stages["baseline"].settings, "model.downstream."
    own = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    name = own.pop("name")
    shared = {
        "num_classes": len(target_of(job).classes),
        "stem": settings["model.stem"],
        "head": settings["model.head"],
    }
    arguments = ", ".join(f"{key}={value!r}" for key, value in {**shared, **own}.items())
    mlflow = "" if is_local else "import mlflow; "
    return (
        f"{mlflow}from safetensors.torch import load_file; from paramtransfer.model.networks import make_network\n"
        f"model = make_network({name!r}, {arguments})\n"
        f"model.load_state_dict(load_file({path if is_local else f'mlflow.artifacts.download_artifacts({path})'}))"
    )
