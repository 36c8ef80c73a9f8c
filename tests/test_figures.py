"""From runs to tables to figures."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paramtransfer.figures.curves import Curves
from paramtransfer.figures.drawing import SweepData
from paramtransfer.figures.epochs import Epochs
from paramtransfer.figures.heatmap import Heatmap
from paramtransfer.figures.phase import Phase, crossing
from paramtransfer.figures.significance import gain_counts, harm_prediction
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


def test_seeds_are_averaged() -> None:
    """Jobs of 1 and 3 replicates: every replicate counts once; s^2 is within and between them."""
    estimates = {name: [0.6, 1.0, 0.5] for name in ("test/acc", "test/acc_without_transfer", "test/gain")}
    sems = {f"{name}_sem": [0.03, 0.02, 0.05] for name in estimates}
    more = {"train/loss": [0.4, 0.2, 0.3], "downstream_run_id": ["a", "b", "c"], "n": [1, 3, 2]}
    rows = pd.DataFrame({"alpha": [0.1, 0.1, 0.2], "seed": [0, 1, 0], **estimates, **sems, **more})
    first, second = (row for _, row in average_seeds(rows, ["alpha", "seed"]).iterrows())
    assert (first["alpha"], first["n"], first["downstream_run_id"]) == (0.1, 4, "a")
    assert (first["test/acc"], first["train/loss"]) == pytest.approx((0.9, 0.25))
    # (0.6 - 0.9)^2 + 3 (1 - 0.9)^2 = 0.12 between, 2 * 3 * 0.02^2 within
    assert first["test/gain_sem"] == pytest.approx(math.sqrt((0.12 + 0.0024) / 3 / 4))
    assert second["test/acc_sem"] == pytest.approx(0.05)


def test_phase_finds_the_constants_of_each_family() -> None:
    """error = exp(-c A/(B d)), c = 2 size^(1/4)/family: all is known; cells outside Condition 4.1 are ignored."""
    ratio = np.geomspace(0.05, 8, 60)
    cells = [
        pd.DataFrame(
            {
                "size": size,
                "family": family,
                "theory/transfer_ratio": ratio,
                "test/error_tail": np.exp(-rate * ratio),
                "test/error_tail_sem": 0.01 * np.exp(-rate * ratio),
                "test/log_error_tail": -rate * ratio,
                "test/log_error_tail_sem": 0.01,
            }
        )
        for size in (16, 81, 256)
        for family in (0.5, 1.0)
        for rate in [2 / family * size**0.25]
    ]
    inside = pd.concat(cells).assign(**{"theory/condition_holds": 1.0})
    outside = inside.assign(**{"test/error_tail": 0.5, "theory/condition_holds": 0.0})
    others = {"test/acc": 0.5, "test/acc_without_transfer": 0.5, "test/gain": 0.1, "test/gain_sem": 0.01}
    table = pd.concat([inside, outside]).assign(**others, **{"train/loss": 0.1, "theory/scratch_ratio": 1.0})
    drawing = Phase(size="size", family="family")(sweep(table.assign(n=5), "size", "family"))
    constants, trend = drawing.tables["constants"], drawing.tables["trend"]
    rate = 2 / constants["family"] * constants["size"] ** 0.25
    assert constants["crossing"].to_numpy() == pytest.approx((math.log(10) / rate).to_numpy(), rel=1e-3)
    assert (constants["C_3"] * constants["crossing"]).to_numpy() == pytest.approx(1)
    assert constants["C_2"].to_numpy() == pytest.approx(rate.to_numpy())
    assert constants["slope"].to_numpy() == pytest.approx(rate.to_numpy())
    assert trend["family"].tolist() == [0.5, 1.0]
    assert trend["slope"].to_numpy() == pytest.approx(-0.25, abs=1e-3)


def test_crossing_by_hand() -> None:
    """Errors 0.2 at 1 and 0.05 at 4 cross 0.1 at 2, their geometric middle, and fall as 1/ratio: 10 % is 10 %."""
    ratio, error = np.array([0.5, 1.0, 4.0]), np.array([0.3, 0.2, 0.05])
    assert crossing(ratio, error, 0.1 * error) == pytest.approx((2.0, 0.2))
    assert np.isnan(crossing(ratio, error + 0.1, error)).all()
    assert np.isnan(crossing(ratio, error / 10, error)).all()


def test_many_gains_are_counted_with_and_without_allowance() -> None:
    """p of five cells, n = 1: 0.001, 0.01, 0.025, 0.049 and 0.5; of these the first three pass 0.05 k/5."""
    z = [3.290527, -2.575829, 2.241403, 1.968596, 0.674490]
    table = pd.DataFrame({"test/gain": z, "test/gain_sem": 1.0, "n": 1, "theory/negative_transfer": [1, 1, 1, 0, 0]})
    (counts,) = gain_counts(table)
    assert "a gain in 3 and a loss in 1 at p < 0.05 each" in counts
    assert "in 2 and 1." in counts
    assert harm_prediction(table) == (
        "Proposition 4.4 predicts harm in 3 of 5 settings, and the gain is below 0 in 1 of them "
        "(in 1 clearly, after Benjamini-Hochberg). "
        "Of the other 2 it says nothing: the gain is below 0 in 0."
    )


def test_curves_say_where_transfer_does_harm_and_whether_that_is_predicted() -> None:
    """A note for each harm and each false alarm, with Proposition 4.4's word; p = 0.13 is none."""
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
            "n": 1,
        }
    )
    drawing = Curves(x="alpha")(sweep(table, "alpha"))
    assert list(drawing.notes)[1:3] == [
        "alpha=0.2: gain -0.0500 (p = 5.7e-07); Proposition 4.4 predicts harm",
        "alpha=0.5: gain +0.0500 (p = 5.7e-07); Proposition 4.4 predicts harm",
    ]
    assert drawing.figures["figure"].axes[1].containers[0].lines[0].get_ydata() == pytest.approx([-0.05, 0.05, -0.015])
    bound = drawing.figures["figure"].axes[0].lines[-1].get_ydata()
    assert np.asarray(bound)[1] == pytest.approx(1 - math.exp(-2))
    assert np.isnan(np.asarray(bound)[[0, 2]]).all()


