"""`python train.py` from outside: what a job and a sweep leave, what is refused, and what a user can add."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
import torch
from image_files import is_for_images
from omegaconf import OmegaConf

from paramtransfer.errors import ConfigError

REPO = Path(__file__).parents[1]
CONF = REPO / "conf"
FOLDERS = [path for path in sorted(CONF.iterdir()) if path.is_dir() and path.name != "hydra"]
FILES = [file for folder in FOLDERS for file in sorted(folder.glob("*.yaml"))]
OPTIONS = [f"{file.parent.name}={file.stem}" for file in FILES if not is_for_images(file)]
STAGES = {"upstream", "baseline", "downstream"}

Fixture = Callable[..., Any]


def _folder(run: Any) -> Path:
    """Where the artifacts of a run lie."""
    return Path(urlsplit(run.info.artifact_uri).path)


def _ids(runs: dict[str, list[Any]]) -> dict[str, set[str]]:
    return {stage: {run.info.run_id for run in runs[stage]} for stage in runs}


def _new(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> dict[str, int]:
    """How many runs of each stage came in between."""
    return {stage: len(after[stage]) - len(before[stage]) for stage in after}


# A job, and the same job again.


@pytest.fixture(scope="module")
def history(
    tmp_path_factory: pytest.TempPathFactory, train: Fixture, run_here: Fixture, runs_of: Fixture, client_of: Fixture
) -> Any:
    """One command four times: first, again, after two of its runs were spoiled, and with reuse=false."""
    folder = tmp_path_factory.mktemp("history")
    git = subprocess.run(["git", "-C", str(REPO), "rev-parse", "HEAD"], capture_output=True, text=True)
    first, runs = train(folder), runs_of(folder)
    curves = {
        (stage, name): client_of(folder).get_metric_history(runs[stage][0].info.run_id, name)
        for stage in runs
        for name in ("train/loss", "test/acc_curve", "test/acc")
    }
    artifacts = {stage: {path.name for path in _folder(runs[stage][0]).iterdir()} for stage in runs}
    again, runs_again = run_here(folder), runs_of(folder)

    result = _folder(runs["upstream"][0]) / "result.pt"
    result.write_bytes(result.read_bytes()[: result.stat().st_size // 2])
    client_of(folder).set_terminated(runs["baseline"][0].info.run_id, "KILLED")
    spoiled, runs_spoiled = run_here(folder), runs_of(folder)
    anew, runs_anew = run_here(folder, "reuse=false"), runs_of(folder)
    processes = SimpleNamespace(first=first, again=again, spoiled=spoiled, anew=anew)
    later = SimpleNamespace(again=runs_again, spoiled=runs_spoiled, anew=runs_anew)
    left = {"runs": runs, "curves": curves, "artifacts": artifacts, "commit": git.stdout or "unknown\n"}
    return SimpleNamespace(processes=processes, later=later, **left)


def test_job_leaves_one_run_per_stage(history: Any) -> None:
    """A job is three finished runs side by side, and its downstream names the other two."""
    assert history.processes.first.returncode == 0, history.processes.first.stderr
    assert {stage: len(runs) for stage, runs in history.runs.items()} == dict.fromkeys(STAGES, 1)
    upstream, baseline, downstream = (history.runs[stage][0] for stage in ("upstream", "baseline", "downstream"))
    for run in (upstream, baseline, downstream):
        assert run.info.status == "FINISHED"
        assert "mlflow.parentRunId" not in run.data.tags
        assert run.data.tags["fingerprint"]
    assert downstream.data.tags["upstream_run_id"] == upstream.info.run_id
    assert downstream.data.tags["baseline_run_id"] == baseline.info.run_id


def test_job_logs_metrics(history: Any) -> None:
    """Every stage has its loss, its test accuracy with its error, its time and its curves; the downstream the gain."""
    for stage in STAGES:
        metrics = history.runs[stage][0].data.metrics
        assert {"train/loss", "test/acc", "test/acc_sem", "time/train"} <= metrics.keys()
        assert any(name.startswith("theory/") for name in metrics)
        assert len(history.curves[stage, "test/acc"]) == 1
        steps = range(1, 21 if stage == "upstream" else 11)
        for name in ("train/loss", "test/acc_curve"):
            assert {point.step for point in history.curves[stage, name]} >= set(steps)
    downstream, baseline = (history.runs[stage][0].data.metrics for stage in ("downstream", "baseline"))
    assert downstream["test/acc_without_transfer"] == baseline["test/acc"]
    assert downstream["test/gain"] == pytest.approx(downstream["test/acc"] - baseline["test/acc"])
    assert downstream["test/gain_sem"] >= 0


def test_job_logs_the_parameters_of_each_stage(history: Any) -> None:
    """A run's parameters are the dotted keys that its stage depends on, and no others."""
    upstream, baseline, downstream = (
        history.runs[stage][0].data.params for stage in ("upstream", "baseline", "downstream")
    )
    assert downstream["alpha"] == "0.5"
    assert "alpha" not in upstream
    assert "alpha" not in baseline
    assert upstream["task.upstream.num_samples"] == downstream["task.upstream.num_samples"] == "30"
    assert not any(key.startswith("task.upstream.") for key in baseline)
    assert not any(key.startswith("task.downstream.") for key in upstream)
    assert {"seed", "replicates", "dataset.dim", "optim.lr", "model.filters"} <= upstream.keys() & baseline.keys()


