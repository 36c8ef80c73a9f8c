"""`transfer=chosen`: the choice against tests of SciPy, the comparison against plain trainings on fewer samples."""

from collections.abc import Callable
from typing import Any

import pytest
import starts
import torch
from scipy import stats
from small_stages import fresh, inherit, make_tasks
from torch import Tensor

from paramtransfer.errors import ConfigError
from paramtransfer.training.cross_validation import CrossValidated, held_out_margins, score
from paramtransfer.training.full_batch import FullBatchTraining, margins
from paramtransfer.training.leap import Leap
from paramtransfer.training.solver import AutogradSolver, GramSolver
from paramtransfer.training.validation_halving import rungs
from paramtransfer.transfer.keep_default import choose
from paramtransfer.transfer.rules import Filters, Nothing

Fixture = Callable[..., Any]
CANDIDATES = ["none", {"alpha": [0.4, 1.0]}, {"alpha": 1.0, "rank": 1, "scale": 0.5}]


def scores(*means: float, spread: float = 1.0, num: int = 40) -> Tensor:
    """Of each start on each sample, with these means of the differences to the first."""
    rows_CN = torch.randn(len(means), num, generator=torch.Generator().manual_seed(0)) * spread
    return rows_CN - rows_CN.mean(1, keepdim=True) + torch.tensor(means)[:, None]


def test_choice_keeps_the_default_within_its_noise() -> None:
    """A difference is judged as SciPy's paired t test does, less the factor for the best of several."""
    found = choose(scores(0, 0.1, 1.0), [False, True, True])
    test = stats.ttest_rel(scores(0, 0.1, 1.0)[2], scores(0, 0.1, 1.0)[0], alternative="greater")
    assert (found.index, found.verdict, found.inherits) == (2, "inherit", True)
    assert found.p == pytest.approx(2 * test.pvalue, rel=1e-4)
    assert found.differences[2][0] / found.differences[2][1] == pytest.approx(test.statistic, rel=1e-4)

    kept = choose(scores(0, 0.1, 0.2), [False, True, True], inflation=5)
    assert (kept.index, kept.verdict, kept.inherits) == (0, "cannot tell", False)
    unproven = choose(scores(0, 0.1, 1.0), [False, True, True], inflation=5)
    assert (unproven.index, unproven.verdict) == (2, "cannot tell")
    dropped = choose(scores(0, -1.0, 1.0), [False, True, True], finalists=[0, 1])
    assert (dropped.index, dropped.p, dropped.verdict) == (0, 1.0, "start fresh")
    assert choose(scores(0, 0.1, 1.0), [False, True, True], is_claim=False).verdict == "no verdict"
    noisy = choose(scores(0, 0.1, 1.0), [False, True, True], training_variance=1.1)
    assert (noisy.index, noisy.verdict) == (0, "cannot tell")
    assert choose(scores(0, -1, -2.0), [False, True, True]).verdict == "start fresh"
    same = choose(torch.ones(2, 5), [False, True])
    assert (same.index, same.verdict) == (0, "cannot tell")


def test_held_out_margins_are_those_of_trainings_on_the_others() -> None:
    """Folds that share one batch train as if the samples held out were not there, whatever the solver."""
    tasks = make_tasks(num2=12)
    data, model = fresh(tasks, "downstream", replicates=1)
    starts_CJMD = torch.cat([model.filters.detach(), 2 * model.filters.detach()])
    fold_N = torch.arange(12) % 3
    expected = torch.zeros(2, 12)
    for start, filters_JMD in enumerate(starts_CJMD):
        for fold in range(3):
            trained = type(model)(filters_JMD[None].clone())
            kept = data.samples._replace(
                labels_RN=data.samples.labels_RN[:, fold_N != fold],
                noise_RND=data.samples.noise_RND[:, fold_N != fold],
                signal_first_RN=data.samples.signal_first_RN[:, fold_N != fold],
            )
            AutogradSolver(trained, kept, tasks.optim.lr).advance(50)
            expected[start, fold_N == fold] = margins(trained, data.samples)[0, fold_N == fold].detach()
    for solver in (AutogradSolver, GramSolver, Leap(tolerance=1e-3)):
        module = FullBatchTraining(model=model, optim=tasks.optim, solver=solver, dynamics=False)
        found = held_out_margins(starts_CJMD, data.samples, fold_N, module, 50)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_soft_hits() -> None:
    """Near a whole hit or miss far from the edge, one half on it."""
    assert score(torch.tensor([[-9.0, 9.0, 0.0]])).tolist()[0] == pytest.approx([0.0, 1.0, 0.5], abs=0.03)


