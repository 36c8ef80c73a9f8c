"""Benchmarks: a table of our times, each beside its peer's, measured in the same run.

    make bench                          a few minutes
    make bench ARGS="--quick"           shorter trainings, on which the fixed costs weigh too much for the wanted ratios
    make bench ARGS="--only 1 2 3"      some lines of the table

Lines 1 to 7 and from 11 on are synthetic, 8 to 10 (bench_images.py) on images. The last two take minutes each and run
only when asked for. A time is the minimum of several repeats. Ours and
the peer's are taken in turn, so that what else the machine does hits both. On a GPU the device is synchronised before
every reading of the clock.

Measure alone: torch's threads spin against those of another process, and training becomes many times slower. Where
the machine is shared, OMP_NUM_THREADS=1 gives steadier ratios.

Shape letters: R replicates, N samples, P patches (2), M filters of each sign, F = 2 M, D coordinates.
"""

import argparse
import itertools
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_images import IMAGE_LINES
from bench_table import Line, Times, at_most, duration, faster, fastest, hardware, seconds
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from pytorch_lightning.loggers.logger import DummyLogger
from rich.console import Console
from rich.live import Live
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import softplus

from paramtransfer.cli.arithmetic import register_resolvers
from paramtransfer.cli.compose import make_job
from paramtransfer.dataset.signal_noise import Samples
from paramtransfer.experiment.job import Job
from paramtransfer.experiment.run import run
from paramtransfer.metrics import TRAINING_SECONDS
from paramtransfer.model.two_layer_cnn import TwoLayerCNN
from paramtransfer.stage import SIDES
from paramtransfer.statistics import accuracy
from paramtransfer.task.synthetic import SyntheticTasks
from paramtransfer.tracking.store import Store
from paramtransfer.training.leap import LeapSolver
from paramtransfer.training.solver import GramSolver

_CONF = Path(__file__).parents[1] / "conf"
_SHARE = 20  # of fig2's bare products, one in so many is timed
_TRAINER = {"cpu": "cpu", "cuda": "gpu"}
_SHORT = ("task.upstream.steps=40", "task.downstream.steps=40", "replicates=1")


