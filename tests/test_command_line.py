"""Before anything is trained: mistakes on the command line, and what a sweep will come to."""

import os
import pwd
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, TINY
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console
from rich.table import Table

from paramtransfer.cli.main import main
from paramtransfer.cli.process import configure_process
from paramtransfer.cli.streams import protected
from paramtransfer.cli.words import as_hydra_reads, for_shell
from paramtransfer.suggestions import did_you_mean
from paramtransfer.tracking.store import open_store

Fixture = Callable[..., Any]

MISTAKES = {
    "alhpa=0.5": "alhpa: no such key or group; did you mean alpha?; --help lists them",
    "task.upstrem.steps=3": "task.upstrem.steps: no such key or group; did you mean task.upstream.steps?; --help",
    "solvr=gram": "solvr: no such key or group; did you mean solver?",
    "solver=grma": "solver=grma: must be one of autograd, gram, leap; did you mean gram?",
    "solver=null": "solver=null: must be one of autograd, gram, leap",
    "solver=[gram,grma]": "solver=[gram,grma]: must be one of autograd, gram, leap",
    "dataset=laplase": "image_folder, laplace, signal_noise; did you mean laplace?",
    "experiment=fig1 dataset.dmi=5": "experiment=fig1: must be one of ",
    "experiment=regime regime.nn=3": "regime.nn: no such key or group; did you mean regime.n?",
    "-m alhpa=0.1,0.2": "alhpa: no such key or group; did you mean alpha?",
    "alpha": "alpha: must be key=value",
    "alpha=[1": """alpha=[1: must be key=value; brackets, quotes, commas or = in a value are typed "alpha='[1'\"""",
    "alpha=0,5": "alpha=0,5: must be one value: alpha=0.5 for one number, -m alpha=0,5 to try each of them, ",
    "seed=0,1,2": """seed=0,1,2: must be one value: -m seed=0,1,2 to try each of them, "seed='0,1,2'" where""",
    "--alpha=0.5": "--alpha=0.5: a setting is one word without dashes, alpha=0.5",
    "--alpha 0.5": "--alpha 0.5: a setting is one word without dashes, alpha=0.5",
    "alpha = 0.5": "alpha = 0.5: a setting is one word without dashes, alpha=0.5",
    "alpha= 0.5 seed=1": "alpha= 0.5: a setting is one word without dashes, alpha=0.5",
    "seed=1 alpha =0.5": "alpha =0.5: a setting is one word without dashes, alpha=0.5",
    "+alpha=0.3": "+alpha=0.3: the key exists, and is set without a plus: alpha=0.3",
    "-m seed=interval(0,1)": "seed=interval(0,1): must be values, as seed=0,1 or seed=range(3)",
    "-m alpha=glob(*)": "alpha=glob(*): must hold at least one value",
    "-m seed=range(0)": "seed=range(0): must hold at least one value",
    "alpha=${foo}": "alpha: Interpolation key 'foo' not found",
    "--config-name nope": "--config-name=nope: must be config, or a file in the folder that --config-dir names",
}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fixture]:
    """Runs a command line in this process, in an empty folder, and returns what it prints, or says at its end."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def command(*words: str, settings: Sequence[str] = TINY) -> str:
        open_store.cache_clear()
        GlobalHydra.instance().clear()
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr("sys.argv", ["train.py", *words, *settings])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return printed.out + (code if isinstance(code, str) else printed.err if code else "")

    yield command
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("words", MISTAKES)
def test_mistake_is_one_line_with_the_nearest_name(words: str, tmp_path: Path, command: Fixture) -> None:
    """A typo in a key, group, option or experiment ends with one line, before there is a run or a store."""
    own = tmp_path / "own" / "dataset"
    own.mkdir(parents=True)
    (own / "laplace.yaml").write_text("defaults: [signal_noise]\n")
    said = command("--config-dir", "own", *words.split())
    assert MISTAKES[words] in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()


def test_mistake_ends_the_process(tmp_path: Path, train: Fixture) -> None:
    """With exit code 1, and nothing but the sentence; HYDRA_FULL_ERROR=0 asks for no traceback."""
    process = train(tmp_path, "alhpa=0.5", HYDRA_FULL_ERROR="0")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "alhpa: no such key or group; did you mean alpha?; --help lists them\n"


PATHS = [
    *(
        "logs/epoch=3-step=12.ckpt",
        "my files/a b.pt",
        "it's.pt",
        "#1.pt",
        "größe.pt",
        "a (copy).pt",
        "a[1].pt",
        "-x.pt",
    ),
    *("2024_01", "007", "1e3", "true", "None", "12345678901234567890123456789012", "a:b.pt", "a\\b.pt", 'say "hi".pt'),
    *("50%.pt", "a&b.pt", "a;b.pt", "a{b}.pt", "=x.pt", "!.pt", "*.pt", "x\\"),
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_taken_as_they_stand(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, in a list, and with a comma in the name of a file that exists; other keys keep Hydra's grammar."""
    monkeypatch.chdir(tmp_path)
    parser = OverridesParser.create()

    def values(text: str) -> list[object]:
        (word,) = as_hydra_reads([f"model.upstream.weights={text}"])
        override = parser.parse_override(word)
        if not override.is_sweep_override():
            return [override.value()]
        return [parser.parse_override(f"key={value}").value() for value in override.sweep_string_iterator()]

    assert values(path) == [path]
    assert values(f"DEFAULT,{path},null") == ["DEFAULT", path, None]
    file = f"{path},{path}".replace("/", "_")
    Path(file).touch()
    assert values(file) == [file]
    (typed,) = shlex.split(for_shell("key", path))
    assert parser.parse_override(typed).value() == path