def test_job_leaves_artifacts(history: Any) -> None:
    """Each run keeps its configuration, its code's origin and its weights; the downstream what it inherited, too."""
    every = {"config.yaml", "identity.json", "git_commit.txt", "git_diff.patch", "package_versions.txt", "result.pt"}
    assert history.artifacts["upstream"] == history.artifacts["baseline"] == every
    assert history.artifacts["downstream"] == every | {"theory.txt", "transfer.json"}

    folder = _folder(history.runs["downstream"][0])
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))["transfer"]["alpha"] == 0.5
    assert (folder / "git_commit.txt").read_text() == history.commit
    assert re.search(r"^torch==\S+$", (folder / "package_versions.txt").read_text(), re.MULTILINE)
    assert torch.load(folder / "result.pt", weights_only=True)["state"]["filters"].shape[:3] == (2, 2, 4)
    report = json.loads((folder / "transfer.json").read_text())
    assert [(row["target"], row["filters"], row["of_filters"]) for row in report["tensors"]] == [("filters", 2, 4)]


def test_job_prints_its_result(history: Any) -> None:
    """A job ends with a table with errors and n, the theory's verdict and how to go on."""
    for text in (
        "without transfer",
        "with transfer",
        "gain",
        "n = 2 replicates × 50",
        "Theorem 4.2",
        "Condition 4.1",
        "make ui",
    ):
        assert text in history.processes.first.stdout
    gain = history.runs["downstream"][0].data.metrics["test/gain"]
    assert f"{gain:+.4f}" in history.processes.first.stdout


def test_same_job_again_creates_no_run(history: Any) -> None:
    """The same command again finds all three runs and prints the same numbers."""
    assert history.processes.again.returncode == 0, history.processes.again.stderr
    assert _ids(history.later.again) == _ids(history.runs)
    numbers = r"[-+]?\d\.\d{4}"
    assert re.findall(numbers, history.processes.again.stdout) == re.findall(numbers, history.processes.first.stdout)


def test_unusable_runs_are_trained_again(history: Any) -> None:
    """Neither a run that did not finish nor one with half its weights is reused, and a line says why of each."""
    assert history.processes.spoiled.returncode == 0, history.processes.spoiled.stderr
    assert _new(history.later.again, history.later.spoiled) == {"upstream": 1, "baseline": 1, "downstream": 0}
    lines = (history.processes.spoiled.stdout + history.processes.spoiled.stderr).splitlines()
    upstream, baseline = (history.runs[stage][0].info.run_id for stage in ("upstream", "baseline"))
    assert [line for line in lines if upstream in line and "cannot be read" in line]
    assert [line for line in lines if baseline in line and "KILLED" in line]


