"""The leaping solver against gradient descent itself, step by step."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from small_stages import accuracies, fresh, inherit, make_tasks, samples_of
from torch import Tensor

from paramtransfer.metrics import LEAP_ERROR, PRODUCTS
from paramtransfer.model.two_layer_cnn import TwoLayerCNN
from paramtransfer.task.synthetic import SyntheticTask
from paramtransfer.training.full_batch import margins
from paramtransfer.training.leap import Leap, LeapSolver, active_steps
from paramtransfer.training.solver import GramSolver

TOLERANCE = 0.1
PAPER = {"filters": 40, "init_std": 0.01, "lr": 0.01, "noise": 15.0, "steps": 400, "num_test": 50_000}


def regime(n: int = 100, **others: Any) -> dict[str, Any]:
    """Inside Condition 4.1, as experiment=regime scales it."""
    sizes = {"dim": n**2, "num1": n, "filters": 20, "noise": 1.0, "noise_scale": "std"}
    norms = {"signal_norm": 1.9 * n**0.25, "u_norm": 1.6 * n**0.25}
    return {**PAPER, **sizes, **norms, "init_std": 0.5 * n**-1.5, "lr": 0.5 / n, **others}


def trained(solver: Any, model: TwoLayerCNN, data: SyntheticTask) -> tuple[Any, TwoLayerCNN]:
    model = copy.deepcopy(model)
    running = solver(model, samples_of(data), data.tasks.optim.lr)
    running.advance(data.settings.steps)
    running.write()
    return running, model


def relative_distance(found: Tensor, true: Tensor) -> float:
    return ((found - true).abs() / true.abs().clamp(min=1)).max().item()


@pytest.mark.parametrize(
    ("settings", "alpha", "at_most"),
    [
        pytest.param({"dim": 40, "num1": 200, "u_norm": 0.0}, None, 0.1, id="d=40, N > 2 D, no shared signal"),
        pytest.param({"dim": 400, "num1": 1000, "u_norm": 3.0}, None, 0.1, id="d=400, N=1000"),
        pytest.param({"dim": 400, "num1": 2000, "steps": 200}, None, 0.1, id="d=400, N=2000"),
        pytest.param({"dim": 2000, "num1": 300, "lr": 10.0}, None, 0.4, id="a large step size"),
        pytest.param({"dim": 400, "num1": 300, "num2": 100}, 0.5, 0.2, id="inherited"),
        pytest.param({"dim": 2000, "num1": 300, "num2": 100, "u_norm": 0.0}, 1.0, 0.3, id="all inherited, none shared"),
        pytest.param({"dim": 10**6, "num1": 50}, None, 0.5, id="d=10^6, saturated from the start"),
        pytest.param({"dim": 50, "num1": 1}, None, 0.2, id="one sample"),
        pytest.param(regime(), None, 0.2, id="Condition 4.1"),
        pytest.param(regime(num2=30), 0.5, 0.25, id="Condition 4.1, inherited"),
        pytest.param(regime(steps=4000), None, 0.05, id="Condition 4.1, ten times as long"),
        pytest.param(regime(1000, num_test=5000), None, 0.1, id="Condition 4.1, N=1000"),
        pytest.param({"dim": 400, "num1": 100, "lr": 0.3}, None, 0.5, id="near saturation"),
        pytest.param({"dim": 400, "num1": 100, "noise": 0.0}, None, 0.1, id="no noise"),
    ],
)
def test_margins_accuracies_and_decisions_are_those_of_gradient_descent(
    settings: dict[str, Any], alpha: float | None, at_most: float
) -> None:
    """With far fewer products than steps; a decision differs only where the margin is as good as zero."""
    tasks = make_tasks(**{**PAPER, **settings})
    data, start = fresh(tasks, "upstream") if alpha is None else inherit(tasks, alpha)[:2]
    (gram, true), (leap, found) = (
        trained(solver, start, data) for solver in (GramSolver, partial(LeapSolver, tolerance=TOLERANCE))
    )
    assert leap.metrics()[PRODUCTS] <= at_most * data.settings.steps
    assert 0 <= leap.metrics()[LEAP_ERROR] <= 0.3 * TOLERANCE
    for name in ("noise_coefficients_RNF", "signal_coefficients_RF"):
        assert (getattr(leap, name) - getattr(gram, name)).norm() <= 0.05 * getattr(gram, name).norm()
    with torch.no_grad():
        true_RN = margins(true, samples_of(data))
        assert relative_distance(margins(found, samples_of(data)), true_RN) <= TOLERANCE
        assert relative_distance(leap.margins(), true_RN) <= TOLERANCE
        assert (leap.loss() - gram.loss()).abs().max() <= 1e-3
        assert (accuracies(found, data) - accuracies(true, data)).abs().max() <= 5e-4
        for points in data.test_dataloader():
            true_RN, found_RN = margins(true, points), margins(found, points)
            differs_RN = (true_RN >= 0) != (found_RN >= 0)
            assert true_RN[differs_RN].abs().le(TOLERANCE).all()
            assert differs_RN.float().mean() <= 0.01


@pytest.mark.parametrize("lr", [1.0, 10.0], ids=["pushed to and fro across zero", "oscillating loss"])
def test_where_the_path_is_not_smooth_the_steps_are_those_of_gram_bit_for_bit(lr: float) -> None:
    """At the price of a few leaps that were taken back."""
    tasks = make_tasks(
        dim=10, num1=300, filters=4, noise=15.0, init_std=0.01, lr=lr, u_norm=0.0, signal_norm=0.1, steps=400
    )
    data, start = fresh(tasks, "upstream")
    (_, true), (leap, found) = (trained(s, start, data) for s in (GramSolver, partial(LeapSolver, tolerance=TOLERANCE)))
    assert torch.equal(found.filters, true.filters)
    assert 400 < leap.metrics()[PRODUCTS] <= 408


def test_a_smaller_tolerance_is_kept_with_more_products() -> None:
    """Down to single steps."""
    data, start = fresh(make_tasks(**{**PAPER, "dim": 400, "num1": 300}), "upstream")
    _, true = trained(GramSolver, start, data)
    products = []
    for tolerance in (0.5, 0.1, 0.02, 1e-7):
        leap, found = trained(partial(LeapSolver, tolerance=tolerance), start, data)
        with torch.no_grad():
            distance = relative_distance(margins(found, samples_of(data)), margins(true, samples_of(data)))
        assert distance <= tolerance
        products.append(leap.metrics()[PRODUCTS])
    assert products == sorted(products)
    assert torch.equal(found.filters, true.filters)


def test_a_resumed_training_ends_bit_equal() -> None:
    """From a checkpoint amid leaps, and from one amid the single steps at the start."""
    tasks = make_tasks(**{**PAPER, "dim": 400, "num1": 100})
    data, start = fresh(tasks, "upstream")

    def solver() -> LeapSolver:
        return LeapSolver(copy.deepcopy(start), samples_of(data), tasks.optim.lr, tolerance=TOLERANCE)

    parts = (1, 39, 7, 153, 3, 197)
    whole, resumed = solver(), solver()
    met = set()
    for num_steps in parts:
        whole.advance(num_steps)
        if whole is not resumed and resumed._history:
            met.add("amid leaps" if resumed._is_pending else "amid single steps")
            state = copy.deepcopy(resumed.state())
            resumed = solver()
            resumed.resume(state)
        resumed.advance(num_steps)
    for name, value in whole.state().items():
        assert torch.equal(resumed.state()[name], value), name
    assert whole.metrics() == resumed.metrics()
    assert whole.metrics()[PRODUCTS] < 200
    assert met == {"amid leaps", "amid single steps"}


def test_short_parts_are_leapt_over() -> None:
    """Where a curve has so many points that hardly more than the shortest leap lies between them."""
    data, start = fresh(make_tasks(**{**PAPER, "dim": 400, "num1": 100}), "upstream")
    solver = LeapSolver(copy.deepcopy(start), samples_of(data), data.tasks.optim.lr, tolerance=TOLERANCE)
    for _ in range(50):
        solver.advance(8)
    assert solver.metrics()[PRODUCTS] <= 0.6 * 400


def test_replicates_leap_together_as_the_strictest_needs() -> None:
    """The number of products of a batch is at least that of each of its replicates, nearly."""
    tasks = make_tasks(**{**PAPER, "dim": 400, "num1": 100})
    products = []
    for replicates in (1, 4):
        data, start = fresh(tasks, "upstream", replicates=replicates)
        products.append(trained(partial(LeapSolver, tolerance=TOLERANCE), start, data)[0].metrics()[PRODUCTS])
    assert products[0] <= products[1] <= 2 * products[0]


@pytest.mark.parametrize("num_steps", [1, 2, 5, 17])
def test_active_steps_are_those_that_a_loop_counts(num_steps: int) -> None:
    """Every kind of path: down for good, up for good, to and fro."""
    rng = torch.Generator().manual_seed(0)
    start, drift, push = torch.randn(3, 20_000, generator=rng, dtype=torch.float64) * torch.tensor(
        [[1.0], [0.3], [0.3]]
    )
    z, active = start.clone(), torch.zeros(20_000)
    for _ in range(num_steps):
        is_on = z > 0
        active += is_on
        z = z + drift + push * is_on
    assert torch.equal(active_steps(start, drift, push, num_steps), active.double())


@pytest.mark.parametrize("tolerance", [0, -1, float("inf"), "small", None])
def test_a_tolerance_that_is_none_is_refused(tolerance: Any) -> None:
    with pytest.raises(ValueError, match=r"solver\.tolerance=.*: must be a finite number above 0"):
        Leap(tolerance=tolerance)
