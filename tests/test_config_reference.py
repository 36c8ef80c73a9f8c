"""docs/config.md says what conf/ says."""

import re
from pathlib import Path

import pytest
from config_reference import reference

REPO = Path(__file__).parents[1]
OPTIONS = [path for path in sorted((REPO / "conf").glob("*/*.yaml")) if path.parent.name not in ("experiment", "help")]


def test_reference_is_fresh() -> None:
    """The page is what its script makes of the configuration: run `make docs`."""
    assert (REPO / "docs" / "config.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_no_comment_of_a_key_is_lost(path: Path) -> None:
    """Every key that a file explains stands in the page with its explanation."""
    page = (REPO / "docs" / "config.md").read_text(encoding="utf-8").replace("\\|", "|").replace("&lt;", "<")
    for key, comment in re.findall(r"^ *(\w+):.*? # (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"{key}` \| `.*` \| {re.escape(comment)} \|$", page, re.MULTILINE), (key, comment)