class JobTimes(NamedTuple):
    """Seconds of one job."""

    wall: float
    training: float  # the sum of `time/train`


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every line needs."""

    device: str
    quick: bool
    store: Store

    def job(self, *overrides: str) -> Job:
        """The default job with some overrides, as `train.py` makes it."""
        return compose_job(f"trainer={_TRAINER[self.device]}", *overrides, *(_SHORT if self.quick else ()))

    def run(self, job: Job) -> JobTimes:
        """Run a job as `train.py` does."""
        started = time.perf_counter()
        results = run(job, self.store, tags={})
        wall = time.perf_counter() - started
        return JobTimes(wall, sum(result.metrics["time/train"] for result in results.values() if not result.reused))

    def upstream(self, *, num_samples: int, replicates: int) -> tuple[TwoLayerCNN, Samples, float]:
        """Model, samples and step size of an upstream with d = 2000, all coordinates drawn."""
        job = compose_job(
            "trainer=cpu",
            "dataset.dim=2000",
            "dataset.coordinates=ambient",
            f"task.upstream.num_samples={num_samples}",
        )
        data = job.tasks.data("upstream", seed=0, replicates=replicates)
        samples: Samples = next(iter(data.train_dataloader())).samples
        model: Any = job.model.build(data)
        return model.to(self.device), samples.to(torch.device(self.device)), tasks_of(job).optim.lr


def compose_job(*overrides: str) -> Job:
    """A job without a progress bar, from the configuration files."""
    with initialize_config_dir(config_dir=str(_CONF), version_base="1.3"):
        return make_job(compose("config", overrides=["trainer.progress=false", *overrides]))


def tasks_of(job: Job) -> SyntheticTasks:
    """The pair of tasks of a synthetic job."""
    assert isinstance(job.tasks, SyntheticTasks)
    return job.tasks


class PlainCNN(nn.Module):
    """The two-layer CNN of one replicate, in ordinary torch."""

    def __init__(self, filters_FD: Tensor) -> None:
        super().__init__()
        self.filters = nn.Parameter(filters_FD.detach().clone())

    def forward(self, x_NPD: Tensor) -> Tensor:
        """f(W; x): (N,)."""
        activations_NPF = torch.relu(x_NPD @ self.filters.T)
        positive_NPM, negative_NPM = activations_NPF.chunk(2, dim=-1)
        return (positive_NPM.mean(-1) - negative_NPM.mean(-1)).sum(-1)


class PlainLoop:
    """The peer of the solver: one model per replicate, trained one after the other by autograd and SGD."""

    def __init__(self, filters_RFD: Tensor, samples: Samples, lr: float) -> None:
        self.models = [PlainCNN(filters_FD) for filters_FD in filters_RFD]
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=lr) for model in self.models]
        self.x_RNPD = samples.patches()
        self.labels_RN = samples.labels_RN

    def advance(self, num_steps: int) -> None:
        """That many steps of every replicate."""
        for replicate, optimizer in enumerate(self.optimizers):
            for _ in range(num_steps):
                optimizer.zero_grad()
                torch.autograd.backward(self.loss(replicate))
                optimizer.step()

    def loss(self, replicate: int) -> Tensor:
        """The mean logistic loss of one replicate."""
        return softplus(-self.labels_RN[replicate] * self.models[replicate](self.x_RNPD[replicate])).mean()


class BareProducts:
    """The matrix products of gradient steps, and nothing else: K G, or Xi (Xi^T G) where N > 2 D."""

    def __init__(self, *, replicates: int, num_samples: int, num_filters: int, dim: int, device: str) -> None:
        self.preactivations_RNF = torch.zeros(replicates, num_samples, num_filters, device=device)
        self.gradient_RNF = torch.randn(replicates, num_samples, num_filters, device=device)
        self.is_thin = num_samples > 2 * dim
        self.factor_RNK = torch.randn(replicates, num_samples, dim if self.is_thin else num_samples, device=device)

    def advance(self, num_steps: int) -> None:
        """The products of that many steps."""
        for _ in range(num_steps):
            inner = self.factor_RNK.mT @ self.gradient_RNF if self.is_thin else self.gradient_RNF
            self.preactivations_RNF.baddbmm_(self.factor_RNK, inner)


def gram_against_autograd(bench: Bench, *, num_samples: int, replicates: int, at_least: float, aim: float) -> Line:
    """A gradient step of the gram solver is several times faster than one of a plain autograd loop.

    Both see the same vectors, d = 2000, m = 40; ours takes all replicates at once, the loop one model per replicate,
    one after the other. The solver's set-up, one product N x N x D a stage, is not part of a step; `whole_figure`
    counts it.
    """
    model, samples, lr = bench.upstream(num_samples=num_samples, replicates=replicates)
    filters_RFD = model.filters.detach().flatten(1, 2)
    plain = PlainLoop(filters_RFD, samples, lr)
    gram = GramSolver(model, samples, lr)
    num_steps, repeats = (5, 3) if bench.quick else (20, 11)
    times = fastest(lambda: gram.advance(num_steps), lambda: plain.advance(num_steps), repeats)

    losses_R = torch.stack([plain.loss(replicate).detach() for replicate in range(replicates)])
    assert torch.allclose(gram.loss(), losses_R, rtol=1e-2), "the two have not taken the same steps"

    return faster(
        f"gradient step, N = {num_samples}, {replicates} × d = 2000 / plain autograd loop, one model per replicate",
        Times(times.ours / num_steps, times.peer / num_steps),
        at_least=at_least,
        aim=aim,
    )


def one_replicate(bench: Bench) -> Iterator[Line]:
    """At N = 1000, one replicate, a gram step is 6 times faster than a plain one; the aim is 10."""
    yield gram_against_autograd(bench, num_samples=1000, replicates=1, at_least=6, aim=10)


def ten_replicates(bench: Bench) -> Iterator[Line]:
    """At N = 100, ten replicates, a gram step is 25 times faster than ten plain ones; the aim is 50."""
    yield gram_against_autograd(bench, num_samples=100, replicates=10, at_least=25, aim=50)


def gram_against_product(bench: Bench) -> Iterator[Line]:
    """At N = 1000 a gram step takes at most 1.4 times its bare product K G, (1000 x 1000) (1000 x 80)."""
    model, samples, lr = bench.upstream(num_samples=1000, replicates=1)
    gram = GramSolver(model, samples, lr)
    product = BareProducts(replicates=1, num_samples=1000, num_filters=80, dim=2000, device=bench.device)
    num_steps, repeats = (20, 5) if bench.quick else (50, 21)
    times = fastest(lambda: gram.advance(num_steps), lambda: product.advance(num_steps), repeats)
    yield at_most(
        "gradient step, N = 1000 / bare product K G",
        Times(times.ours / num_steps, times.peer / num_steps),
        1.4,
    )


def leap_against_others(
    bench: Bench, *, num_samples: int, replicates: int, at_least: float, aim: float
) -> Iterator[Line]:
    """The 800 steps of a whole training, leaping, against those of the gram solver and of a plain autograd loop.

    The two peers are timed on some of the steps, which all take as long. The set-up of the solvers is not counted.
    """
    model, samples, lr = bench.upstream(num_samples=num_samples, replicates=replicates)
    plain = PlainLoop(model.filters.detach().flatten(1, 2), samples, lr)
    gram = GramSolver(model, samples, lr)
    num_steps, share, repeats = 800, 40, 3 if bench.quick else 11
    leaping = iter([LeapSolver(model, samples, lr, tolerance=0.1) for _ in range(2 * repeats)])
    by_gram = fastest(lambda: next(leaping).advance(num_steps), lambda: gram.advance(num_steps // share), repeats)
    by_loop = fastest(lambda: next(leaping).advance(num_steps), lambda: plain.advance(num_steps // share), repeats)
    setting = f"{num_steps} steps, N = {num_samples}, {replicates} × d = 2000"
    yield faster(f"{setting} / gram", Times(by_gram.ours, share * by_gram.peer), at_least=4, aim=10)
    loop = Times(by_loop.ours, share * by_loop.peer)
    yield faster(f"{setting} / plain autograd loop, one model per replicate", loop, at_least=at_least, aim=aim)


def leap_one_replicate(bench: Bench) -> Iterator[Line]:
    """At N = 1000, one replicate, leaping is 60 times faster than a plain loop."""
    yield from leap_against_others(bench, num_samples=1000, replicates=1, at_least=60, aim=100)


def leap_ten_replicates(bench: Bench) -> Iterator[Line]:
    """At N = 100, ten replicates, leaping is 200 times faster than ten plain loops."""
    yield from leap_against_others(bench, num_samples=100, replicates=10, at_least=200, aim=250)


def leap_without_a_smooth_path(bench: Bench) -> Iterator[Line]:
    """Where no leap passes, all steps are the gram solver's own, and what was tried costs at most 5 %."""
    num_steps, repeats = (80, 2) if bench.quick else (800, 10)
    for num_samples in (1000, 100):
        yield never_leaping(bench, num_samples, num_steps=num_steps, repeats=repeats)


