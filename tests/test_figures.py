"""From runs to tables to figures."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paramtransfer.figures.curves import Curves
from paramtransfer.figures.drawing import SweepData
from paramtransfer.figures.heatmap import Heatmap
from paramtransfer.figures.phase import Phase
from paramtransfer.report.sweep_table import average_seeds, swept_keys
from paramtransfer.tracking.sweeps import JobRecord


def sweep(table: pd.DataFrame, *keys: str) -> SweepData:
    return SweepData(keys=keys, table=table, rows=table, job=pytest.fail, history=pytest.fail)  # type: ignore[arg-type]


def test_swept_keys_take_more_than_one_value() -> None:
    """A key that is the same in every job was set, not swept; the jobs that failed count."""
    records = [
        JobRecord(num=0, overrides={"alpha": 0.5, "seed": 0, "replicates": 2}),
        JobRecord(num=1, overrides={"alpha": 0.5, "seed": 1, "replicates": 2}, error="no"),
    ]
    assert swept_keys(records) == ["seed"]


@pytest.mark.parametrize(("replicates", "sem"), [(2, math.sqrt(0.03**2 + 0.04**2) / 2), (1, 0.1)])
def test_seeds_are_averaged(replicates: int, sem: float) -> None:
    """Errors of seeds with replicates add in squares; of seeds with one replicate each, their spread counts."""
    estimates = {
        "test/acc": [0.6, 0.8, 0.5],
        "test/acc_without_transfer": [0.6, 0.8, 0.5],
        "test/gain": [0.6, 0.8, 0.5],
    }
    sems = {f"{name}_sem": [0.03, 0.04, 0.05] for name in estimates}
    ids = {"downstream_run_id": ["a", "b", "c"]}
    rows = pd.DataFrame({"alpha": [0.1, 0.1, 0.2], "seed": [0, 1, 0], **estimates, **sems, "n": replicates, **ids})
    first, second = (row for _, row in average_seeds(rows, ["alpha", "seed"]).iterrows())
    assert (first["alpha"], first["test/acc"], first["n"], first["downstream_run_id"]) == (
        0.1,
        pytest.approx(0.7),
        2 * replicates,
        "a",
    )
    assert first["test/gain_sem"] == pytest.approx(sem)
    assert second["test/acc_sem"] == pytest.approx(0.05)


def test_phase_finds_the_constants_of_a_known_law() -> None:
    """error = exp(-2 A/(B d)) crosses 0.1 at log(10)/2 and has C_2 = 2; cells outside Condition 4.1 are ignored."""
    ratio = np.geomspace(0.05, 5, 30)
    inside = pd.DataFrame(
        {"theory/transfer_ratio": ratio, "test/acc": 1 - np.exp(-2 * ratio), "theory/condition_holds": 1.0}
    )
    outside = inside.assign(**{"test/acc": 0.5, "theory/condition_holds": 0.0})
    table = pd.concat([inside, outside]).assign(
        **{"n": 100, "theory/scratch_ratio": 1.0, "test/acc_sem": 1e-6, "test/acc_without_transfer": 0.5}
    )
    table["test/acc_without_transfer_sem"] = 0.0
    constants = Phase(size="n")(sweep(table, "n")).tables["constants"].iloc[0]
    assert constants["crossing"] == pytest.approx(math.log(10) / 2, rel=0.05)
    assert constants["C_2"] == pytest.approx(2)


def test_curves_say_where_transfer_does_harm_and_whether_that_is_predicted() -> None:
    """A note for each harm beyond 2 standard errors and each false alarm, with Proposition 4.4's word."""
    table = pd.DataFrame(
        {
            "alpha": [0.2, 0.5, 1.0],
            "test/acc": [0.5, 0.6, 0.4],
            "test/acc_sem": 0.01,
            "test/acc_without_transfer": 0.55,
            "test/acc_without_transfer_sem": 0.01,
            "test/gain": [-0.05, 0.05, -0.015],
            "test/gain_sem": 0.01,
            "theory/negative_transfer": [1.0, 1.0, 0.0],
            "theory/transfer_ratio": [0.1, 2.0, 0.3],
        }
    )
    drawing = Curves(x="alpha")(sweep(table, "alpha"))
    assert list(drawing.notes) == [
        "alpha=0.2: gain -0.0500 (-5.0 s.e.); Proposition 4.4 predicts harm",
        "alpha=0.5: gain +0.0500 (+5.0 s.e.); Proposition 4.4 predicts harm",
    ]
    bound = drawing.figures["figure"].axes[0].lines[-1].get_ydata()
    assert np.asarray(bound)[1] == pytest.approx(1 - math.exp(-2))
    assert np.isnan(np.asarray(bound)[[0, 2]]).all()


def test_heatmap_truncates_at_the_given_accuracies() -> None:
    """Each truncated map marks exactly the cells that reach its accuracy."""
    x, y = np.meshgrid([100, 200, 400], [0.0, 1.0])
    accuracy = np.array([[0.66, 0.6, 0.5], [0.9, 0.7, 0.65]])
    table = pd.DataFrame(
        {"d": x.ravel(), "u": y.ravel(), "test/acc": accuracy.ravel(), "test/gain": accuracy.ravel() - 0.6}
    )
    table["theory/transfer_ratio"] = table["u"] + 100 / table["d"]
    axes = Heatmap(x="d", y="u", truncate=[0.65, 0.7])(sweep(table, "d", "u")).figures["figure"].axes
    maps = [axis.collections[0].get_array() for axis in axes[:4]]
    assert np.asarray(maps[0]).ravel() == pytest.approx(accuracy.ravel())
    assert np.asarray(maps[2]).ravel().tolist() == [1, 0, 0, 1, 1, 1]
    assert np.asarray(maps[3]).ravel().tolist() == [0, 0, 0, 1, 1, 0]


TINY = [
    "replicates=2",
    "model.filters=3",
    "task.num_test=100",
    "task.upstream.steps=4",
    "task.downstream.steps=4",
    "trainer.progress=false",
]
SMALLER = {
    "fig1a": ["task.upstream.num_samples=5,9", "alpha=0.5,1"],
    "fig1b": ["task.upstream.noise=1,5", "task.upstream.num_samples=8", "alpha=0.5,1"],
    "fig1c": ["dataset.u_norm=0,2", "task.upstream.num_samples=8", "alpha=0.5"],
    "fig2": ["dataset.dim=10,20", "dataset.u_norm=0,2", "task.upstream.num_samples=8"],
    "phase": ["regime.n=20,30", "regime.signal=1", "regime.shared=1"],
    "reference": ["task.upstream.num_samples=8", "dataset.u_norm=0,2", "alpha=0.5,1"],
    "dynamics": ["task.upstream.num_samples=8"],
    "dynamics_regime": ["regime.n=20"],
    "regime": ["regime.n=20"],
}


@pytest.mark.parametrize("experiment", SMALLER)
def test_every_experiment_runs_and_leaves_table_and_figure(experiment: str, train_here: Callable[..., str]) -> None:
    """One command, no -m: the sweep's run ends with CSV, PNG and PDF."""
    output = train_here(f"experiment={experiment}", *TINY, *SMALLER[experiment])
    if experiment == "regime":
        assert "with transfer" in output
        return
    assert "Table, figure and report.html of sweep" in output
    for name in ("table.csv", "figure.png", "figure.pdf", "jobs.json", "report.html"):
        assert len(list(Path("mlruns/artifacts").glob(f"*/artifacts/{name}"))) == 1
