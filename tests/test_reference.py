"""The default setting against an independent direct simulation of it."""

import pytest
import torch
from small_stages import accuracies, fresh, make_tasks, train

from paramtransfer.transfer.rules import Filters

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Means of 10 seeds with 1,000 test samples each, full-batch gradient descent in R^400; standard error 0.003 to 0.007.
DIRECT = {0.0: (0.657, 0.640, 0.628, 0.611, 0.595), 3.0: (0.661, 0.745, 0.815, 0.859, 0.886)}
DIRECT_SEM = 0.007


@pytest.mark.parametrize("u_norm", DIRECT)
def test_accuracies_agree_with_a_direct_simulation(u_norm: float) -> None:
    """Without transfer and for every alpha, within 4 combined standard errors over 10 replicates."""
    tasks = make_tasks(
        dim=400, u_norm=u_norm, filters=40, init_std=0.01, lr=0.01, num1=1000, num2=100, noise=15, num_test=1000
    )
    upstream_data, upstream = fresh(tasks, "upstream", replicates=10)
    train(upstream, upstream_data, steps=800)
    for alpha, direct in zip(ALPHAS, DIRECT[u_norm], strict=True):
        data, model = fresh(tasks, "downstream", replicates=10)
        trained = tasks.model.upstream(upstream.state_dict(), data)
        model.load_state_dict(Filters(alpha=alpha)(trained, model, seed=0)[0])
        train(model, data, steps=400)
        ours: torch.Tensor = accuracies(model, data)
        sem = (ours.var().item() / 10 + DIRECT_SEM**2) ** 0.5
        assert abs(ours.mean().item() - direct) <= 4 * sem, (alpha, ours.mean().item(), direct, sem)