def test_reuse_false_trains_anew(history: Any) -> None:
    """With reuse=false all three stages are trained again, to the same result."""
    assert history.processes.anew.returncode == 0, history.processes.anew.stderr
    assert _new(history.later.spoiled, history.later.anew) == dict.fromkeys(STAGES, 1)
    first, last = (history.later.anew["downstream"][position].data.metrics for position in (0, -1))
    assert last["test/acc"] == first["test/acc"]


# Sweeps.


def test_sweep(tmp_path: Path, run_here: Fixture, runs_of: Fixture) -> None:
    """A sweep over alpha trains one upstream and one baseline; its own run holds table, figure and the list of jobs."""
    process = run_here(tmp_path, "-m", "alpha=0.25,0.5,0.75")
    assert process.returncode == 0, process.stderr
    runs = runs_of(tmp_path)
    numbers = {stage: len(runs[stage]) for stage in runs}
    assert numbers == {"upstream": 1, "baseline": 1, "downstream": 3, "sweep": 1}
    assert all(run.info.status == "FINISHED" for stage in runs for run in runs[stage])

    (sweep,) = runs["sweep"]
    for stage in STAGES:
        for run in runs[stage]:
            assert f"sweep.{sweep.info.run_id}" in run.data.tags
    folder = _folder(sweep)
    jobs = json.loads((folder / "jobs.json").read_text())
    assert [job["overrides"]["alpha"] for job in jobs] == [0.25, 0.5, 0.75]
    downstreams = {run.info.run_id: run for run in runs["downstream"]}
    table = pd.read_csv(folder / "table.csv")
    assert table["alpha"].tolist() == [0.25, 0.5, 0.75]
    for job, accuracy in zip(jobs, table["test/acc"], strict=True):
        assert job["runs"].keys() == STAGES
        run = downstreams.pop(job["runs"]["downstream"])
        assert run.data.params["alpha"] == str(job["overrides"]["alpha"])
        assert run.data.metrics["test/acc"] == accuracy
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_sweep_survives_a_failing_job(tmp_path: Path, run_here: Fixture, runs_of: Fixture) -> None:
    """A refused job ends a sweep with exit code 1, but the others run, and table and job list say why it failed."""
    process = run_here(tmp_path, "-m", "alpha=2,0.5")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    runs = runs_of(tmp_path)
    assert [run.info.status for run in runs["downstream"]] == ["FINISHED"]
    assert runs["sweep"][0].info.status == "FAILED"

    sentence = "alpha=2: must be a number from 0 to 1"
    failed, finished = json.loads((_folder(runs["sweep"][0]) / "jobs.json").read_text())
    assert failed["error"] == sentence
    assert finished["runs"]["downstream"] == runs["downstream"][0].info.run_id
    assert any("failed" in line and sentence in line for line in process.stdout.splitlines())


def test_sweep_over_two_keys_and_seeds(tmp_path: Path, run_here: Fixture, runs_of: Fixture) -> None:
    """Seeds are averaged and their n summed, two more keys give a heatmap, all of it in a store of the user's own."""
    uri = f"sqlite:///{tmp_path / 'own' / 'runs.db'}"
    sweep = ("-m", "alpha=0.25,0.75", "task.downstream.noise=1,15", "seed=0,1")
    process = run_here(tmp_path, *sweep, MLFLOW_TRACKING_URI=uri)
    assert process.returncode == 0, process.stderr
    runs = runs_of(uri)
    folder = _folder(runs["sweep"][0])
    assert folder.is_relative_to(tmp_path / "own" / "artifacts")
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()
    assert (folder / "figure.png").exists()

    table = pd.read_csv(folder / "table.csv")
    assert "seed" not in table
    keys = ["alpha", "task.downstream.noise"]
    assert table[keys].apply(tuple, axis=1).tolist() == [(0.25, 1), (0.25, 15), (0.75, 1), (0.75, 15)]
    assert table["n"].tolist() == [4] * 4
    for _, row in table.iterrows():
        same = [run for run in runs["downstream"] if all(float(run.data.params[key]) == row[key] for key in keys)]
        assert len(same) == 2
        assert row["test/acc"] == pytest.approx(sum(run.data.metrics["test/acc"] for run in same) / 2)
        # Four replicates, two in each job: the spread within jobs and between them.
        squares = sum(2 * run.data.metrics["test/acc_sem"] ** 2 for run in same)
        squares += sum(2 * (run.data.metrics["test/acc"] - row["test/acc"]) ** 2 for run in same)
        assert row["test/acc_sem"] == pytest.approx((squares / 3 / 4) ** 0.5)