def test_each_replicate_has_its_own_start() -> None:
    """What is kept is what its candidate's rule makes, replicate by replicate, and the test data are never seen."""
    data, model, upstream, _ = inherit(make_tasks(num2=20, u_norm=1.5, num1=100), alpha=0, replicates=8)
    model = data.tasks.model.build(data)
    data.test_dataloader = lambda: pytest.fail("the test data were looked at")
    trained = data.tasks.model.upstream(upstream.state_dict(), data)
    rule = CrossValidated(folds=4, candidates=CANDIDATES)
    module = FullBatchTraining(model=model, optim=data.tasks.optim, solver=GramSolver, dynamics=False)
    starts = rule.starts(trained, model, seed=0)
    state, report = rule.choose(starts, module, data, lambda epochs: pytest.fail("no trainer is needed"))
    rules = [Nothing(), Filters(alpha=0.4), Filters(alpha=1.0), Filters(alpha=1.0, rank=1, scale=0.5)]
    assert report.compared is not None
    kept = [choice.index for choice in report.compared.choices]
    assert len(set(kept)) > 1
    for replicate, index in enumerate(kept):
        own, account = rules[index](trained, model, seed=0)
        assert torch.equal(state["filters"][replicate], own["filters"][replicate])
        inherited = account.masks.get("filters", torch.zeros_like(state["filters"], dtype=torch.bool))
        assert torch.equal(report.masks["filters"][replicate], inherited[replicate])


def test_job_that_chooses(train_here: Fixture) -> None:
    """The run says what was chosen; in hindsight each candidate is tested, which changes no choice."""
    small = ["replicates=2", "dataset.dim=20", "model.filters=4", "task.num_test=50", "trainer.progress=false"]
    fewer = ["task.upstream.steps=20", "task.downstream.steps=10", "task.downstream.num_samples=20"]
    output = train_here("experiment=better", *small, "dataset.u_norm=3", *fewer)
    assert "Regret:" in output
    without = train_here("experiment=better", *small, "dataset.u_norm=3", *fewer, "transfer.hindsight=false")
    assert "No figure: it needs what transfer.hindsight=true looks up." in without
    same = "with transfer 0"
    assert output[output.index(same) :].splitlines()[0] == without[without.index(same) :].splitlines()[0]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["transfer.candidates=[]"], r"transfer\.candidates=\[\]: must be a list of starts"),
        (["transfer.candidates=[none]"], "must be two or more different starts, one of which inherits"),
        (["transfer.candidates=[none,aligned]"], "must be two or more different starts, one of which inherits"),
        (["transfer.candidates=[none,{alpha: []}]"], r"transfer\.candidates\.alpha=\[\]: must be a value or a list"),
        (["transfer.candidates=[none,{alpha: 1, dash: 0}]"], "must be without dash"),
        (
            ["transfer.candidates=[none,{alpha: 1, select: activation}]"],
            r"transfer\.select=activation: must be random or",
        ),
        (["transfer.candidates=[{alpha: 1},none]"], "must be none or aligned in the first place"),
        (["transfer.candidates=[none,magic]"], r"transfer\.candidates\.rule=magic: must be filters or none or "),
        (["transfer.candidates=[none,{alpha: 2}]"], "alpha=2: must be"),
        (["transfer.candidates=[none,{alpa: 1}]"], "must be settings of transfer=filters"),
        (["transfer.candidates=[none,{alpha: 1, head_epochs: 1}]"], "must be without head_epochs"),
        (["transfer.candidates=[none,{alpha: 1, select: norm, rank: 0}]"], "rank=0: must be"),
        (["transfer.folds=1"], r"transfer\.folds=1: must be"),
        (
            ["task.downstream.num_samples=9"],
            r"task\.downstream\.num_samples=9: must be at least 10 with transfer\.folds=5",
        ),
    ],
)
def test_bad_input_is_one_sentence(overrides: list[str], sentence: str, compose_job: Fixture) -> None:
    """Before anything is trained."""
    with pytest.raises(ConfigError, match=sentence):
        compose_job("transfer=chosen", *overrides)


def test_halving_ends_with_two() -> None:
    """Each rung keeps the better half and trains twice as long; the last one as long as the downstream."""
    assert list(rungs(8, 20)) == [(5, 4), (10, 2), (20, 2)]
    assert list(rungs(5, 7)) == [(2, 3), (4, 2), (7, 2)]
    assert list(rungs(2, 10)) == [(10, 2)]
    assert list(rungs(1, 3)) == [(3, 1)]


def test_noise_that_no_filter_sees() -> None:
    """It is what starts along shared directions have more of: there the signal alone decides, and rightly."""
    tasks = starts.make_tasks(400, 0.0)
    target = tasks.data("downstream", seed=0, replicates=2)
    fresh_model = tasks.model.build(target)
    rules = (starts.RULES[0], starts.RULES[1], starts.RULES[3])
    plain, apart, together = (starts.measured(rule, fresh_model, target) for rule in rules)
    assert (plain["noise unseen"] == 0).all()
    assert (apart["noise unseen"] > 0.15).all()
    assert (together["noise unseen"] > apart["noise unseen"]).all()
    assert (together["accuracy, noise unseen"] == 1).all()
