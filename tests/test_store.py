"""The store: what identifies a run, how it ends whatever happens, and stores that are shared, remote or broken."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from image_files import write_folder
from mlflow_server import free_port

from paramtransfer.errors import StoreError
from paramtransfer.experiment.identity import code_hash, contents, identify
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.store import Store

REPO = Path(__file__).parents[1]
IMAGES = [
    *("model=network_pair", "model.upstream.name=test_resnet", "model.downstream.name=test_resnet", "optim=sgd"),
    *("optim.lr=0.01", "trainer=cpu", "task.batch_size=8", "task.upstream.epochs=1", "task.downstream.epochs=1"),
]
STAGES = {"upstream", "baseline", "downstream"}

Fixture = Callable[..., Any]


def _statuses(runs: dict[str, list[Any]]) -> dict[str, list[str]]:
    return {stage: [run.info.status for run in runs[stage]] for stage in runs}


# How runs end.


def _wait_for(folder: Path, query: str, process: "subprocess.Popen[str]") -> int:
    """Wait until a query of a job's default store counts something, and return the count."""
    for _ in range(6000):
        try:
            with closing(sqlite3.connect(f"file:{folder}/mlruns/mlflow.db?mode=ro", uri=True)) as connection:
                (count,) = connection.execute(query).fetchone()
        except sqlite3.OperationalError:  # no file, no table, or being written
            count = 0
        if count:
            return int(count)
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"never true: {query}")


@pytest.mark.parametrize(
    ("number", "arguments", "moment"),
    [
        pytest.param(signal.SIGTERM, [], "metrics WHERE key = 'train/loss'", id="SIGTERM in training"),
        pytest.param(signal.SIGINT, ["-m", "alpha=0,1"], "metrics WHERE key = 'train/loss'", id="SIGINT in a sweep"),
        pytest.param(signal.SIGTERM, [], "runs", id="SIGTERM at the first run's creation"),
    ],
)
def test_interrupted_job_leaves_its_runs_killed(
    number: signal.Signals,
    arguments: list[str],
    moment: str,
    tmp_path: Path,
    start: Fixture,
    runs_of: Fixture,
    client_of: Fixture,
) -> None:
    """A job that is told to end marks its runs KILLED, keeps the metrics so far and says one word."""
    endless = ("task.upstream.steps=1000000", "task.curve_points=1000000")
    with start(tmp_path, *arguments, more=endless) as process:
        try:
            count = _wait_for(tmp_path, f"SELECT COUNT(*) FROM {moment}", process)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1, (process.returncode, stderr)
    assert stderr.strip() == ("terminated" if number == signal.SIGTERM else "interrupted")
    runs = runs_of(tmp_path)
    assert [run.info.status for run in runs.pop("sweep", [])] in ([], ["FAILED"], ["KILLED"])
    assert {run.info.status for stage in runs for run in runs[stage]} == {"KILLED"}
    if moment != "runs":
        assert runs.keys() == STAGES
        (upstream,) = runs["upstream"]
        assert len(client_of(tmp_path).get_metric_history(upstream.info.run_id, "train/loss")) >= count
        assert "gain (paired)" not in stdout  # no table of results


def test_diverged_training_leaves_its_runs_failed(tmp_path: Path, train: Fixture, runs_of: Fixture) -> None:
    """A loss that is no number ends a job with a sentence that names the step size; what was not begun is KILLED."""
    process = train(tmp_path, "optim.lr=1e300")
    assert process.returncode == 1
    assert "training diverged" in process.stderr
    assert "Traceback" not in process.stderr
    assert "optim.lr=1e+300" in process.stderr
    runs = runs_of(tmp_path)
    assert _statuses(runs) == {"upstream": ["FAILED"], "baseline": ["KILLED"], "downstream": ["KILLED"]}


# Stores that are broken, shared or remote.


def test_server_that_cannot_be_reached(tmp_path: Path, train: Fixture) -> None:
    """A server that does not answer ends a job soon, in one sentence that names it and hides the password."""
    port = free_port()
    process = train(tmp_path, timeout=90, MLFLOW_TRACKING_URI=f"http://user:secret@127.0.0.1:{port}")
    assert process.returncode == 1
    (sentence,) = process.stderr.strip().splitlines()
    assert f"127.0.0.1:{port}" in sentence
    assert "secret" not in process.stdout + process.stderr


