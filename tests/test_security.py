"""What comes from a store is not trusted, passwords stay where they are, and servers listen on loopback."""

import ast
import base64
import json
import os
import pickle
import re
import socket
import subprocess
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest
import torch
from conftest import REPO, TINY
from mlflow.exceptions import MlflowException
from mlflow_server import MlflowServer, proxy

from paramtransfer.errors import StoreError
from paramtransfer.experiment.run import run
from paramtransfer.figures.drawing import as_csv
from paramtransfer.tracking import connect, masking, provenance
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.store import Store

PASSWORD = "s3cret/pass:word"
TOKEN = "t0ken-of-mine"

Fixture = Callable[..., Any]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What opening a store puts into the environment is taken back."""
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")


# Nothing is unpickled.


def _sources() -> list[Path]:
    return [REPO / "train.py", *sorted((REPO / "src").rglob("*.py")), *sorted((REPO / "scripts").rglob("*.py"))]


UNPICKLING_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNPICKLING_CALLS = {"read_pickle", "load_checkpoint", "load_from_checkpoint", "unsafe_load", "eval", "exec"}


def _unsafe(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNPICKLING_MODULES]
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in UNPICKLING_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            name = called.rpartition(".")[2]
            if name in UNPICKLING_CALLS and called != "model.eval" and called != "self.eval":
                found.append(called)
            if called in ("torch.load", "load_state_dict_from_url", "torch.hub.load_state_dict_from_url"):
                found += [called] if options.get("weights_only") != "True" else []
            if name == "load" and "allow_pickle" in options and options["allow_pickle"] != "False":
                found.append(called)
    return found


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(REPO)))
def test_sources_unpickle_nothing(path: Path) -> None:
    """Every torch.load has weights_only=True, and nothing else that runs what it reads is used."""
    assert _unsafe(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "import pickle",
        "from pickle import loads",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "Module.load_from_checkpoint(path)",
    ],
)
def test_unpickling_is_recognised(source: str) -> None:
    """The test above can fail."""
    assert _unsafe(ast.parse(source)) != []


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_malicious_weights_are_refused(tmp_path: Path, compose_job: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    """Weights that would run a command when unpickled are refused with a line, and the stage is trained again."""
    store = Store(tmp_path / "mlruns")
    job = compose_job(*TINY)
    first = run(job, store, tags={})
    evil = tmp_path / "evil"
    (weights,) = tmp_path.glob(f"mlruns/artifacts/{first['baseline'].run_id}/artifacts/result.pt")
    weights.write_bytes(pickle.dumps(Malicious(evil)))
    pickle.loads(weights.read_bytes())  # it works
    evil.rmdir()

    second = run(job, store, tags={})
    assert not evil.exists()
    assert {stage: result.reused for stage, result in second.items()} == {
        **dict.fromkeys(("upstream", "downstream"), True),
        "baseline": False,
    }
    (line,) = [record.message for record in caplog.records if "cannot be read" in record.message]
    assert first["baseline"].run_id in line
    assert "\n" not in line
    assert torch.equal(second["baseline"].state["filters"], first["baseline"].state["filters"])


# Passwords.


def _assert_nowhere(text: str, *folders: Path) -> None:
    for secret in (PASSWORD, quote(PASSWORD, safe=""), TOKEN):
        assert secret not in text
        for folder in folders:
            for path in folder.rglob("*"):
                assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_password_opens_the_server_and_is_nowhere_else(
    lasting_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in tags, files, logs or errors, though the job's error and the working tree's changes have it."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "own.py").write_text("uri = None\n")
    git = ["git", "-C", str(checkout), "-c", "user.name=n", "-c", "user.email=e"]
    own_taste = (["config", "color.ui", "always"], ["config", "diff.external", "false"])
    for arguments in (["init", "-q"], *own_taste, ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    (checkout / "own.py").write_text(f"uri = 'http://user:{PASSWORD}@host'\napi_key = 'k3y-of-theirs'\n")
    monkeypatch.setattr(provenance, "_CHECKOUT", checkout)
    provenance.git_diff.cache_clear()
    assert PASSWORD in provenance.git_diff()
    try:
        header = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()
        with proxy(lasting_server, authorization=header) as uri:
            own = uri.replace("//", f"//user:{quote(PASSWORD, safe='')}@")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
            monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
            store = Store(tmp_path / "mlruns")
            with suppress(RuntimeError), Session(store) as session:
                session.create(name="n", tags={"stage": "upstream"}, params={}, files={})
                raise RuntimeError(f"no answer from {own}, {TOKEN}")
            (run_id,) = session.opened
            run = store.run(run_id)
            assert run.tags["error"] == f"RuntimeError: no answer from {uri.replace('//', '//user:***@')}, ***"
            diff = store.read_files(run_id, suffix="git_diff.patch")["git_diff.patch"]
            assert b"user:***@host" in diff
            assert b"api_key = '***'" in diff
    finally:
        provenance.git_diff.cache_clear()
    _assert_nowhere(caplog.text, lasting_server.folder, tmp_path / "mlruns")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("export DB_PASSWORD=hunter2", "export DB_PASSWORD=***"),
        (
            "setup=['export WANDB_API_KEY=0123456789', 'module load cuda']",
            "setup=['export WANDB_API_KEY=***', 'module load cuda']",
        ),
        ("+secret_token: abc123", "+secret_token: ***"),
        ("postgresql://me:pass@host/runs", "postgresql://me:***@host/runs"),
        ("+    token: str = 'x'", "+    token: str = 'x'"),
        ("+num_tokens = 196", "+num_tokens = 196"),
        ("+def secret(key): ...", "+def secret(key): ..."),
        ("alpha=0.5,1 seed=0", "alpha=0.5,1 seed=0"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, shown: str) -> None:
    """By the name that it is given, or as the password in an address; code that speaks of secrets is left."""
    assert masking.masked(text) == shown


def test_own_modules_are_kept_without_secrets(
    tmp_path: Path, compose_job: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the user's that a stage depends on is among its files."""
    (tmp_path / "own_solver.py").write_text(
        "from paramtransfer.training.solver import GramSolver as Own\n\nAPI_KEY = 'k3y-of-theirs'\n\n\n"
        "class Own(Own):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(tmp_path / "mlruns")
    results = run(compose_job(*TINY, "solver=gram", "solver._target_=own_solver.Own"), store, tags={})
    kept = store.read_files(results["baseline"].run_id, suffix="own_solver.py")["own_solver.py"]
    assert b"API_KEY = '***'" in kept
    assert b"class Own" in kept


def test_another_project_s_changes_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that lies somewhere in another project's checkout knows neither its commit nor its changes."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "vendored").mkdir()
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path / "vendored")
    for ask in (provenance.git_commit, provenance.git_diff):
        ask.cache_clear()
    try:
        assert provenance.git_commit() == "unknown"
        assert provenance.git_diff() == ""
    finally:
        for ask in (provenance.git_commit, provenance.git_diff):
            ask.cache_clear()


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:{password}@127.0.0.1:9",
        "postgresql://user:{password}@127.0.0.1:9/runs",
        "mysql+pymysql://127.0.0.1:9/runs?password={password}",
        "foo://user:{password}@host",
    ],
)
def test_password_is_in_no_error(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in the traceback of a store that cannot be opened."""
    monkeypatch.setattr(connect, "_CONNECT_SECONDS", 2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(password=quote(PASSWORD, safe="")))
    with pytest.raises(StoreError) as failure:
        Store(tmp_path)
    _assert_nowhere("".join(traceback.format_exception(failure.value)))


def test_password_in_a_whole_job(lasting_server: MlflowServer, tmp_path: Path, train: Fixture) -> None:
    """Nor in what a job prints and writes, Hydra's files included."""
    header = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    with proxy(lasting_server, authorization=header) as uri:
        own = uri.replace("//", f"//user:{quote(PASSWORD, safe='')}@")
        process = train(tmp_path, MLFLOW_TRACKING_URI=own, MLFLOW_TRACKING_TOKEN=TOKEN)
    assert process.returncode == 0, process.stderr
    _assert_nowhere(process.stdout + process.stderr, tmp_path, lasting_server.folder)


def test_cells_are_no_formulas() -> None:
    """Text of a table begins with a quote where a spreadsheet would compute it; numbers stay numbers."""
    table = pd.DataFrame({"key": ["=1+1", "@x", "-a", "plain"], "value": [-1.5, 2.0, 3.0, 4.0]})
    assert as_csv(table).splitlines()[1:] == ["'=1+1,-1.5", "'@x,2.0", "'-a,3.0", "plain,4.0"]


# Paths.


@pytest.mark.parametrize("name", ["../evil.json", "jobs/../../evil.json", "/tmp/evil.json", "..", "%2e%2e/evil.json"])
def test_artifacts_cannot_leave_their_folder(
    name: str, lasting_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that lists a file outside of the folder that was asked for makes nobody write there."""

    def lie(path: str, body: bytes, content: bytes) -> bytes:
        if "/mlflow-artifacts/artifacts?" in path:
            return json.dumps({"files": [{"path": name, "is_dir": False, "file_size": 2}]}).encode()
        return b"{}" if "evil.json" in path else content

    temporary = tmp_path / "a" / "b"
    temporary.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with proxy(lasting_server, lie) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        store = Store(tmp_path / "mlruns")
        with Session(store) as session:
            run_id = session.create(name="n", tags={}, params={}, files={})
            session.end(run_id, "FINISHED")
        read: dict[str, str] = {}
        with suppress(MlflowException):  # MLflow's own refusal, where its artifacts come over HTTP
            read = store.read_files(run_id, "jobs", suffix=".json")
    assert read == {}
    assert not list(tmp_path.rglob("evil.json"))
    assert not Path("/tmp/evil.json").exists()


def test_run_ids_cannot_leave_their_folder(
    lasting_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a server that makes up a run's id."""

    def lie(path: str, body: bytes, content: bytes) -> bytes:
        return re.sub(rb'"run_id": ?"\w+"', b'"run_id": "../../evil"', content) if "/runs/create" in path else content

    with proxy(lasting_server, lie) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        store = Store(tmp_path / "mlruns")
        with pytest.raises(StoreError, match=r"run id '../../evil'"), Session(store) as session:
            session.create(name="n", tags={}, params={}, files={})
    assert session.opened == []
    assert not list(tmp_path.rglob("evil*"))


# Servers.


def test_servers_listen_on_loopback(lasting_server: MlflowServer) -> None:
    """The tests' own server cannot be reached from outside, and `make ui` names the same address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only chooses the address that the machine would use
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    assert not address.startswith("127.")
    with socket.socket() as caller:
        assert caller.connect_ex(("127.0.0.1", lasting_server.port)) == 0
    with socket.socket() as caller:
        assert caller.connect_ex((address, lasting_server.port)) != 0


def test_no_server_is_started_for_all_the_world() -> None:
    """Every server in the Makefile and the sources is told to listen on loopback."""
    commands = re.findall(r"mlflow (?:ui|server)\b.*", (REPO / "Makefile").read_text())
    assert commands
    assert all("--host 127.0.0.1" in command for command in commands)
    for path in [REPO / "Makefile", *_sources(), *(REPO / "conf").rglob("*.yaml")]:
        assert "0.0.0.0" not in path.read_text(encoding="utf-8")
