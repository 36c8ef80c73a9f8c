"""Small synthetic stages for the tests, and Algorithm 1 and 2 without Lightning and MLflow."""

from typing import Any

import torch
from torch import Tensor

from paramtransfer.dataset.signal_noise import Samples, SignalNoise
from paramtransfer.model.two_layer_cnn import TwoLayerCNN, TwoLayerCNNs
from paramtransfer.optim.optimizers import GradientDescent
from paramtransfer.stage import Side
from paramtransfer.task.synthetic import SyntheticTask, SyntheticTasks
from paramtransfer.training.full_batch import margins
from paramtransfer.training.solver import GramSolver
from paramtransfer.transfer.rules import Filters


def make_tasks(
    *,
    dim: int = 40,
    filters: int = 5,
    init_std: float = 0.05,
    lr: float = 0.05,
    num1: int = 30,
    num2: int = 12,
    noise: float = 4.0,
    steps: int = 50,
    num_test: int = 200,
    dataset: type[SignalNoise] = SignalNoise,
    tail_error: bool = False,
    **signal: Any,
) -> SyntheticTasks:
    return SyntheticTasks(
        dataset=dataset(**{"dim": dim, "u_norm": 2.5, **signal}),
        model=TwoLayerCNNs(filters=filters, init_std=init_std),
        optim=GradientDescent(lr=lr),
        upstream={"num_samples": num1, "noise": noise, "steps": steps},
        downstream={"num_samples": num2, "noise": noise, "steps": steps},
        num_test=num_test,
        tail_error=tail_error,
    )


def samples_of(data: SyntheticTask) -> Samples:
    return next(iter(data.train_dataloader())).samples


def fresh(
    tasks: SyntheticTasks, side: Side, *, replicates: int = 2, seed: int = 0
) -> tuple[SyntheticTask, TwoLayerCNN]:
    data = tasks.data(side, seed=seed, replicates=replicates)
    return data, tasks.model.build(data)


def train(model: TwoLayerCNN, data: SyntheticTask, solver: Any = GramSolver, steps: int | None = None) -> Any:
    running = solver(model, samples_of(data).to(model.filters.dtype), data.tasks.optim.lr)
    running.advance(steps or data.settings.steps)
    running.write()
    return running


def inherit(tasks: SyntheticTasks, alpha: float, *, replicates: int = 2, solver: Any = GramSolver) -> Any:
    """A downstream model before training, with its data, after the upstream's training."""
    upstream_data, upstream = fresh(tasks, "upstream", replicates=replicates)
    train(upstream, upstream_data, solver)
    data, model = fresh(tasks, "downstream", replicates=replicates)
    trained = tasks.model.upstream(upstream.state_dict(), data)
    state, report = Filters(alpha=alpha)(trained, model, seed=0)
    model.load_state_dict(state)
    return data, model, upstream, report


def accuracies(model: TwoLayerCNN, data: SyntheticTask) -> Tensor:
    """Test accuracy of each replicate: (R,)."""
    with torch.no_grad():
        hits = [margins(model, points) >= 0 for points in data.test_dataloader()]
    return torch.cat(hits, dim=1).double().mean(1)
