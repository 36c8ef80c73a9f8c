"""Why a start is good where nothing is shared: signal, noise and overlap after training, by direct measurement.

    python scripts/starts.py                      n = 20 replicates, ||u|| = 0, d = 400: a minute on one core
    python scripts/starts.py --dim 2000 --u-norm 3

Of each start, after training on task 2: gamma, the mean signal j <w, s_2>; rho, the mean of j y_i <w, xi_i> over the
training samples; the cosine of the two signs' mean filters; the share of fresh noise patches on which no filter is
active; and the accuracy on these and on the others.

Shape letters: R replicates, N test points, F filters (both signs).
"""

import argparse

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from paramtransfer.dataset.signal_noise import SignalNoise
from paramtransfer.model.two_layer_cnn import TwoLayerCNN, TwoLayerCNNs
from paramtransfer.optim.optimizers import GradientDescent
from paramtransfer.task.synthetic import SyntheticTask, SyntheticTasks
from paramtransfer.training.full_batch import margins
from paramtransfer.training.leap import LeapSolver
from paramtransfer.transfer.controls import Aligned
from paramtransfer.transfer.rules import Filters, Nothing, TransferRule

RULES: list[TransferRule] = [
    Nothing(),
    Aligned(),
    Aligned(scale=0.25),
    Aligned(signs="together"),
    Filters(alpha=1),
    Filters(alpha=1, rank=1),
    Filters(alpha=1, rank=1, scale=0.25),
    Filters(alpha=1, rank=1, scale=0.5, perturb=2, perturb_along="one"),
]


def make_tasks(dim: int, u_norm: float) -> SyntheticTasks:
    """Figure 1(c)'s tasks."""
    return SyntheticTasks(
        dataset=SignalNoise(dim=dim, u_norm=u_norm),
        model=TwoLayerCNNs(filters=40, init_std=0.01),
        optim=GradientDescent(lr=0.01),
        upstream={"num_samples": 1000, "noise": 15, "steps": 800},
        downstream={"num_samples": 100, "noise": 15, "steps": 400},
        num_test=16_000,
    )


def train(model: TwoLayerCNN, data: SyntheticTask) -> LeapSolver:
    """A whole training."""
    solver = LeapSolver(model, data.samples, data.tasks.optim.lr, tolerance=0.01)
    solver.advance(data.settings.steps)
    solver.write()
    return solver


@torch.no_grad()
def measured(rule: TransferRule, upstream: TwoLayerCNN, data: SyntheticTask) -> dict[str, Tensor]:
    """What one start comes to, of each replicate."""
    model = data.tasks.model.build(data)
    state, _ = rule(upstream, model, seed=data.seed)
    model.load_state_dict(state)
    lengths_R = model.filters.norm(dim=-1).mean((1, 2)).clone()
    solver = train(model, data)
    noise_RNF = data.samples.labels_RN[..., None] * solver.sign_F * solver.noise_RNF
    means_RJD = model.filters.mean(dim=2)
    (points,) = data.test_dataloader()
    is_unseen_RN = (points.standard_noise @ points.noise_map(model.filters.flatten(1, 2)).mT <= 0).all(dim=-1)
    is_right_RN = margins(model, points) >= 0
    return {
        "length at the start": lengths_R,
        "gamma": (solver.sign_F * solver.signal_RF).mean(1),
        "rho": noise_RNF.mean((1, 2)),
        "cosine of the signs": cosine_similarity(means_RJD[:, 0], means_RJD[:, 1], dim=-1),
        "noise unseen": is_unseen_RN.double().mean(1),
        "accuracy": is_right_RN.double().mean(1),
        "accuracy, noise seen": (is_right_RN & ~is_unseen_RN).sum(1) / (~is_unseen_RN).sum(1),
        "accuracy, noise unseen": (is_right_RN & is_unseen_RN).sum(1) / is_unseen_RN.sum(1),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=400)
    parser.add_argument("--u-norm", type=float, default=0.0)
    parser.add_argument("--replicates", type=int, default=20)
    args = parser.parse_args()
    tasks = make_tasks(args.dim, args.u_norm)
    source, target = (tasks.data(side, seed=0, replicates=args.replicates) for side in ("upstream", "downstream"))
    trained = tasks.model.build(source)
    train(trained, source)
    upstream = tasks.model.upstream(trained.state_dict(), target)
    rows = {}
    for rule in RULES:
        found = measured(rule, upstream, target)
        sems = {name: float(value_R.std()) / args.replicates**0.5 for name, value_R in found.items()}
        rows[rule.label] = {name: f"{float(value_R.mean()):.3f} ± {sems[name]:.3f}" for name, value_R in found.items()}
    with pd.option_context("display.width", 250, "display.max_columns", 20, "display.max_colwidth", 40):
        print(
            f"d = {args.dim}, ||u|| = {args.u_norm:g}, n = {args.replicates} replicates x {tasks.num_test} test points"
        )
        print(pd.DataFrame(rows).T.replace(np.nan, ""))


if __name__ == "__main__":
    main()