def test_experiment_is_a_sweep(tmp_path: Path, run_here: Fixture, runs_of: Fixture) -> None:
    """A file of experiment/ is a sweep without -m, and its grid can be changed or fixed on the command line."""
    process = run_here(tmp_path, "experiment=fig1c", "dataset.u_norm=0,3", "alpha=0.5")
    assert process.returncode == 0, process.stderr
    runs = runs_of(tmp_path)
    assert [run.data.params["dataset.u_norm"] for run in runs["downstream"]] == ["0", "3"]
    (sweep,) = runs["sweep"]
    assert sweep.info.status == "FINISHED"
    assert {"table.csv", "jobs.json", "figure.png", "figure.pdf"} <= {path.name for path in _folder(sweep).iterdir()}


def test_plan_only_trains_nothing(tmp_path: Path, run_here: Fixture, runs_of: Fixture) -> None:
    """With plan_only the jobs of a sweep, too, say what would be inherited, and there is no training."""
    process = run_here(tmp_path, "-m", "alpha=0,1", "plan_only=true")
    assert process.returncode == 0, process.stderr
    for text in ("0 of 4 filters inherited", "4 of 4 filters inherited"):
        assert text in process.stdout
    assert not runs_of(tmp_path).keys() & STAGES


# What is refused.


@pytest.mark.parametrize(
    "override",
    [
        *("alpha=-0.1", "alpha=1.5", "alpha=nan", "alpha=abc", "alpha=null"),
        *("seed=-1", "seed=1.5", "replicates=0", "scale=huge", "reuse=maybe"),
        *("dataset.dim=3", "dataset.u_norm=4", "dataset.u_norm=-1", "dataset.u_norm=null", "dataset.v1_norm=-1"),
        *("dataset.v2_norm=-1", "dataset.signal_norm=-1", "dataset.noise_scale=foo", "dataset.coordinates=foo"),
        *("task.upstream.num_samples=0", "task.upstream.noise=-1", "task.downstream.steps=0", "task.num_test=0"),
        *("task.training.dynamics=maybe", "figure=foo", "dry_run=maybe"),
        *("model.filters=0", "model.init_std=0", "optim.lr=0", "optim.lr=inf"),
        *("trainer.accelerator=foo", "trainer.precision=foo", "trainer.progress=maybe"),
    ],
)
def test_wrong_value_is_refused(override: str, compose_job: Fixture) -> None:
    """A setting that is out of range is refused in one line that names its key and its value."""
    with pytest.raises(ConfigError) as refusal:
        compose_job(override)
    message = str(refusal.value)
    key, value = override.split("=")
    assert key in message
    assert value in message or (value == "null" and f"{key}=" in message)
    assert "\n" not in message


def test_unknown_key_is_refused(compose_job: Fixture) -> None:
    """A key that its class does not know is refused in one line, too."""
    with pytest.raises(ConfigError, match=r"^[^\n]*foo[^\n]*$"):
        compose_job("+dataset.foo=1")


def test_dynamics_without_their_solver_are_refused(compose_job: Fixture) -> None:
    """Two settings that exclude each other are refused before there is a job, too."""
    with pytest.raises(ConfigError, match="dynamics=true"):
        compose_job("task.training.dynamics=true", "solver=autograd")


