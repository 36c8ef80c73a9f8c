"""What tests of whole jobs share: processes as a user starts them, their store read back, and jobs composed here."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # read when torch is imported: threads of tests do not spin against each other

import pytest
from mlflow_server import MlflowServer

from paramtransfer.cli.process import configure_process
from paramtransfer.interrupts import SIGNALS

configure_process()  # before MLflow is imported

REPO = Path(__file__).parents[1]
TINY = [
    *("replicates=2", "dataset.dim=20", "model.filters=4", "task.num_test=50", "trainer.progress=false"),
    *("task.upstream.num_samples=30", "task.upstream.steps=20"),
    *("task.downstream.num_samples=10", "task.downstream.steps=10"),
]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: many tests wait for servers, clusters and clocks."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    # MLflow's own use of what SQLAlchemy 2.1 deprecates.
    config.addinivalue_line("filterwarnings", "ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture(scope="session", autouse=True)
def _made_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """New stores of this process begin with a copy of what MLflow's migrations make, which would take a second each.

    Processes that a test starts make their own.
    """
    from paramtransfer.tracking import connect

    made = tmp_path_factory.mktemp("made") / "mlflow.db"
    connect._create(made)
    with mock.patch.object(connect, "_create", lambda path: path.write_bytes(made.read_bytes())):
        yield


@pytest.fixture(scope="session")
def start() -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `python train.py` in a folder with the smallest settings, and more after them, without waiting."""

    def start(
        folder: Path,
        *arguments: str,
        more: Sequence[str] = (),
        tiny: Sequence[str] = TINY,
        prefix: Sequence[str] = (),
        **environment: str | None,
    ) -> "subprocess.Popen[str]":
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        # One thread each, so that processes do not spin against each other; wide tables do not wrap.
        variables = {**clean, "OMP_NUM_THREADS": "1", "COLUMNS": "250", **environment}
        return subprocess.Popen(
            [*prefix, sys.executable, str(REPO / "train.py"), *arguments, *tiny, *more],
            cwd=folder,
            env={name: value for name, value in variables.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heed_interrupts,
        )

    return start


def _heed_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def train(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The same, waiting for its end."""

    def train(*arguments: Any, timeout: float = 300, **options: Any) -> "subprocess.CompletedProcess[str]":
        with start(*arguments, **options) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return train


@pytest.fixture(scope="session")
def run_here() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The same in this process, which has imported everything already: for all that needs no process of its own."""
    from hydra.core.global_hydra import GlobalHydra

    from paramtransfer.cli.main import main
    from paramtransfer.tracking.store import open_store

    def run_here(
        folder: Path, *arguments: str, more: Sequence[str] = (), tiny: Sequence[str] = TINY, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        strange = ("MLFLOW_TRACKING", "HYDRA_FULL_ERROR")  # the second is main's own, for its process
        clean = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        words = ["train.py", *arguments, *tiny, *more]
        stdout, stderr, code = io.StringIO(), io.StringIO(), 0
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        open_store.cache_clear()
        GlobalHydra.instance().clear()
        with (
            contextlib.chdir(folder),
            mock.patch.dict(os.environ, {**clean, "COLUMNS": "250", **environment}, clear=True),
            mock.patch.object(sys, "argv", words),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            try:
                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
                if isinstance(ended.code, str):
                    print(ended.code, file=stderr)
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())

    return run_here


@pytest.fixture
def train_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs `python train.py` with some arguments in this process, in an own folder; returns what it prints."""
    from hydra.core.global_hydra import GlobalHydra

    from paramtransfer.cli.main import main
    from paramtransfer.tracking.store import open_store

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def train_here(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        open_store.cache_clear()
        GlobalHydra.instance().clear()
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            main()
        finally:
            os.environ.pop("HYDRA_FULL_ERROR", None)  # main's own, for its process
            for name, handler in handlers.items():
                signal.signal(name, handler)
        return capsys.readouterr().out

    return train_here


@pytest.fixture(scope="session")
def client_of() -> Callable[..., Any]:
    """The MLflow client of a folder's default store, or of a URI."""
    from mlflow import MlflowClient

    def client_of(store: Path | str) -> MlflowClient:
        return MlflowClient(store if isinstance(store, str) else f"sqlite:///{store / 'mlruns' / 'mlflow.db'}")

    return client_of


@pytest.fixture(scope="session")
def runs_of(client_of: Callable[..., Any]) -> Callable[..., dict[str, list[Any]]]:
    """All runs of a store by their stage, oldest first."""

    def runs_of(store: Path | str, experiment: str = "paramtransfer") -> dict[str, list[Any]]:
        client = client_of(store)
        found = client.get_experiment_by_name(experiment)
        by_stage: dict[str, list[Any]] = {}
        for run in client.search_runs([found.experiment_id] if found else [], order_by=["attributes.start_time ASC"]):
            by_stage.setdefault(run.data.tags["stage"], []).append(run)
        return by_stage

    return runs_of


@pytest.fixture(scope="session")
def _lasting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def lasting_server(_lasting_server: MlflowServer) -> MlflowServer:
    """A tracking server, one for all tests; those that kill it need not start it again."""
    _lasting_server.start()
    return _lasting_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URI of an MLflow server that runs while a test does."""
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    try:
        server.start()
        yield server.uri
    finally:
        server.kill()


@pytest.fixture
def compose_job() -> Callable[..., Any]:
    """The job that a command line describes, made in this process."""
    from hydra import compose, initialize_config_dir

    from paramtransfer.cli.arithmetic import register_resolvers
    from paramtransfer.cli.compose import make_job

    def compose_job(*overrides: str) -> Any:
        register_resolvers()
        with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
            config = compose("config", overrides=list(overrides))
        return make_job(config)

    return compose_job
