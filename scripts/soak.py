"""Many jobs and many faults, for real: what is too long for `make test`.

    python scripts/soak.py                      all parts
    python scripts/soak.py --only starts slurm  some of them

Each part works in a folder of its own, prints what it measured, and fails with what it found wrong.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO / "tests"))  # it has the cluster, and jobs in processes that have imported everything
TINY = [
    *("replicates=2", "dataset.dim=20", "model.filters=4", "task.num_test=50", "trainer.progress=false"),
    *("task.upstream.num_samples=30", "task.upstream.steps=20"),
    *("task.downstream.num_samples=10", "task.downstream.steps=10"),
]
NUM_STARTS = 40
NUM_SLURM_JOBS = 100
NUM_RESTARTS = 5


def starts(folder: Path) -> str:
    """The same job, started 40 times at the same moment on one SQLite store: each stage is trained once."""
    from shared_jobs import run_job

    (folder / "gate").touch()
    processes = multiprocessing.get_context("forkserver")  # 40 imports would take minutes, and not start as one
    processes.set_forkserver_preload(["paramtransfer.experiment", "paramtransfer.task.synthetic", "hydra", "mlflow"])
    barrier, answers = processes.Barrier(NUM_STARTS), processes.Queue()
    started = [
        processes.Process(target=run_job, args=(TINY, folder, None, barrier, answers)) for _ in range(NUM_STARTS)
    ]
    for process in started:
        process.start()
    ends = [answers.get(timeout=600) for _ in started]
    errors = [str(end) for end in ends if isinstance(end, Exception)]
    _expect(errors, [])
    _expect(_runs(folder), {f"{stage} FINISHED": 1 for stage in ("upstream", "baseline", "downstream")})
    _expect(len({json.dumps({stage: end[stage][0] for stage in end}) for end in ends}), 1)
    return f"{NUM_STARTS} starts, one training of each stage"


def slurm(folder: Path) -> str:
    """A sweep of 100 SLURM jobs on one node: one upstream and one baseline, a table of 100 rows."""
    from slurm_cluster import slurm_cluster, why_not

    if reason := why_not():
        raise AssertionError(reason)
    alphas = ",".join(str(round(number / NUM_SLURM_JOBS, 4)) for number in range(NUM_SLURM_JOBS))
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as cluster,
        slurm_cluster(Path(cluster), cpus=os.cpu_count() or 1) as variables,
    ):
        launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
        _expect(_start(folder, "-m", f"alpha={alphas}", *launcher, **variables).wait(), 0)
    expected = {"upstream FINISHED": 1, "baseline FINISHED": 1, "sweep FINISHED": 1}
    _expect(_runs(folder), {**expected, "downstream FINISHED": NUM_SLURM_JOBS})
    (table,) = folder.glob("mlruns/artifacts/*/artifacts/table.csv")
    _expect(len(table.read_text().splitlines()), NUM_SLURM_JOBS + 1)
    return f"{NUM_SLURM_JOBS} SLURM jobs, one upstream, one baseline, {NUM_SLURM_JOBS} rows"


def restarts(folder: Path) -> str:
    """A tracking server is killed 5 times in one run, each for 5 to 20 seconds: every point arrives once, in order."""
    sys.path.insert(0, str(REPO / "tests"))
    from mlflow_server import MlflowServer

    server = MlflowServer(folder)
    num_points = 10**7  # the job is told to end
    endless = [f"task.upstream.steps={20 * num_points}", f"task.curve_points={num_points}"]
    server.start()
    process = _start(folder, more=endless, MLFLOW_TRACKING_URI=server.uri)
    try:
        while not server.rows("SELECT 1 FROM metrics LIMIT 1"):
            _expect(process.poll(), None)
            time.sleep(0.5)
        for _ in range(NUM_RESTARTS):
            time.sleep(random.uniform(1, 10))
            server.kill()
            time.sleep(random.uniform(5, 20))
            server.start()
        time.sleep(5)
        process.send_signal(signal.SIGTERM)
        _expect(process.wait(120), 1)
        steps = server.rows(
            "SELECT step FROM metrics JOIN tags USING (run_uuid) WHERE metrics.key = 'train/loss' AND"
            " tags.key = 'stage' AND tags.value = 'upstream' ORDER BY metrics.rowid"
        )
        _expect(steps, [(20 * point,) for point in range(1, len(steps) + 1)])
        _expect(server.rows("SELECT DISTINCT status FROM runs"), [("KILLED",)])
        _expect(list(folder.glob("mlruns/undelivered/*")), [])
    finally:
        process.kill()
        server.kill()
    return f"{NUM_RESTARTS} restarts of the tracking server in one run, {len(steps)} points, each once and in order"


PARTS: dict[str, Callable[[Path], str]] = {"starts": starts, "slurm": slurm, "restarts": restarts}


def _start(folder: Path, *arguments: str, more: Sequence[str] = (), **variables: str) -> "subprocess.Popen[bytes]":
    """`python train.py` in a folder with the smallest settings and one thread; its output goes to files there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with tempfile.NamedTemporaryFile(dir=folder, prefix="output-", suffix=".txt", delete=False) as output:
        return subprocess.Popen(
            [sys.executable, str(REPO / "train.py"), *arguments, *TINY, *more],
            cwd=folder,
            env={**environment, "OMP_NUM_THREADS": "1", **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _runs(folder: Path) -> dict[str, int]:
    """How many runs of each stage and status the folder's default store has."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("paramtransfer")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return dict(Counter(f"{run.data.tags['stage']} {run.info.status}" for run in runs))


def _expect(found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError(f"found {found}, expected {expected}")


def main() -> None:
    """Run the parts; exit code 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="the parts to run")
    failed = False
    for name in parser.parse_args().only:
        folder = Path(tempfile.mkdtemp(prefix=f"soak-{name}-"))
        print(f"{name}: {(PARTS[name].__doc__ or '').strip()}", flush=True)
        start = time.monotonic()
        try:
            print(f"  {PARTS[name](folder)} in {time.monotonic() - start:.0f} s")
        except AssertionError as error:
            failed = True
            print(f"  FAILED: {error}; see {folder}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
