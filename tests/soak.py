"""Many jobs and many faults, for real: what is too long for `make test`.

    python tests/soak.py                      all parts
    python tests/soak.py --only starts slurm  some of them

Each part works in a folder of its own, prints what it measured, and fails with what it found wrong.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REPO = Path(__file__).parents[1]
TINY = [
    *("replicates=2", "dataset.dim=20", "model.filters=4", "task.num_test=50", "trainer.progress=false"),
    *("task.upstream.num_samples=30", "task.upstream.steps=20"),
    *("task.downstream.num_samples=10", "task.downstream.steps=10"),
]
IMAGES = [
    *("replicates=1", "task=class_split", "dataset=image_folder", "task.ratio=1", "task.batch_size=8"),
    *("task.upstream.epochs=800", "task.downstream.epochs=800", "task.downstream.noise=100"),
    *("model=network_pair", "model.upstream.name=test_resnet", "model.downstream.name=test_resnet"),
    *("+model.downstream.drop_rate=0.3", "optim=sgd", "optim.lr=0.01", "trainer=cpu", "trainer.progress=false"),
    "trainer.checkpoint_minutes=0.02",
]
NUM_STARTS = 40
NUM_SLURM_JOBS = 100
NUM_RESTARTS = 5
NUM_KILLS = 20


def starts(folder: Path) -> str:
    """The same job, started 40 times at the same moment on one SQLite store: each stage is trained once."""
    from shared_jobs import PRELOADED, run_job

    (folder / "gate").touch()
    processes = multiprocessing.get_context("forkserver")  # 40 imports would take minutes, and not start as one
    processes.set_forkserver_preload(PRELOADED)
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


def kills(folder: Path) -> str:
    """A job that trains a CNN is killed at 20 random moments: it ends as if it had never been, each point once."""
    from image_files import write_folder

    settings = [*IMAGES, f"dataset.root={write_folder(folder / 'photos', train=14, test=4)}"]
    whole, killed = folder / "whole", folder / "killed"
    whole.mkdir()
    killed.mkdir()
    started = time.monotonic()
    process = _start(whole, settings=settings)
    while not any(whole.glob("mlruns/checkpoints/*/*.ckpt")):
        _expect(process.poll(), None)
        time.sleep(0.1)
    until_trained = time.monotonic() - started
    _expect(process.wait(), 0)
    for _ in range(NUM_KILLS):
        process = _start(killed, settings=settings)
        time.sleep(random.uniform(until_trained / 2, until_trained + 8))
        process.kill()
        _expect(process.wait(), -signal.SIGKILL)
    _expect(_start(killed, settings=settings).wait(), 0)

    expected, ends = _ends(whole), _ends(killed)
    _expect(ends.keys(), expected.keys())
    for stage, (curves, weights) in ends.items():
        _expect(curves, expected[stage][0])
        _expect([weights[name].equal(tensor) for name, tensor in expected[stage][1].items()], [True] * len(weights))
    outputs = "".join(path.read_text() for path in killed.glob("output-*.txt"))
    points = sum(len(curves) for curves, _ in ends.values())
    return (
        f"{NUM_KILLS} SIGKILLs, {outputs.count('goes on where')} of them survived from a checkpoint; "
        f"weights bit-equal, {points} points, each once and in order; {_runs(killed)}"
    )


PARTS: dict[str, Callable[[Path], str]] = {"starts": starts, "slurm": slurm, "restarts": restarts, "kills": kills}


def _start(
    folder: Path, *arguments: str, settings: Sequence[str] = TINY, more: Sequence[str] = (), **variables: str
) -> "subprocess.Popen[bytes]":
    """`python train.py` in a folder with the smallest settings and one thread; its output goes to files there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with tempfile.NamedTemporaryFile(dir=folder, prefix="output-", suffix=".txt", delete=False) as output:
        return subprocess.Popen(
            [sys.executable, str(REPO / "train.py"), *arguments, *settings, *more],
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


def _ends(folder: Path) -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """What the finished run of each stage ended with: its points but those of time, in order, and its weights."""
    import torch

    ends = {}
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        runs = store.execute(
            "SELECT value, run_uuid, artifact_uri FROM runs JOIN tags USING (run_uuid)"
            " WHERE key = 'stage' AND status = 'FINISHED'"
        ).fetchall()
        for stage, run_id, artifacts in runs:
            curves = store.execute(
                "SELECT key, step, value FROM metrics WHERE run_uuid = ? AND key NOT LIKE 'time/%' ORDER BY key, rowid",
                [run_id],
            ).fetchall()
            path = Path(urlsplit(artifacts).path) / "result.pt"
            ends[stage] = curves, torch.load(path, weights_only=True)["state"]
    return ends


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
