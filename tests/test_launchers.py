"""Sweeps whose jobs run elsewhere: in a real SLURM of one node, and in joblib's processes."""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import joblib
import pandas as pd
import pytest
from image_files import write_folder
from slurm_cluster import cancel_jobs, slurm_cluster, why_not

TESTS = Path(__file__).parent
IMAGES = [
    *("task=class_split", "dataset=image_folder", "task.ratio=1", "task.batch_size=8", "task.upstream.epochs=2"),
    *("task.downstream.epochs=2", "model=network_pair", "model.upstream.name=test_resnet", "optim=sgd"),
    *("model.downstream.name=test_resnet", "optim.lr=0.01", "trainer.accelerator=cpu", "trainer.progress=false"),
]
REQUIRED = "PARAMTRANSFER_REQUIRE_SLURM"  # where it is set, tests without SLURM fail

Fixture = Callable[..., Any]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables of a cluster with six cores, however many this machine has."""
    if reason := why_not():
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), cpus=6) as variables:
        yield variables


@pytest.fixture
def slurm(cluster: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same, without a test's jobs after it."""
    yield cluster
    cancel_jobs(cluster)


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A configuration folder with `model=own`: networks that say how many threads they have."""
    (tmp_path / "own_model.py").write_text(
        "import torch\n"
        "from paramtransfer.model.two_layer_cnn import TwoLayerCNNs\n\n\n"
        "class Networks(TwoLayerCNNs):\n"
        "    def build(self, data):\n"
        "        print(f'{torch.get_num_threads()} threads')\n"
        "        return super().build(data)\n"
    )
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "own.yaml").write_text("defaults: [two_layer_cnn]\n_target_: own_model.Networks\n")
    return tmp_path / "conf"


def _path(*folders: Path) -> str:
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH")]))


def _output(folder: Path, stream: str = "out") -> str:
    """What the jobs of a SLURM sweep printed."""
    return "".join(path.read_text() for path in folder.glob(f"mlruns/hydra/*/*/.submitit/*/*_log.{stream}"))


def _has_points(folder: Path) -> bool:
    """Whether a training has begun to log."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/mlruns/mlflow.db?mode=ro", uri=True, timeout=20)) as connection:
            return bool(connection.execute("SELECT 1 FROM metrics WHERE key = 'train/loss' LIMIT 1").fetchall())
    except sqlite3.OperationalError:  # no file or no table yet
        return False


def _sweep_jobs(runs: dict[str, list[Any]]) -> Any:
    """How the jobs of the only sweep ended."""
    return json.loads((Path(urlsplit(runs["sweep"][0].info.artifact_uri).path) / "jobs.json").read_text())


def _sweep(runs: dict[str, list[Any]]) -> tuple[Any, list[dict[str, Any]], pd.DataFrame]:
    """The run of the only sweep, its jobs and its table."""
    (run,) = runs["sweep"]
    folder = Path(urlsplit(run.info.artifact_uri).path)
    return run, json.loads((folder / "jobs.json").read_text()), pd.read_csv(folder / "table.csv")


def _numbers(runs: dict[str, list[Any]]) -> dict[str, int]:
    return {stage: len(runs[stage]) for stage in runs}


def test_six_slurm_jobs(
    slurm: dict[str, str], own_model: Path, tmp_path: Path, start: Fixture, runs_of: Fixture
) -> None:
    """Six jobs share one upstream and baseline; one is killed, one refused: the others go on, the table is right.

    The launcher gives up as soon as it sees the killed one; the sweep waits for the rest.
    """
    alphas = [0, 0.25, 0.5, 0.75, 1, 2]
    command = ["--config-dir", str(own_model), "-m", f"alpha={','.join(map(str, alphas))}", "model=own"]
    command += [
        "solver=gram",
        "solver._target_=shared_jobs.GatedSolver",
        "hydra/launcher=slurm",
        "hydra.launcher.cpus_per_task=1",
    ]
    gate = tmp_path / "gate"
    variables = {**slurm, "PYTHONPATH": _path(tmp_path, TESTS), "OMP_NUM_THREADS": None, "TEST_GATE": str(gate)}

    def first_has_begun() -> bool:
        return any(run.data.params.get("alpha") == "0" for run in runs_of(tmp_path).get("downstream", []))

    with start(tmp_path, *command, **variables) as process:
        try:
            _until(lambda: any(tmp_path.glob("mlruns/hydra/*/*/.submitit/*")), process)
            _until(first_has_begun, process)
            states = subprocess.check_output(["sacct"], env={**os.environ, **slurm}, text=True)
            (first,) = re.findall(r"^(\d+_0)\|RUNNING", states, re.MULTILINE)
            subprocess.check_call(["scancel", "--signal=KILL", "--full", first], env={**os.environ, **slurm})
            assert any("Waiting for jobs 0, 1, " in line for line in process.stdout)
            gate.touch()
            stdout, stderr = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "Table, figure and report.html" in stdout, stderr

    runs = runs_of(tmp_path)
    for stage in ("upstream", "baseline"):
        # The killed job may have been the one that trained it.
        assert [run.info.status for run in runs[stage]] in (["FINISHED"], ["KILLED", "FINISHED"])
    assert [run.info.status for run in runs["downstream"]].count("FINISHED") == len(runs["downstream"]) - 1 == 4
    sweep, jobs, table = _sweep(runs)
    assert sweep.info.status == "FAILED"
    assert [job["overrides"]["alpha"] for job in jobs] == alphas
    killed, *others, refused = [job["error"] for job in jobs]
    assert "died" in killed
    assert others == [None] * 4
    assert refused == "alpha=2: must be a number from 0 to 1"
    assert table["alpha"].tolist() == alphas[1:-1]
    assert (Path(urlsplit(sweep.info.artifact_uri).path) / "figure.png").exists()
    for error in (killed, refused):
        assert any("failed" in line and error in line for line in stdout.splitlines())
    assert set(re.findall(r"\d+ threads", _output(tmp_path))) == {"1 threads"}


