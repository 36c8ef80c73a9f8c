"""A whole job in this process: Lightning, precision and both solvers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from paramtransfer.cli.compose import make_job
from paramtransfer.experiment.run import run
from paramtransfer.metrics import LEAP_ERROR, PRODUCTS
from paramtransfer.tracking.store import Store

CONF = str(Path(__file__).parents[1] / "conf")
TINY = [
    "replicates=2",
    "dataset.dim=30",
    "model.filters=5",
    "task.num_test=100",
    "task.curve_points=7",
    "task.upstream={num_samples: 20, noise: 4, steps: 30}",
    "task.downstream={num_samples: 8, noise: 4, steps: 20}",
    "trainer.progress=false",
]


def results(tmp_path: Path, *overrides: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        job = make_job(compose("config", [*TINY, *overrides]))
    return run(job, Store(tmp_path), tags={})


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-4), ("64-true", 1e-10)])
def test_both_solvers_end_a_job_alike(tmp_path: Path, precision: str, tolerance: float) -> None:
    """Filters of all stages agree through the Trainer, in its precision, and so does every hit."""
    plain, gram = (
        results(tmp_path, f"solver={name}", f"trainer.precision={precision}") for name in ("autograd", "gram")
    )
    for stage in ("upstream", "baseline", "downstream"):
        ours, theirs = gram[stage].state["filters"], plain[stage].state["filters"]
        assert ours.dtype == (torch.float64 if precision == "64-true" else torch.float32)
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
        assert torch.equal(gram[stage].hits_RN, plain[stage].hits_RN)
    assert not torch.equal(gram["baseline"].state["filters"], gram["downstream"].state["filters"])


def test_a_run_says_how_many_products_it_took(tmp_path: Path) -> None:
    """Not more than a few beyond one a step, and the largest error of a leap, within the tolerance."""
    for stage, result in results(tmp_path, "task.upstream.steps=200", "task.curve_points=1").items():
        num_steps = 200 if stage == "upstream" else 20
        assert 0 < result.metrics[PRODUCTS] <= num_steps + 4
        assert 0 <= result.metrics[LEAP_ERROR] <= 0.1


def test_curves_have_their_points_and_no_other(tmp_path: Path) -> None:
    """Loss and accuracy are logged after each of the seven parts of the training, once."""
    store = Store(tmp_path)
    upstream = results(tmp_path)["upstream"]
    for name in ("train/loss", "test/acc_curve"):
        assert list(store.history(upstream.run_id, name)) == [30 * part // 7 for part in range(1, 8)]


def test_nothing_inherited_is_the_baseline_whatever_task_1_is(tmp_path: Path) -> None:
    """transfer=none trains no upstream, gains nothing, and its run is found again under another task 1."""
    first = results(tmp_path, "transfer=none")
    second = results(tmp_path, "transfer=none", "task.upstream.num_samples=999")
    assert set(first) == {"baseline", "downstream"}
    assert first["downstream"].metrics["test/gain"] == 0
    assert torch.equal(first["downstream"].state["filters"], first["baseline"].state["filters"])
    assert second["downstream"].run_id == first["downstream"].run_id
