"""The commands of the README, as they stand there, on less: fewer steps, smaller networks, images made here."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from image_files import write_folder

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SYNTHETIC = ["task.upstream.steps=4", "task.downstream.steps=4", "task.num_test=10", "trainer.progress=false"]
IMAGES = [
    *("model.upstream.name=test_resnet", "model.downstream.name=test_resnet", "model.upstream.weights=mine.pt"),
    *("task.downstream.epochs=1", "dataset.size=32", "trainer.progress=false"),
]


def commands(heading: str) -> list[str]:
    """What a part of the README says to type after `python train.py`."""
    (part,) = re.findall(rf"^## {heading}.*?$(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", part, re.DOTALL | re.MULTILINE)).replace("\\\n", "")
    return re.findall(r"^(?:\$ )?python train\.py (.*?)\s*(?:#.*)?$", blocks, re.MULTILINE)


THEORIST, PRACTITIONER, LAB = map(commands, ("For theorists", "For practitioners", "For labs"))


def test_each_path_is_found() -> None:
    """None of the three is empty, whatever becomes of the README's form."""
    assert [len(path) > 0 for path in (THEORIST, PRACTITIONER, LAB)] == [True] * 3


@pytest.mark.parametrize("command", THEORIST)
def test_theorist(command: str, train_here: Callable[..., str]) -> None:
    """Every command ends in a table or a figure, in the theory's words."""
    fewer = ["dataset.dim=50,100", "dataset.u_norm=1,2"] if "fig2" in command else []
    dynamics = ["task.training.dynamics=true"] if "dynamics" in command else []
    arguments = [*shlex.split(command), *SYNTHETIC, "replicates=2", *fewer, *dynamics]
    if "dry_run=true" in arguments:
        _only_counts(train_here, *arguments)
        return
    output = train_here(*arguments)
    assert "Compare the runs in the browser" in output
    assert "failed" not in output


@pytest.mark.parametrize("command", PRACTITIONER)
def test_practitioner(command: str, train_here: Callable[..., str], tmp_path: Path) -> None:
    """A folder of images and a checkpoint are all that is needed."""
    write_folder(tmp_path / "photos", train=12)
    weights = timm.create_model("test_resnet", num_classes=4).state_dict()
    torch.save(weights, tmp_path / "mine.pt")
    torch.save(weights, tmp_path / "other.pt")
    arguments = shlex.split(command.replace("DEFAULT", "other.pt"))  # no test may need the internet
    small = IMAGES if "weights=" not in command else [value for value in IMAGES if "weights=" not in value]
    output = train_here(*arguments, *small)
    assert ("inherited" if "plan_only" in command else "with transfer") in output
    assert "failed" not in output


@pytest.mark.parametrize("command", LAB)
def test_lab(command: str, train_here: Callable[..., str]) -> None:
    """The sweep is composed and counted; `test_launchers` runs one on a SLURM of its own."""
    _only_counts(train_here, *shlex.split(command), "dry_run=true")


def _only_counts(train_here: Callable[..., str], *arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        train_here(*arguments)
    assert ended.value.code == 0
