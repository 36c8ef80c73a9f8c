"""Many jobs and many faults, for real: what is too long for `make test`.

    python tests/soak.py                                      all parts, beside SQLite and with a server
    python tests/soak.py --only starts slurm --store server   some of them

Each part works in a folder of its own, prints what it measured, and fails with what it found wrong.
"""

import argparse
import itertools
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

REPO = Path(__file__).parents[1]
if TYPE_CHECKING:
    from mlflow_server import MlflowServer

TINY = [
    *("replicates=2", "dataset.dim=20", "model.filters=4", "task.num_test=50", "trainer.progress=false"),
    *("task.upstream.num_samples=30", "task.upstream.steps=20"),
    *("task.downstream.num_samples=10", "task.downstream.steps=10"),
]
IMAGES = [
    *("replicates=1", "task=class_split", "dataset=image_folder", "task.ratio=1", "task.batch_size=8"),
    *("task.upstream.epochs=400", "task.downstream.epochs=400", "task.downstream.noise=100"),
    *("model=network_pair", "model.upstream.name=test_resnet", "model.downstream.name=test_resnet"),
    *("+model.downstream.drop_rate=0.3", "optim=sgd", "optim.lr=0.01", "trainer=cpu", "trainer.progress=false"),
    "trainer.checkpoint_minutes=0.02",
]
STAGES = ("upstream", "baseline", "downstream")
NUM_STARTS = 40
NUM_SLURM_JOBS = 100
NUM_PREEMPTIONS = 10
OUTAGES = (5, 50, 10, 50, 20)
NUM_KILLS = 20
NUM_SIGNALS = 100