def test_paths_have_their_short_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The home directory and variables; what Hydra means by quotes and functions stays."""
    monkeypatch.setenv("HOME", "/home/some one")
    for text, expected in {
        "~/a.pt": "/home/some one/a.pt",
        "$HOME/a": "/home/some one/a",
        "'a b.pt'": "'a b.pt'",
        "choice(a,b)": "choice(a,b)",
        "${oc.env:HOME}": "${oc.env:HOME}",
        "null": "null",
        "": "",
    }.items():
        assert as_hydra_reads(["-m", f"dataset.root={text}"]) == ["-m", f"dataset.root={expected}"]
    assert as_hydra_reads(["seed=007", "alpha=1e3"]) == ["seed=007", "alpha=1e3"]


def test_nearest_name() -> None:
    """A key by its last part alone, all that are equally near, nothing where nothing is near."""
    keys = ["alpha", "transfer.alpha", "task.upstream.steps", "task.downstream.steps"]
    assert did_you_mean("steps", keys) == "; did you mean task.upstream.steps or task.downstream.steps?"
    assert did_you_mean("alpa", keys) == "; did you mean alpha?"
    assert did_you_mean("transfer.alpa", keys) == "; did you mean transfer.alpha?"
    assert did_you_mean("momentum", keys) == ""


def test_preview(command: Fixture, tmp_path: Path, runs_of: Fixture) -> None:
    """What is shared counts once, what is in the store is reused, a refused job is named, nothing is trained."""
    first = command("-m", "alpha=0.25,0.5,2", "dry_run=true")
    assert first.splitlines() == [
        "3 jobs: 4 different trainings, 0 reused, 4 to train.",
        "Refused, the others run: alpha=2: must be a number from 0 to 1",
        "No estimate of time: nothing of this size has been trained in this store.",
    ]
    assert runs_of(tmp_path) == {}

    sweep = command("-m", "alpha=0.25,0.5")
    assert "2 jobs: 4 different trainings, 0 reused, 4 to train." in sweep
    runs = runs_of(tmp_path)

    again = command("-m", "alpha=0.25,0.5,0.75", "seed=0,1", "dry_run=true").splitlines()
    assert again[0] == "6 jobs: 10 different trainings, 4 reused, 6 to train."
    assert again[1].startswith("Training takes about 1 s in all, judged by finished runs that differ in alpha. ")
    assert "upstream is trained: the nearest finished run, " in again[2]
    assert "differs in seed 0 -> 1" in again[2]
    assert command("alpha=0.25", "dry_run=true") == "1 job: 3 different trainings, 3 reused, 0 to train.\n"
    anew = command("alpha=0.25", "dry_run=true", "reuse=false")
    assert anew.startswith(
        "1 job: 3 different trainings, 0 reused, 3 to train.\nTraining takes about 1 s in all, judged"
    )
    assert "with the same settings" in anew
    large = command("dry_run=true", "task.curve_points=100000")
    assert "0 reused, 3 to train" in large
    assert "No estimate" in large
    groups = command("-m", "solver=leap,autograd", "dry_run=true")
    assert "2 jobs: 6 different trainings, 3 reused, 3 to train." in groups
    assert {stage: len(runs[stage]) for stage in runs} == {
        stage: len(found) for stage, found in runs_of(tmp_path).items()
    }


def test_process_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user that has none, nor a name: libraries get a folder beside the runs."""

    def getpwuid(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    configure_process()
    assert Path.home() == tmp_path / "mlruns" / "home"


# What is printed.


def test_printing_never_fails(tmp_path: Path) -> None:
    """Characters that a terminal lacks are spelled, boxes are ASCII; a closed pipe and a full disk are passed over."""
    for encoding, expected in {
        "ascii": "+- alpha sigma Gamma x || c\\xe9 ? -- |",
        "cp1252": "± alpha sigma Gamma × || c\\xe9 ? -- |",
        "utf-8": "± α σ Γ × ‖ c\\xe9 漢 ── │",
    }.items():
        with (tmp_path / encoding).open("w", encoding=encoding) as file:
            stream = protected(file)
            stream.write("± α σ Γ × ‖ c\udce9 漢 ── │")
            stream.flush()
        assert (tmp_path / encoding).read_text(encoding=encoding) == expected
    with (tmp_path / "table").open("w", encoding="ascii") as file:
        stream = protected(file)
        table = Table("± s.e.")
        table.add_row("0.5")
        Console(file=stream, width=40).print(table)
        stream.flush()
    assert (tmp_path / "table").read_text().splitlines()[0] == "+--------+"
    reader, writer = os.pipe()
    os.close(reader)
    for file in (os.fdopen(writer, "w"), open("/dev/full", "w")):  # noqa: SIM115
        stream = protected(file)
        print("lost", file=stream, flush=True)
        file.close()


def test_full_output_is_told_by_the_exit_code(tmp_path: Path, runs_of: Fixture) -> None:
    """The job is finished all the same, in a terminal without its characters and among odd variables of a launcher."""
    odd = {"PYTHONIOENCODING": "ascii", "SLURM_PROCID": "", "RANK": "x", "OMP_NUM_THREADS": "1", "SLURM_NNODES": ""}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, str(REPO / "train.py"), *TINY],
            cwd=tmp_path,
            env={**clean, **odd},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.returncode == os.EX_IOERR
    assert process.stderr == "all is kept, but stdout could not be written (No space left on device)\n"
    assert {run.info.status for runs in runs_of(tmp_path).values() for run in runs} == {"FINISHED"}


def test_one_task_starts_a_sweep(command: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of srun's tasks would open a sweep of its own, and their ranks would meet in none."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert "SLURM_STEP_NUM_TASKS=2: must be 1 where a sweep is started" in command("-m", "alpha=0,1")
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()