def test_norms_given_one_by_one_need_no_signal_norm(compose_job: Fixture) -> None:
    """The norm that others are derived from has no say, and no bound, where nothing is derived."""
    norms = ("dataset.v1_norm=1", "dataset.v2_norm=2")
    for override in ("dataset.u_norm=4", "dataset.signal_norm=null"):
        tasks = compose_job(override, *norms).tasks
        assert tasks.dataset.v_norm == {"upstream": 1, "downstream": 2}


def test_refusal_is_one_sentence_and_leaves_nothing(tmp_path: Path, run_here: Fixture) -> None:
    """A refused command ends with exit code 1, one line on stderr and no store."""
    process = run_here(tmp_path, "alpha=2")
    assert process.returncode == 1
    assert process.stderr == "alpha=2: must be a number from 0 to 1\n"
    assert process.stdout == ""
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()


def test_unknown_option_names_the_options(tmp_path: Path, run_here: Fixture) -> None:
    """An option that does not exist ends with exit code 1 and the list of those that do."""
    process = run_here(tmp_path, "solver=foo")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    for word in ("solver=foo", "autograd", "gram"):
        assert word in process.stderr


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]])
def test_help_imports_nothing_heavy(flags: list[str], tmp_path: Path) -> None:
    """Help and the configuration are shown without importing torch, Lightning or MLflow."""
    command = [sys.executable, "-X", "importtime", str(REPO / "train.py"), *flags]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert "alpha: 0.5" in process.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in process.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "torchvision", "pytorch_lightning", "mlflow", "matplotlib", "pandas"}


# What ships, and what a user adds.


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_makes_a_job(option: str, compose_job: Fixture) -> None:
    """Every option on disk makes a job, in both sizes and at both ends of its sweep; a missing device is named."""
    if option == "trainer=gpu" and not torch.accelerator.is_available():
        with pytest.raises(ConfigError, match=r"trainer\.accelerator=gpu"):
            compose_job(option)
        return
    group, _, name = option.partition("=")
    content = OmegaConf.load(CONF / group / f"{name}.yaml")
    swept = OmegaConf.select(content, "hydra.sweeper.params") if "grid" in content else {}
    grid = OmegaConf.to_container(content.grid) if swept else {"small": {}}
    for scale in grid:
        for end in (0, -1):
            ends = [
                f"{key}={str(OmegaConf.select(content, f'grid.{scale}.{where}')).split(',')[end]}"
                for key, where in _grid_keys(swept).items()
            ]
            job = compose_job(option, f"scale={scale}", *ends)
            assert job.stages.keys() >= {"baseline", "downstream"}


def _grid_keys(swept: Any) -> dict[str, str]:
    """The swept keys, and where in the grid their values stand."""
    texts = OmegaConf.to_container(swept, resolve=False) if swept else {}
    return {key: text.removeprefix("${grid.${scale}.").removesuffix("}") for key, text in texts.items()}


OWN_PARTS = '''
"""A user's own dataset, model and solver."""

import numpy as np

from paramtransfer.dataset.signal_noise import SignalNoise
from paramtransfer.model.two_layer_cnn import TwoLayerCNNs
from paramtransfer.training.solver import AutogradSolver


class Laplace(SignalNoise):
    """Noise of variance 1 with heavier tails."""

    def standard_noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        print("Laplace noise")
        return rng.laplace(scale=0.5**0.5, size=shape)


class Networks(TwoLayerCNNs):
    def build(self, data):
        print("own networks")
        return super().build(data)


class Descent(AutogradSolver):
    def advance(self, num_steps):
        print("own descent")
        super().advance(num_steps)
'''

OWN_RULE = '''
"""A user's own transfer rule."""

import torch

from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.plan import plan_filters
from paramtransfer.transfer.rules import TransferRule


class Last(TransferRule):
    """The last filter of each sign."""

    label = "the last filter"

    def __init__(self, *, alpha):
        self.alpha = alpha

    def __call__(self, upstream, downstream, *, seed):
        def select(axis, size, source_size):
            chosen = torch.arange(size)[-1:] if axis else torch.arange(size)
            return chosen, chosen

        plan = plan_filters(upstream, downstream)
        return inherit(plan, upstream.state_dict(), downstream.state_dict(), select)
'''