def test_preempted_job_goes_on(
    slurm: dict[str, str], tmp_path: Path, start: Fixture, runs_of: Fixture, client_of: Fixture
) -> None:
    """After submitit's signal and after SLURM's own requeue, in the same run, without missing or repeating a point."""
    command = ["-m", "alpha=0.5", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
    command += ["solver=gram", "solver._target_=shared_jobs.SlowSolver", "trainer.checkpoint_minutes=60"]
    command += ["hydra.launcher.setup=['export DB_PASSWORD=hunter-2']"]
    more = ["task.upstream.steps=1000", "task.curve_points=1000"]
    gate, goes_on = tmp_path / "gate", "goes on where it was interrupted"
    variables = {**slurm, "PYTHONPATH": _path(TESTS), "TEST_GATE": str(gate)}

    def slurm_says(*arguments: str) -> str:
        return subprocess.check_output(arguments, env={**os.environ, **slurm}, text=True)

    def num_points() -> int:
        runs = runs_of(tmp_path).get("upstream", [])
        return len(client_of(tmp_path).get_metric_history(runs[0].info.run_id, "train/loss")) if runs else 0

    with start(tmp_path, *command, more=more, **variables) as process:
        try:
            _until(lambda: any(tmp_path.glob("mlruns/hydra/*/*/.submitit/*")), process)
            _until(lambda: num_points() > 0, process)
            (job,) = re.findall(r"^(\d+)\|RUNNING", slurm_says("sacct"), re.MULTILINE)
            for number, interrupt in enumerate((["scancel", "--signal=USR2"], ["scontrol", "requeue"]), start=1):
                slurm_says(*interrupt, job)
                _until(lambda: f"{job}|PENDING" in slurm_says("sacct"), process)
                (record,) = (
                    json.loads(path.read_text()) for path in tmp_path.glob("mlruns/artifacts/*/artifacts/jobs/*")
                )
                assert (record["preempted"], record["error"], record["runs"]) == (True, None, {})
                slurm_says("scontrol", "update", f"JobId={job}", "StartTime=now")  # not in two minutes
                _until(lambda number=number: _output(tmp_path).count(goes_on) == number, process)
                before = num_points()
                _until(lambda before=before: num_points() > before, process)
            gate.touch()
            _, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0, stderr
    runs = runs_of(tmp_path)
    (upstream,) = runs["upstream"]
    assert {runs[stage][-1].info.status for stage in runs} == {"FINISHED"}
    points = client_of(tmp_path).get_metric_history(upstream.info.run_id, "train/loss")
    assert [point.step for point in points] == list(range(1, 1001))
    assert [job["error"] for job in _sweep(runs)[1]] == [None]
    told = [path for path in tmp_path.glob("mlruns/**/*") if path.is_file() and b"hunter-2" in path.read_bytes()]
    assert all(".submitit" in path.parts for path in told)
    assert {path.suffix for path in told} <= {".sh", ".pkl"}  # what SLURM itself is given


def test_job_that_reaches_its_time_limit(
    slurm: dict[str, str], tmp_path: Path, start: Fixture, runs_of: Fixture
) -> None:
    """Once too often: it says so, and its runs are KILLED, with a checkpoint that the next job goes on from."""
    command = ["-m", "alpha=0.5", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
    command += ["hydra.launcher.timeout_min=5", "hydra.launcher.max_num_timeout=0"]  # submitit: so short, so soon
    command += ["solver=gram", "solver._target_=shared_jobs.SlowSolver", "trainer.checkpoint_minutes=60"]
    more = ["task.upstream.steps=1000", "task.curve_points=1000"]
    variables = {**slurm, "PYTHONPATH": _path(TESTS), "TEST_GATE": str(tmp_path / "gate")}
    with start(tmp_path, *command, more=more, **variables) as process:
        try:
            _until(lambda: _has_points(tmp_path), process)
            states = subprocess.check_output(["sacct"], env={**os.environ, **slurm}, text=True)
            (job,) = re.findall(r"^(\d+)\|RUNNING", states, re.MULTILINE)
            subprocess.check_call(["scancel", "--signal=USR2", job], env={**os.environ, **slurm})
            _, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "Traceback" not in stderr
    assert "not handed to SLURM" not in stderr
    runs = runs_of(tmp_path)
    assert {run.info.status for stage in ("upstream", "baseline", "downstream") for run in runs[stage]} == {"KILLED"}
    (upstream,) = runs["upstream"]
    assert list(tmp_path.glob(f"mlruns/checkpoints/{upstream.info.run_id}/*.ckpt"))
    (record,) = _sweep_jobs(runs)
    assert "time" in record["error"]


def test_preemption_reaches_every_process(slurm: dict[str, str], tmp_path: Path, start: Fixture) -> None:
    """Ranks and image workers leave the signal to the job, which is started again."""
    root = write_folder(tmp_path / "photos", train=14, test=4)
    command = ["-m", "seed=0", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=2", *IMAGES]
    command += [f"dataset.root={root}", "trainer=ddp", "trainer.accelerator=cpu", "task.upstream.epochs=100000"]
    command += ["dataset.in_memory=false", "dataset.num_workers=1"]
    variables = {**slurm, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with start(tmp_path, *command, tiny=[], **variables) as process:
        try:
            _until(lambda: _has_points(tmp_path), process)
            states = subprocess.check_output(["sacct"], env={**os.environ, **slurm}, text=True)
            (job,) = re.findall(r"^(\d+)\|RUNNING", states, re.MULTILINE)
            subprocess.check_call(["scancel", "--signal=USR2", job], env={**os.environ, **slurm})

            def is_requeued() -> bool:
                return f"{job}|PENDING" in subprocess.check_output(["sacct"], env={**os.environ, **slurm}, text=True)

            _until(is_requeued, process)
        finally:
            process.kill()
    assert "requeue" in _output(tmp_path, "err").lower()


def test_one_task_for_each_rank(slurm: dict[str, str], tmp_path: Path, runs_of: Fixture) -> None:
    """srun's tasks are the ranks of one job: none starts others, and there is one run for each stage."""
    root = write_folder(tmp_path / "photos", train=14, test=4)
    command = ["srun", "--ntasks-per-node=2", "--kill-on-bad-exit", sys.executable, str(TESTS.parent / "train.py")]
    process = subprocess.run(
        [*command, *IMAGES, f"dataset.root={root}", "trainer=ddp"],
        cwd=tmp_path,
        env={**os.environ, **slurm, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    runs = runs_of(tmp_path)
    assert _numbers(runs) == {"upstream": 1, "baseline": 1, "downstream": 1}
    assert {runs[stage][0].info.status for stage in runs} == {"FINISHED"}
    assert process.stdout.count("Done in") == 1


def test_sqlite_store_of_another_machine_is_refused(slurm: dict[str, str], tmp_path: Path, train: Fixture) -> None:
    """A job on another machine than the one that started the sweep is refused where the store is a SQLite file."""
    submitting = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    process = train(
        tmp_path, "-m", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", prefix=submitting, **slurm
    )
    assert process.returncode == 1
    for text in ("mlflow.db", "elsewhere", socket.gethostname(), "http://HOST:PORT"):
        assert text in process.stderr
    assert "Traceback" not in process.stderr


def test_joblib_sweep_again(
    own_model: Path, tmp_path: Path, train: Fixture, runs_of: Fixture, client_of: Fixture
) -> None:
    """Jobs side by side share a stage and the cores; the same command again does only what is missing."""
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = ["--config-dir", str(own_model), "-m", "alpha=0,1", "model=own", *launcher]
    variables = {"PYTHONPATH": _path(tmp_path), "OMP_NUM_THREADS": None}
    first = train(tmp_path, *command, **variables)
    assert first.returncode == 0, first.stderr
    runs = runs_of(tmp_path)
    assert _numbers(runs) == {"upstream": 1, "baseline": 1, "downstream": 2, "sweep": 1}
    threads = max(joblib.cpu_count() // 2, 1)
    assert set(re.findall(r"\d+ threads", first.stdout)) == {f"{threads} threads"}
    assert _sweep(runs)[2]["alpha"].tolist() == [0, 1]

    client_of(tmp_path).set_terminated(runs["downstream"][1].info.run_id, "KILLED")
    again = train(tmp_path, *command, **variables)
    assert again.returncode == 0, again.stderr
    assert _numbers(runs_of(tmp_path)) == {"upstream": 1, "baseline": 1, "downstream": 3, "sweep": 2}


def _until(is_true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not is_true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