def never_leaping(bench: Bench, num_samples: int, *, num_steps: int, repeats: int) -> Line:
    """A tolerance that rounding alone exceeds; from the start each time, for what is tried there."""
    model, samples, lr = bench.upstream(num_samples=num_samples, replicates=1)
    leaping = iter([LeapSolver(model, samples, lr, tolerance=1e-9) for _ in range(repeats)])
    single = GramSolver(model, samples, lr)
    times = fastest(lambda: next(leaping).advance(num_steps), lambda: single.advance(num_steps), repeats)
    return at_most(f"{num_steps} steps, N = {num_samples}, where no leap passes / gram", times, 1.05)


def whole_figure(bench: Bench) -> Iterator[Line]:
    """All jobs of fig2 (the small grid), run to their end, take less than the bare products of all their steps.

    Ours is `paramtransfer.experiment.run` in this process: drawing, training, curves, testing, tracking in SQLite. Each
    repeat of a job has a seed of its own, so that none is found in the store. Of the products one in `_SHARE` is timed.
    """
    grid = grid_of("fig2", scale="small")[: 2 if bench.quick else None]
    repeats = 1 if bench.quick else 2
    jobs, products = zip(*(job_against_products(bench, overrides, repeats) for overrides in grid), strict=True)
    wall, training = sum(job.wall for job in jobs), sum(job.training for job in jobs)
    yield at_most(f"whole fig2, {len(grid)} jobs / its bare products", Times(wall, sum(products)), 0.75)
    yield Line(what="  not training / all", ours=duration(wall - training), peer=duration(wall))