class Place:
    """A folder, and the store of the jobs that are started in it: the default one, or a server's."""

    def __init__(self, folder: Path, server: "MlflowServer | None") -> None:
        self.folder = folder
        self.server = server
        self.uri = None if server is None else server.uri

    def rows(self, query: str) -> list[Any]:
        """What a query of the store's database returns."""
        path = (self.server.folder if self.server else self.folder / "mlruns") / "mlflow.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as connection:
            try:
                return connection.execute(query).fetchall()
            except sqlite3.OperationalError:  # no table yet
                return []

    def runs(self) -> dict[str, int]:
        """How many runs of each stage and status there are; those taken back do not count."""
        query = "SELECT value, status FROM runs JOIN tags USING (run_uuid) WHERE key = 'stage'"
        found = self.rows(f"{query} AND lifecycle_stage = 'active'")
        return dict(Counter(f"{stage} {status}" for stage, status in found))

    def artifacts(self, uri: str) -> Path:
        """Where the files of a run lie."""
        path = urlsplit(uri).path
        return self.server.folder / "artifacts" / path.lstrip("/") if self.server else Path(path)

    def start(
        self, *arguments: str, settings: Sequence[str] = TINY, more: Sequence[str] = (), **variables: str
    ) -> "subprocess.Popen[bytes]":
        """`python train.py` with the smallest settings and one thread; its output goes to a file in the folder."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        if self.uri is not None:
            environment["MLFLOW_TRACKING_URI"] = self.uri
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="output-", suffix=".txt", delete=False) as output:
            return subprocess.Popen(
                [sys.executable, str(REPO / "train.py"), *arguments, *settings, *more],
                cwd=self.folder,
                env={**environment, "OMP_NUM_THREADS": "1", **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def outputs(self) -> str:
        """What all jobs have printed."""
        return "".join(path.read_text() for path in self.folder.glob("output-*.txt"))


def starts(place: Place) -> str:
    """The same job, started 40 times at the same moment: each stage has one result, beside SQLite one training."""
    from shared_jobs import PRELOADED, run_job

    (place.folder / "gate").touch()
    processes = multiprocessing.get_context("forkserver")  # 40 imports would take minutes, and not start as one
    processes.set_forkserver_preload(PRELOADED)
    barrier, answers = processes.Barrier(NUM_STARTS), processes.Queue()
    arguments = (TINY, place.folder, place.uri, barrier, answers)
    started = [processes.Process(target=run_job, args=arguments) for _ in range(NUM_STARTS)]
    for process in started:
        process.start()
    ends = [answers.get(timeout=900) for _ in started]
    _expect([str(end) for end in ends if isinstance(end, Exception)], [])
    _expect(place.runs(), {f"{stage} FINISHED": 1 for stage in STAGES})
    _expect(len({json.dumps({stage: end[stage][0] for stage in end}) for end in ends}), 1)
    return f"{NUM_STARTS} starts, one run of each stage"


def slurm(place: Place) -> str:
    """A sweep of 100 SLURM jobs on one node, 10 of them preempted: a table of 100 rows, each point once."""
    from slurm_cluster import slurm_cluster, why_not

    if reason := why_not():
        raise AssertionError(reason)
    alphas = ",".join(str(round(number / NUM_SLURM_JOBS, 4)) for number in range(NUM_SLURM_JOBS))
    steps = 20000
    more = [f"task.downstream.steps={steps}", f"task.upstream.steps={steps}", f"task.curve_points={steps // 20}"]
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as cluster,
        slurm_cluster(Path(cluster), cpus=os.cpu_count() or 1) as variables,
    ):
        launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
        process = place.start("-m", f"alpha={alphas}", *launcher, more=more, **variables)
        preempted: set[str] = set()

        def slurm_says(*command: str) -> str:
            answer = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
            return answer.stdout

        while process.poll() is None:
            time.sleep(random.uniform(5, 15))
            states = slurm_says("sacct")
            for job in preempted:  # not in two minutes
                if f"{job}|PENDING" in states:
                    slurm_says("scontrol", "update", f"JobId={job}", "StartTime=now")
            running = [line.split("|")[0] for line in states.splitlines() if "|RUNNING" in line]
            if running and len(preempted) < NUM_PREEMPTIONS:
                job = random.choice(running)
                slurm_says("scancel", "--signal=USR2", job)
                preempted.add(job)
        _expect(process.returncode, 0)
    runs = place.runs()
    _expect(
        {name: runs[name] for name in runs if "KILLED" not in name},
        {
            "upstream FINISHED": 1,
            "baseline FINISHED": 1,
            "sweep FINISHED": 1,
            "downstream FINISHED": NUM_SLURM_JOBS,
        },
    )
    _expect_each_point_once(place)
    ((uri,),) = place.rows(
        "SELECT artifact_uri FROM runs JOIN tags USING (run_uuid) WHERE key='stage' AND value='sweep'"
    )
    _expect(len((place.artifacts(uri) / "table.csv").read_text().splitlines()), NUM_SLURM_JOBS + 1)
    return f"{NUM_SLURM_JOBS} SLURM jobs, {len(preempted)} preempted; {runs}, {NUM_SLURM_JOBS} rows"


def outages(place: Place) -> str:
    """A tracking server is killed 5 times in one run, twice for 50 s: every point arrives once, in order."""
    server = place.server
    if server is None:
        return "no server, no outage"
    num_points = 10**7  # the job is told to end
    process = place.start(more=[f"task.upstream.steps={20 * num_points}", f"task.curve_points={num_points}"])
    try:
        while not place.rows("SELECT 1 FROM metrics LIMIT 1"):
            _expect(process.poll(), None)
            time.sleep(0.5)
        for seconds in OUTAGES:
            time.sleep(random.uniform(1, 10))
            server.kill()
            time.sleep(seconds)
            server.start()
        time.sleep(35)
        process.send_signal(signal.SIGTERM)
        _expect(process.wait(120), 1)
        steps = place.rows(
            "SELECT step FROM metrics JOIN tags USING (run_uuid) WHERE metrics.key = 'train/loss' AND"
            " tags.key = 'stage' AND tags.value = 'upstream' ORDER BY metrics.rowid"
        )
        _expect(steps, [(20 * point,) for point in range(1, len(steps) + 1)])
        _expect(place.rows("SELECT DISTINCT status FROM runs"), [("KILLED",)])
        _expect(list(place.folder.glob("mlruns/undelivered/*")), [])
    finally:
        process.kill()
    return f"{len(OUTAGES)} outages in one run, {len(steps)} points, each once and in order"


def kills(place: Place) -> str:
    """A job that trains a CNN is killed at 20 random moments: it ends as if it had never been, each point once.

    Half of the moments lie between the start of the process and the first checkpoint, half after that.
    """
    from image_files import write_folder

    settings = [*IMAGES, f"dataset.root={write_folder(place.folder / 'photos', train=14, test=4)}"]
    whole = Place(place.folder / "whole", None)
    whole.folder.mkdir()
    started = time.monotonic()
    process = whole.start(settings=settings)
    while not any(whole.folder.glob("mlruns/checkpoints/*/*.ckpt")):
        _expect(process.poll(), None)
        time.sleep(0.1)
    until_trained = time.monotonic() - started
    _expect(process.wait(), 0)
    for number in range(NUM_KILLS):
        before = _checkpoints(place)
        process = place.start(settings=settings)
        if number % 2:
            time.sleep(random.uniform(0, until_trained))
        else:
            while process.poll() is None and _checkpoints(place) <= before:
                time.sleep(0.1)
            time.sleep(random.uniform(0, 8))
        process.kill()
        _expect(process.wait() in (0, -signal.SIGKILL), True)
    _expect(place.start(settings=settings).wait(), 0)

    expected, ends = _ends(whole), _ends(place)
    _expect(ends.keys(), expected.keys())
    for stage, (curves, weights) in ends.items():
        _expect(curves, expected[stage][0])
        _expect([weights[name].equal(tensor) for name, tensor in expected[stage][1].items()], [True] * len(weights))
    points = sum(len(curves) for curves, _ in ends.values())
    survived = place.outputs().count("goes on where")
    _expect(survived > 0, True)
    return (
        f"{NUM_KILLS} SIGKILLs, {survived} of them survived from a checkpoint; "
        f"weights bit-equal, {points} points, each once and in order; {place.runs()}"
    )


def signals(place: Place) -> str:
    """A job gets 100 SIGTERMs, each after a start of its own, at random moments: no run stays RUNNING.

    A third of the moments lie after the first point that is logged.
    """
    longest = until_logged = 0.0
    endless = ["task.upstream.steps=1000000", "task.curve_points=1000000"]
    for number in range(NUM_SIGNALS):
        started = time.monotonic()
        process = place.start(more=[*endless, f"seed={number}"])
        if number == 0:
            while not place.rows("SELECT 1 FROM metrics LIMIT 1"):
                _expect(process.poll(), None)
                time.sleep(0.5)
            until_logged = time.monotonic() - started
        else:
            time.sleep(random.uniform(0.5, 1.5 * until_logged))
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        longest = max(longest, time.monotonic() - told)
        _expect([name for name in place.runs() if "RUNNING" in name], [])
    _expect("Traceback" in place.outputs(), False)
    return f"{NUM_SIGNALS} SIGTERMs, the slowest answered after {longest:.1f} s; {place.runs()}"


PARTS: dict[str, Callable[[Place], str]] = {
    "starts": starts,
    "slurm": slurm,
    "outages": outages,
    "kills": kills,
    "signals": signals,
}


def _expect_each_point_once(place: Place) -> None:
    """No run has two points of one metric at one step."""
    twice = place.rows(
        "SELECT run_uuid, key, step FROM metrics GROUP BY run_uuid, key, step HAVING COUNT(*) > 1 LIMIT 5"
    )
    _expect(twice, [])


def _checkpoints(place: Place) -> set[Path]:
    return set(place.folder.glob("mlruns/checkpoints/*/*.ckpt"))


def _ends(place: Place) -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """What the finished run of each stage ended with: its points but those of time, in order, and its weights."""
    import torch

    ends = {}
    runs = place.rows(
        "SELECT value, run_uuid, artifact_uri FROM runs JOIN tags USING (run_uuid)"
        " WHERE key = 'stage' AND status = 'FINISHED'"
    )
    for stage, run_id, uri in runs:
        curves = place.rows(
            f"SELECT key, step, value FROM metrics WHERE run_uuid = '{run_id}' AND key NOT LIKE 'time/%'"
            " ORDER BY key, rowid"
        )
        ends[stage] = curves, torch.load(place.artifacts(uri) / "result.pt", weights_only=True)["state"]
    return ends


def _expect(found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError(f"found {found}, expected {expected}")


def main() -> None:
    """Run the parts; exit code 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="the parts to run")
    parser.add_argument(
        "--store", nargs="+", choices=("sqlite", "server"), default=("sqlite", "server"), help="beside which"
    )
    arguments = parser.parse_args()
    failed = False
    for name, store in itertools.product(arguments.only, arguments.store):
        folder = Path(tempfile.mkdtemp(prefix=f"soak-{name}-{store}-"))
        print(f"{name}, {store}: {(PARTS[name].__doc__ or '').strip()}", flush=True)
        start = time.monotonic()
        try:
            with _place(folder, store) as place:
                print(f"  {PARTS[name](place)} in {time.monotonic() - start:.0f} s", flush=True)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed = True
            print(f"  FAILED: {error}; see {folder}", flush=True)
    sys.exit(failed)


@contextmanager
def _place(folder: Path, store: str) -> Iterator[Place]:
    if store == "sqlite":
        yield Place(folder, None)
        return
    from mlflow_server import MlflowServer

    (folder / "server").mkdir()
    server = MlflowServer(folder / "server")
    try:
        server.start()
        yield Place(folder, server)
    finally:
        server.kill()


if __name__ == "__main__":
    main()