def test_epochs_pair_the_gain_by_seed() -> None:
    """Gains of two seeds, 0.1 then 0 and 0 then 0.2; the accuracies themselves spread twice as far."""
    curves = {"b0": [0.5, 0.6], "d0": [0.6, 0.6], "b1": [0.7, 0.8], "d1": [0.7, 1.0]}
    rows = pd.DataFrame({"seed": [0, 1], "baseline_run_id": ["b0", "b1"], "downstream_run_id": ["d0", "d1"]})
    data = SweepData(
        keys=[], table=rows, rows=rows, job=pytest.fail, history=lambda run_id, name: pd.Series(curves[run_id])
    )
    drawing = Epochs()(data)
    gain = drawing.tables["curves"].query("curve.str.startswith('gain')")
    assert gain[["mean", "sem"]].to_numpy() == pytest.approx(np.array([[0.05, 0.05], [0.1, 0.1]]))
    # 0.1 +- 12.706 * 0.1, one degree of freedom
    assert drawing.notes[-1].endswith("paired by seed: 0.1000 ± 0.1000 (95 %: -1.1706 to 1.3706)")


def test_values_of_several_kinds_are_drawn_in_their_order() -> None:
    """As `s: per_class=null,10`: along the axis, as lines and in a map."""
    estimates = {
        name: 0.5 for key in ("acc", "acc_without_transfer", "gain") for name in (f"test/{key}", f"test/{key}_sem")
    }
    mixed = ["null", 10, 1.5, True]
    table = pd.DataFrame([{"x": x, "y": y, "n": 1, **estimates} for x in mixed for y in mixed])
    for draw in (Curves(x="x", lines="y"), Heatmap(x="x", y="y")):
        axis = draw(sweep(table, "x", "y")).figures["figure"].axes[0]
        assert {label.get_text() for label in axis.get_xticklabels()} == {"null", "10", "1.5", "True"}
    alone = Curves(x="x")(sweep(table.drop_duplicates("x"), "x")).figures["figure"].axes[0]
    assert [label.get_text() for label in alone.get_xticklabels()] == ["null", "10", "1.5", "True"]


def test_heatmap_truncates_at_the_given_accuracies() -> None:
    """Each truncated map marks exactly the cells that reach its accuracy; unclear gains are crossed."""
    x, y = np.meshgrid([100, 200, 400], [0.0, 1.0])
    accuracy = np.array([[0.66, 0.6, 0.5], [0.9, 0.7, 0.65]])
    table = pd.DataFrame(
        {"d": x.ravel(), "u": y.ravel(), "test/acc": accuracy.ravel(), "test/gain": accuracy.ravel() - 0.6}
    )
    table = table.assign(**{"theory/transfer_ratio": table["u"] + 100 / table["d"], "test/gain_sem": 0.05, "n": 5})
    axes = Heatmap(x="d", y="u", truncate=[0.65, 0.7])(sweep(table, "d", "u")).figures["figure"].axes
    assert axes[1].lines[0].get_xdata().tolist() == [100, 200, 400, 200, 400]  # all but 6 standard errors
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