def job_against_products(bench: Bench, overrides: list[str], repeats: int) -> tuple[JobTimes, float]:
    """The fastest of some repeats of one job, and the seconds of its bare products."""
    jobs = [bench.job(*overrides, f"seed={seed}") for seed in range(repeats)]
    pending = iter(jobs)
    times: list[JobTimes] = []
    stages = list(products_of(jobs[0], bench.device))

    def some_products() -> None:
        for products, num_steps in stages:
            products.advance(num_steps // _SHARE)

    peer = fastest(lambda: times.append(bench.run(next(pending))), some_products, repeats).peer
    return min(times), _SHARE * peer


def products_of(job: Job, device: str) -> Iterator[tuple[BareProducts, int]]:
    """The products of every stage of a job, and how many steps it takes."""
    tasks = tasks_of(job)
    for stage in job.stages:
        settings = tasks.sides[SIDES[stage]]
        products = BareProducts(
            replicates=job.replicates,
            num_samples=settings.num_samples,
            num_filters=tasks.model.num_filters,
            dim=tasks.coordinates[SIDES[stage]].dim,
            device=device,
        )
        yield products, settings.steps


def whole_fig2(bench: Bench) -> Iterator[Line]:
    """The full grid of fig2 takes at most 4 minutes."""
    yield full_scale(bench, "fig2", minutes=4)


def whole_phase(bench: Bench) -> Iterator[Line]:
    """The full grid of phase takes at most 5 minutes."""
    yield full_scale(bench, "phase", minutes=5)


def full_scale(bench: Bench, name: str, *, minutes: int) -> Line:
    """The command of an experiment, start and figure included, a job on each core; the peer is the training alone."""
    scale = "small" if bench.quick else "full"
    settings = [f"scale={scale}", "hydra/launcher=joblib", f"trainer={_TRAINER[bench.device]}"]
    command = [sys.executable, str(_CONF.parent / "train.py"), f"experiment={name}", *settings]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    with tempfile.TemporaryDirectory() as folder:
        wall = seconds(
            partial(subprocess.run, command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
        )
        trained = temporary_store(f"{folder}/mlruns").runs(f"metrics.`{TRAINING_SECONDS}` > 0")
        training = sum(run.metrics[TRAINING_SECONDS] for run in trained) / (os.cpu_count() or 1)
    return Line(
        what=f"whole {name} {scale} / its training on all cores",
        ours=duration(wall),
        peer=duration(training),
        ratio=f"{wall / training:.2f} ×",
        wanted=f"≤ {60 * minutes} s",
        good=wall <= 60 * minutes,
    )


def grid_of(name: str, *, scale: str) -> list[list[str]]:
    """The overrides of every job of an experiment."""
    chosen = [f"experiment={name}", f"scale={scale}"]
    with initialize_config_dir(config_dir=str(_CONF), version_base="1.3"):
        config = compose("config", overrides=chosen, return_hydra_config=True)
    swept = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in config.hydra.sweeper.params.items()])
    values = [[f"{key.get_key_element()}={value}" for value in key.sweep_string_iterator()] for key in swept]
    return [[*chosen, *overrides] for overrides in itertools.product(*values)]


def high_dimension(bench: Bench) -> Iterator[Line]:
    """In reduced coordinates d = 10^6 costs what d = 2000 does, drawing included; memory, too, where it is cheap."""
    dims = (10**6, 2000)
    repeats = 1 if bench.quick else 3
    ours, peer = (iter([bench.job(f"dataset.dim={dim}", f"seed={seed}") for seed in range(repeats)]) for dim in dims)
    times = fastest(lambda: bench.run(next(ours)), lambda: bench.run(next(peer)), repeats)
    yield at_most("default job at d = 10⁶ / at d = 2000", times, 1.2)
    if not bench.quick:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            high, low = pool.map(memory_of_job, dims)
        yield Line(
            what="  peak memory that the job adds",
            ours=f"{high / 1e6:.0f} MB",
            peer=f"{low / 1e6:.0f} MB",
            ratio=f"{high / low:.2f} ×",
            wanted="≤ 1.2 ×",
            good=high <= 1.2 * low,
        )


