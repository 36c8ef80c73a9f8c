"""What docs/ has from comments and docstrings says what these say."""

import re
from pathlib import Path

import layout_reference
import pytest
from config_reference import PAGES
from test_layout import PLAN

REPO = Path(__file__).parents[1]
OPTIONS = [path for path in sorted((REPO / "conf").glob("*/*.yaml")) if path.parent.name not in ("experiment", "help")]
OPTIONS.append(REPO / "conf" / "experiment" / "advise.yaml")


@pytest.mark.parametrize("name", PAGES)
def test_page_is_fresh(name: str) -> None:
    """It is what its script makes of the configuration: run `make docs`."""
    assert (REPO / "docs" / name).read_text(encoding="utf-8") == PAGES[name]()


def test_list_of_modules_is_fresh() -> None:
    """It is what its script makes of the package, in the order that imports keep to: run `make docs`."""
    assert layout_reference.PAGE.read_text(encoding="utf-8") == layout_reference.page()
    assert [(package,) for package in layout_reference.PACKAGES] == list(PLAN[1:])


def test_no_word_of_an_experiments_head_is_lost() -> None:
    """The page has each file's head in a section of its own, word by word, whatever its form."""
    page = (REPO / "docs" / "experiments.md").read_text(encoding="utf-8").replace("&lt;", "<")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    heads = {
        path.stem: re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8").replace("# @package _global_\n", ""))
        for path in (REPO / "conf" / "experiment").glob("*.yaml")
    }
    for name, head in heads.items():
        assert head
        assert re.findall(r"\w+", sections.pop(name)) == re.findall(r"\w+", head[0])
    assert not sections


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_no_comment_of_a_key_is_lost(path: Path) -> None:
    """Every key that a file explains stands in the page with its explanation."""
    page = (REPO / "docs" / "config.md").read_text(encoding="utf-8").replace("\\|", "|").replace("&lt;", "<")
    text = path.read_text(encoding="utf-8").partition("\nadvise:")
    for key, comment in re.findall(r"^ *(\w+):.*? # (.*)$", text[2] or text[0], re.MULTILINE):
        assert re.search(rf"{key}` \| `.+` \| {re.escape(comment)} \|$", page, re.MULTILINE), (key, comment)