@pytest.mark.parametrize("scheme", ["sqlite:///", "foo://user:secret@"])
def test_store_that_cannot_be_opened(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite file in an impossible place, or no store at all, is named in one sentence."""
    (tmp_path / "file").touch()
    uri = f"{scheme}{tmp_path / 'file' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError) as refusal:
        Store(tmp_path)
    assert uri.replace("secret", "***") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_folder_that_cannot_be_written(tmp_path: Path, train: Fixture) -> None:
    """A folder in which no mlruns/ can be made ends a job in one sentence that names it."""
    (tmp_path / "mlruns").touch()
    process = train(tmp_path, timeout=30)
    assert process.returncode == 1
    (sentence,) = process.stderr.strip().splitlines()
    assert "mlruns" in sentence


def test_deleted_experiment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment that was deleted in the browser takes no runs, and is named before a job starts."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    store = Store(tmp_path)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(StoreError, match=r"paramtransfer.*deleted"):
        Store(tmp_path)


def test_processes_share_a_new_store(tmp_path: Path, start: Fixture, runs_of: Fixture) -> None:
    """Four jobs that start at once where there is no store yet all finish in one."""
    processes = [start(tmp_path, f"seed={seed}") for seed in range(4)]
    for process in processes:
        with process:
            _, stderr = process.communicate(timeout=300)
            assert process.returncode == 0, stderr
    runs = runs_of(tmp_path)
    assert _statuses(runs) == {stage: ["FINISHED"] * 4 for stage in STAGES}


def test_server_over_http(server: str, tmp_path: Path, train: Fixture, runs_of: Fixture) -> None:
    """Runs go to the server and the experiment that the environment names, and are found there again."""
    for _ in range(2):
        process = train(tmp_path, MLFLOW_TRACKING_URI=server, MLFLOW_EXPERIMENT_NAME="own")
        assert process.returncode == 0, process.stderr
        runs = runs_of(server, experiment="own")
        assert _statuses(runs) == {stage: ["FINISHED"] for stage in STAGES}
    assert process.stdout.count("reused") == 3
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()


def test_jobs_in_folders_of_their_own_have_one_store(tmp_path: Path, run_here: Fixture, runs_of: Fixture) -> None:
    """With hydra.job.chdir, the store lies where the sweep was started."""
    process = run_here(tmp_path, "-m", "alpha=0,1", "hydra.job.chdir=true")
    assert process.returncode == 0, process.stderr
    assert [path.parent for path in tmp_path.rglob("mlflow.db")] == [tmp_path / "mlruns"]
    counts = {stage: len(runs) for stage, runs in runs_of(tmp_path).items()}
    assert counts == {"upstream": 1, "baseline": 1, "downstream": 2, "sweep": 1}


def test_slurm_that_is_not_installed(tmp_path: Path, run_here: Fixture) -> None:
    """Is said in one sentence before anything is created."""
    process = run_here(tmp_path, "-m", "alpha=0,1", "hydra/launcher=slurm", PATH=str(tmp_path))
    assert process.returncode == 1
    (sentence,) = process.stderr.strip().splitlines()
    assert "hydra/launcher=slurm: must be used where SLURM is installed" in sentence
    assert not list(tmp_path.rglob("mlflow.db"))


# What identifies a run.


def test_code_hash_sees_code_alone() -> None:
    """Comments, docstrings and layout do not count, a changed line does."""
    plain = "def f(x):\n    return x + 1\n\n\nclass C:\n    y: int = 2\n"
    function = 'def f(x):\n    """F."""\n    # why\n    return (x\n            + 1)\n'
    written = f'"""M."""\n\n{function}class C:\n    """C."""\n    y: int = 2\n    """Y."""\n'
    assert code_hash(written) == code_hash(plain)
    assert code_hash(plain.replace("+ 1", "+ 2")) != code_hash(plain)
    assert code_hash(plain.replace("int = 2", "int = 3")) != code_hash(plain)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("alpha=0.25", {"downstream"}),
        ("task.upstream.num_samples=31", {"upstream", "downstream"}),
        ("task.upstream.steps=21", {"upstream", "downstream"}),
        ("dataset.v1_norm=1", {"upstream", "downstream"}),
        ("task.downstream.noise=2", {"baseline", "downstream"}),
        ("task.downstream.steps=11", {"baseline", "downstream"}),
        ("dataset.v2_norm=1", {"baseline", "downstream"}),
        ("seed=1", STAGES),
        ("replicates=3", STAGES),
        ("dataset.dim=21", STAGES),
        ("optim.lr=0.02", STAGES),
        ("solver=autograd", STAGES),
        ("trainer.precision=64-true", STAGES),
        ("trainer.progress=false", set()),
        ("reuse=false", set()),
        ("scale=full", set()),
    ],
)
def test_fingerprint_holds_what_a_stage_depends_on(override: str, changed: set[str], compose_job: Fixture) -> None:
    """A setting changes the fingerprints of the stages whose result it can change, and no others."""
    before, after = compose_job().stages, compose_job(override).stages
    assert {stage for stage in STAGES if before[stage].fingerprint != after[stage].fingerprint} == changed


EDITS = {
    # A line that is added to a file, and the stages that are trained again.
    "figures/style.py": ("x = 1", set()),
    "tracking/store.py": ("x = 1", set()),
    "trainer/progress.py": ("x = 1", set()),
    "trainer/stage_trainer.py": ("x = 1", {"upstream", "baseline"}),
    "dataset/cifar.py": ("x = 1", set()),
    "theory.py": ("x = 1", set()),  # derived from what is stored
    "statistics.py": ("x = 1", set()),
    "task/synthetic.py": ("# x\nif TYPE_CHECKING:\n    import x", set()),
    "transfer/report.py": ("class X:\n    a: int", {"downstream"}),
    "transfer/report.py ": ("    def __str__(self): return 'x'", set()),
    "transfer/select.py": ("x = 1", {"downstream"}),
    "../mine/too.py": ("x = 1", {"upstream", "downstream"}),
    "../mine/__init__.py": ("x = 1", {"upstream", "downstream"}),
    "training/fit.py": ("x = 1", STAGES),
    "randomness.py": ("x = 1", {"upstream", "baseline", "downstream"}),
    "checks.py": ("x = 1", {"upstream", "baseline", "downstream"}),
}
PROBE = """
import json, sys
from pathlib import Path
import paramtransfer.experiment.identity as identity
from mine.own import Own
from paramtransfer.task.synthetic import SyntheticTasks
from paramtransfer.trainer.stage_trainer import StageTrainer
from paramtransfer.training.fit import fit_and_test
from paramtransfer.transfer.rules import Filters

stages = {"upstream": [Own, StageTrainer], "baseline": [SyntheticTasks, StageTrainer], "downstream": [Own, Filters]}
stages = {stage: [*classes, fit_and_test] for stage, classes in stages.items()}

def fingerprints():
    for cached in (identity._text, identity._code_hash, identity._imports):
        cached.cache_clear()
    return {stage: identity.identify({}, classes).fingerprint for stage, classes in stages.items()}

before = fingerprints()
for file, line in json.load(sys.stdin):
    with Path("paramtransfer", file.strip()).open("a") as opened:
        opened.write(line + "\\n")
    after = fingerprints()
    print(json.dumps([stage for stage in stages if after[stage] != before[stage]]))
    before = after
"""


def test_fingerprint_holds_the_code_that_trains(tmp_path: Path) -> None:
    """What a stage's classes reach by imports is in it, the user's modules too; comments and printing are not."""
    shutil.copytree(REPO / "src" / "paramtransfer", tmp_path / "paramtransfer")
    own = ["from mine.too import SHIFT", "from paramtransfer.dataset.signal_noise import SignalNoise as Own"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text("\n".join([*own, "class Own(Own): ..."]))
    (tmp_path / "mine" / "too.py").write_text("SHIFT = 1\n")
    (tmp_path / "mine" / "__init__.py").touch()
    edits = json.dumps([(file, line) for file, (line, _) in EDITS.items()])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PROBE]
    process = subprocess.run(command, cwd=tmp_path, env=environment, input=edits, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    trained = [set(json.loads(line)) for line in process.stdout.splitlines()]
    assert dict(zip(EDITS, trained, strict=True)) == {file: stages for file, (_, stages) in EDITS.items()}


def test_libraries_are_part_of_it_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this package computes with, and what the user's modules import; those are kept, each under its own name."""
    for package in ("first", "second"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "first" / "own.py").write_text("import yaml.nodes\nfrom second.own import Other\nclass Own: ...\n")
    (tmp_path / "second" / "own.py").write_text("class Other: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    identity = identify({}, [import_module("first.own").Own])
    assert identity.versions.items() >= {
        ("pytorch-lightning", version("pytorch-lightning")),
        ("PyYAML", version("PyYAML")),
    }
    assert identity.own_sources.keys() == {"first.py", "first.own.py", "second.py", "second.own.py"}


def test_files_that_settings_name_are_part_of_it(tmp_path: Path) -> None:
    """What is in a file that a user's class is given counts, not only its name."""
    (tmp_path / "data.csv").write_text("1")
    path = str(tmp_path / "data.csv")
    settings = {"path": path, "other": "no file", "number": 3, "parts": ["no file", path], "by": {"name": path}}
    before = dict(contents(settings))
    assert dict(contents(settings)) == before
    assert before.keys() == {"path.content", "parts.1.content", "by.name.content"}
    (tmp_path / "data.csv").write_text("22")
    after = dict(contents(settings))
    assert not before.items() & after.items()


def test_upstream_of_another_dataset_depends_on_it_alone(tmp_path: Path, compose_job: Fixture) -> None:
    """task=whole: neither on what the target's dataset says, nor on where and how the source is read."""
    numbers = {"target": 14, "source": 15, "moved": 15}
    roots = {name: write_folder(tmp_path / name, train=number, test=4) for name, number in numbers.items()}
    source = "task.upstream.dataset"

    def fingerprint(*overrides: str) -> str:
        more = ["task=whole", "dataset=image_folder", f"+dataset@{source}=image_folder", *IMAGES]
        where = [
            f"dataset.root={roots['target']}",
            f"{source}.root={roots['source']}",
            f"{source}.cache_dir={tmp_path}",
        ]
        job = compose_job(*more, *where, *overrides)
        return str(job.stages["upstream"].fingerprint)

    before = fingerprint()
    of_target = ["dataset.per_class=3", "dataset.mean=[1,2,3]", "dataset.split_seed=4"]
    of_reading = [f"{source}.root={roots['moved']}", f"{source}.num_workers=1", f"{source}.cache_dir={tmp_path}/other"]
    assert {fingerprint(override) for override in (*of_target, *of_reading)} == {before}
    assert fingerprint(f"{source}.per_class=3") != before


def test_a_class_may_be_a_partial(compose_job: Fixture) -> None:
    """The code of what it calls identifies the stage."""
    plain, partial = compose_job("solver=gram"), compose_job("solver=gram", "solver._target_=shared_jobs.PARTIAL")
    assert partial.stages["baseline"].code.keys() >= plain.stages["baseline"].code.keys()


def test_value_that_is_not_plain_is_refused() -> None:
    """Nothing is hashed by what happens to be printed of it."""
    with pytest.raises(
        ValueError, match=r"dataset\.root: must be a plain value to identify a result by, not PosixPath"
    ):
        identify({"dataset": {"root": Path("x")}}, [])


def test_without_a_checkout_the_commit_is_unknown(tmp_path: Path) -> None:
    """A copy of the package that no git checkout holds says that its commit is unknown."""
    shutil.copytree(REPO / "src" / "paramtransfer", tmp_path / "paramtransfer")
    assert _in_copy(tmp_path, "tracking.provenance", "git_commit()", GIT_CEILING_DIRECTORIES=str(tmp_path)) == "unknown"


def _in_copy(folder: Path, module: str, call: str, **environment: str) -> str:
    """What a call returns in a copy of the package."""
    name = call.partition("(")[0]
    code = f"from paramtransfer.{module} import {name}; print({call})"
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_long_parameters_are_cut_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MLflow would warn of each; the run's `identity.json` has them whole."""
    store = Store(tmp_path)
    with Session(store) as session:
        run_id = session.create(name="long", tags={"stage": "baseline"}, params={"classes": "x" * 9000}, files={})
    assert store.run(run_id).params["classes"] == "x" * 6000
    assert not caplog.text
