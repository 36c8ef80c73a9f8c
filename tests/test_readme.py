"""The commands of the README and of docs/, as they stand there: on less, or counted, or composed.

A page is gone through from top to bottom in one folder, in this process: fewer steps, smaller networks, own images.
"""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow_server
import pytest
import report
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from image_files import write_folder

from paramtransfer.tracking.store import open_store

Fixture = Callable[..., Any]

REPO = Path(__file__).parents[1]
PAGES = {str(path.relative_to(REPO)): path.read_text(encoding="utf-8") for path in REPO.glob("docs/**/*.md")}
PAGES["README.md"] = (REPO / "README.md").read_text(encoding="utf-8")
GENERATED = "docs/experiments.md"  # each of its experiments is run by test_figures or test_image_jobs
SYNTHETIC = ["task.upstream.steps=4", "task.downstream.steps=4", "task.num_test=10", "replicates=2"]
GRID = ["dataset.u_norm=0,3", "alpha=0.5"]
IMAGES = [
    *("model.upstream.name=test_resnet", "model.downstream.name=test_resnet", "model.upstream.weights=mine.pt"),
    *("task.upstream.epochs=1", "task.downstream.epochs=1", "dataset.size=32"),
]
ADVICE = ["advise.seeds=2", "advise.rules={half: null, layers: null}"]
COUNTED = ("hydra/launcher=slurm", "trainer=ddp", "model=")  # too large to train, or test_launchers and test_ddp do


def blocks(page: str) -> list[tuple[str, str]]:
    """Language, if any, and text of each block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    """All that is no block of code."""
    return re.sub(r"^```\w*\n.*?^```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def typed(page: str) -> list[list[str]]:
    """The words of each command in the blocks that have no language."""
    lines = "".join(text for language, text in blocks(page) if not language).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def mentioned(page: str) -> Iterator[list[str]]:
    """What text and tables name as a command, and what experiments.md has in blocks."""
    for code in re.findall(r"(?<!`)`((?:python train\.py|experiment=)[^`]*)`", prose(page)):
        yield shlex.split(code.removeprefix("python train.py"))
    if page == GENERATED:
        yield from (words[2:] for words in typed(page))


@pytest.mark.parametrize("page", sorted({page for page in PAGES if typed(page)} - {GENERATED}))
def test_page_does_what_it_says(
    page: str, tmp_path: Path, run_here: Fixture, runs_of: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command ends well, and so does every run that it leaves; a sweep comes to what the page says."""
    for folder, number in (("photos", 12), ("other_photos", 13)):  # a copy would be refused
        write_folder(tmp_path / folder, train=number)
    weights = timm.create_model("test_resnet", num_classes=4).state_dict()
    for name in ("mine.pt", "other.pt"):
        torch.save(weights, tmp_path / name)
    for _, text in blocks(page):
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            (tmp_path / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / named[1]).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)  # the README's PYTHONPATH=.
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    printed = ""
    for words in typed(page):
        if "train.py" in words:
            arguments = words[words.index("train.py") + 1 :]
            process = run_here(tmp_path, *arguments, *on_less(arguments), tiny=[])
            assert process.returncode == 0, (words, process.stderr)
            printed += process.stdout
        elif words[:2] == ["python", "scripts/report.py"]:
            monkeypatch.setattr("sys.argv", words[1:])
            open_store.cache_clear()
            report.main()
        elif words[:2] == ["mlflow", "server"]:
            as_tests_start_it = set(re.findall(r'"(--[\w-]+)"', Path(mlflow_server.__file__).read_text()))
            assert {word for word in words if word.startswith("--")} <= as_tests_start_it
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}: ", (REPO / "Makefile").read_text(), re.MULTILINE)
        else:
            assert words[0] == "export", f"nothing here runs {words}"
    sys.modules.pop("mine", None)
    for line in re.findall(r"^\d+ jobs: .*", PAGES[page], re.MULTILINE):
        assert line in printed
    assert {run.info.status for runs in runs_of(tmp_path).values() for run in runs} <= {"FINISHED"}


def on_less(arguments: list[str]) -> list[str]:
    """What makes a command short, without changing a key that it sets."""
    if any(word.startswith(COUNTED) for word in arguments):
        return ["dry_run=true"]
    keys = [word.partition("=")[0] for word in arguments]
    small = IMAGES if "dataset.root" in keys else SYNTHETIC + GRID * ("experiment=fig1c" in arguments)
    if "experiment=advise" in arguments:
        small = [*(value for value in small if not value.startswith("model.upstream.weights")), *ADVICE]
    from_hub = [word for word in arguments if re.match(r"\S*(weights|from)=.*DEFAULT", word)]
    offline = [word.replace("DEFAULT", "other.pt") for word in from_hub]
    return [*(value for value in small if value.partition("=")[0] not in keys), *offline, "trainer.progress=false"]


def test_every_command_that_is_mentioned_composes() -> None:
    """Groups, options and keys exist, in the first and in the last job of a sweep."""
    commands = {tuple(words) for page in PAGES for words in mentioned(page)}
    assert len(commands) > 30
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        for words in commands:
            overrides = OverridesParser.create().parse_overrides([word for word in words if "=" in word])
            (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
            for job in (jobs[0], jobs[-1]):
                compose("config", job)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    """Files, headings and pictures that a page links to, and files of the project that it names."""
    text = prose(page)
    folder = (REPO / page).parent
    for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
        path, _, anchor = link.partition("#")
        target = folder / path if path else REPO / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], link
    roots = (REPO, REPO / "src" / "paramtransfer", folder)
    for name in re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|jinja)|(?:\w+/)+\w+\.(?:yaml|md)|(?:src|conf)/[\w/]*)`", text):
        assert any((root / name).exists() for root in roots), name