OWN_CONFIG = {
    "dataset/laplace.yaml": "defaults: [signal_noise]\n_target_: own_parts.Laplace\ncoordinates: ambient\n",
    "model/own.yaml": "defaults: [two_layer_cnn]\n_target_: own_parts.Networks\n",
    "solver/own.yaml": "_target_: own_parts.Descent\n_partial_: true\n",
    "transfer/last.yaml": "_target_: own_rule.Last\nalpha: ${alpha}\n",
}


def _write_own(folder: Path, old: str = "", new: str = "") -> Path:
    """A folder with a user's own code, some text of it replaced, and configuration below it."""
    configuration = {f"own_conf/{name}": text for name, text in OWN_CONFIG.items()}
    for name, text in {"own_parts.py": OWN_PARTS, "own_rule.py": OWN_RULE, **configuration}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(old, new) if old else text)
    return folder


@pytest.fixture
def compose_own(compose_job: Fixture, monkeypatch: pytest.MonkeyPatch) -> Fixture:
    """The job that a command line with the user's parts in one folder describes, made in this process."""

    def compose_own(folder: Path, *overrides: str) -> Any:
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            try:
                return compose_job(f"hydra.searchpath=[file://{folder / 'own_conf'}]", *overrides)
            finally:
                for name in ("own_parts", "own_rule"):
                    sys.modules.pop(name, None)

    return compose_own


def test_own_parts_are_used(tmp_path: Path, train: Fixture, runs_of: Fixture) -> None:
    """A dataset, model, solver and transfer rule of the user's run with a YAML file each and --config-dir."""
    _write_own(tmp_path)
    chosen = ("dataset=laplace", "model=own", "solver=own", "transfer=last")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    process = train(tmp_path, "--config-dir", "own_conf", *chosen, PYTHONPATH=path)
    assert process.returncode == 0, process.stderr
    for text in ("Laplace noise", "own networks", "own descent"):
        assert text in process.stdout
    (downstream,) = runs_of(tmp_path)["downstream"]
    assert downstream.data.params["transfer._target_"] == "own_rule.Last"
    assert downstream.data.params["dataset._target_"] == "own_parts.Laplace"
    report = json.loads((_folder(downstream) / "transfer.json").read_text())
    assert [(row["target"], row["filters"], row["of_filters"]) for row in report["tensors"]] == [("filters", 1, 4)]


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ('"""Noise of variance 1 with heavier tails."""', '"""Noise."""  # of variance 1', set()),
        ("[-1:]", "[-2:]", {"downstream"}),
        ("0.5**0.5", "0.25", STAGES),
    ],
    ids=["docstring", "rule", "dataset"],
)
def test_own_code_is_part_of_the_fingerprint(
    old: str, new: str, changed: set[str], tmp_path: Path, compose_own: Fixture
) -> None:
    """A changed line of the user's code changes the stages that use it, a changed docstring or comment none."""
    assert old in OWN_PARTS + OWN_RULE
    before, after = (
        compose_own(folder, "dataset=laplace", "transfer=last").stages
        for folder in (_write_own(tmp_path / "before"), _write_own(tmp_path / "after", old, new))
    )
    assert {stage for stage in STAGES if before[stage].fingerprint != after[stage].fingerprint} == changed


def test_own_noise_needs_ambient_coordinates(tmp_path: Path, compose_own: Fixture) -> None:
    """Noise that is not Gaussian is refused in the coordinates that exist for Gaussian noise only."""
    with pytest.raises(ConfigError, match=r"dataset\.coordinates=reduced: must be ambient for Laplace"):
        compose_own(_write_own(tmp_path), "dataset=laplace", "dataset.coordinates=reduced")