def memory_of_job(dim: int) -> int:
    """What a job with few steps adds to the peak memory of this process, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device="cpu", quick=False, store=temporary_store(folder))
        bench.run(bench.job(*_SHORT))  # what the libraries take for themselves
        before = _peak_memory()
        bench.run(bench.job(f"dataset.dim={dim}", "task.upstream.steps=10", "task.downstream.steps=10"))
        return _peak_memory() - before


def _peak_memory() -> int:
    status = Path("/proc/self/status")  # on Linux, rusage starts from the peak of the process that started this one
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def stage_overhead(bench: Bench) -> Iterator[Line]:
    """Beyond the solver's time, a stage of the default job costs at most 0.5 s, its curve of 100 points included.

    The peer is the solver's own time a stage. The curve's part is what 100 points cost more than one.
    """
    repeats = 1 if bench.quick else 3
    full, single = (
        iter([bench.job(f"task.curve_points={points}", f"seed={seed}") for seed in range(repeats)])
        for points in (100, 1)
    )
    times: dict[str, list[JobTimes]] = {"full": [], "single": []}
    fastest(
        lambda: times["full"].append(bench.run(next(full))),
        lambda: times["single"].append(bench.run(next(single))),
        repeats,
    )
    beyond = {name: min(job.wall - job.training for job in jobs) / 3 for name, jobs in times.items()}
    training = min(job.training for job in times["full"]) / 3
    job = bench.job()
    drawing = min(seconds(lambda: draw_all(job)) for _ in range(repeats)) / 3
    yield Line(
        what="default job, a stage beyond its solver / the solver",
        ours=duration(beyond["full"]),
        peer=duration(training),
        wanted="≤ 0.5 s",
        good=beyond["full"] <= 0.5,
    )
    curve = beyond["full"] - beyond["single"]
    parts = {"curve of 100 points": curve, "drawing": drawing, "the rest": beyond["single"] - drawing}
    for name, part in parts.items():
        yield Line(what=f"  {name}", ours=duration(part), peer="")


def draw_all(job: Job) -> None:
    """The training samples and filters of every stage."""
    for stage in job.stages:
        data: Any = job.tasks.data(SIDES[stage], seed=job.seed, replicates=job.replicates)
        _ = data.initial_RFD


def million_test_points(bench: Bench) -> Iterator[Line]:
    """The test accuracy of one replicate on 10^6 points, m = 40, takes about a second.

    The peer is the bare draw of the normals that stand for the test points, 80 for each.
    """
    num_test = 10**5 if bench.quick else 10**6
    job = bench.job(f"task.num_test={num_test}", "replicates=1")
    data = job.tasks.data("downstream", seed=0, replicates=1)
    module = job.training(job.model.build(data))
    trainer = job.trainer("baseline", epochs=1, logger=DummyLogger(), callbacks=[])

    def score() -> None:
        trainer.test(module, data, verbose=False)
        accuracy(module.hits)

    def draw() -> None:
        rng = np.random.default_rng(0)
        for _ in range(num_test // 10_000):
            rng.standard_normal((10_000, 80), dtype=np.float32)

    times = fastest(score, draw, 2 if bench.quick else 5)
    yield Line(
        what=f"test accuracy on {num_test:,} points / bare draw of their normals",
        ours=duration(times.ours),
        peer=duration(times.peer),
        ratio=f"{times.ours / times.peer:.2f} ×",
        wanted="about 1 s",
        good=times.ours < 1.5,
    )


LINES: dict[int, Callable[[Any], Iterable[Line]]] = {
    1: one_replicate,
    2: ten_replicates,
    3: gram_against_product,
    4: whole_figure,
    5: high_dimension,
    6: stage_overhead,
    7: million_test_points,
    **IMAGE_LINES,
    11: leap_one_replicate,
    12: leap_ten_replicates,
    13: leap_without_a_smooth_path,
    14: whole_fig2,
    15: whole_phase,
}
_LONG = (14, 15)


def temporary_store(folder: str) -> Store:
    """A SQLite store that nothing else uses."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path(folder).absolute() / 'mlflow.db'}"
    return Store(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks, each as a ratio to its peer measured in the same run.")
    parser.add_argument("--quick", action="store_true", help="shorter trainings: shows that all runs, not how fast")
    parser.add_argument(
        "--device",
        choices=tuple(_TRAINER),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to measure (default: a GPU if there is one)",
    )
    parser.add_argument("--only", type=int, nargs="+", choices=tuple(LINES), help="the lines to measure")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device=cuda: must be cpu where torch finds no GPU")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # Lightning's own reaction would exit with 0
    register_resolvers()
    console = Console()
    console.print(hardware(arguments.device), highlight=False)
    table = Table(
        "", "what (ours / peer)", "ours", "peer", "ratio", "wanted", title="quick run" if arguments.quick else None
    )
    with tempfile.TemporaryDirectory() as folder, Live(table, console=console, auto_refresh=False) as live:
        bench = Bench(device=arguments.device, quick=arguments.quick, store=temporary_store(folder))
        bench.run(compose_job(f"trainer={_TRAINER[bench.device]}", *_SHORT, "seed=1000"))  # imports, the store's schema
        for number in arguments.only or [line for line in LINES if line not in _LONG]:
            table.caption = f"measuring line {number}"
            live.refresh()
            for line in LINES[number](bench):
                style = "" if line.good is None else "green" if line.good else "red"
                ratio = f"[{style}]{line.ratio}[/]" if style else line.ratio
                table.add_row(str(number), line.what, line.ours, line.peer, ratio, line.wanted)
        table.caption = None
    if not console.is_terminal:
        console.line()


if __name__ == "__main__":
    main()
