"""docs/config.md says what conf/ says."""

from pathlib import Path
from typing import Any

import pytest
from config_reference import _keys, reference
from omegaconf import DictConfig, OmegaConf

REPO = Path(__file__).parents[1]
OPTIONS = sorted((REPO / "conf").glob("*/*.yaml"))


def test_reference_is_fresh() -> None:
    """The page is what its script makes of the configuration: run `make docs`."""
    assert (REPO / "docs" / "config.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("path", [path for path in OPTIONS if path.parent.name not in ("experiment", "help")], ids=str)
def test_every_key_is_in_the_reference(path: Path) -> None:
    """What the script reads line by line is what a YAML parser finds."""
    assert {key.name for key in _keys(path, "")} == set(_leaves(OmegaConf.load(path)))


def _leaves(config: Any, prefix: str = "") -> list[str]:
    names = []
    for key in config:
        value = config._get_node(key)
        if key in ("_target_", "_partial_", "defaults"):
            continue
        names += _leaves(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else [f"{prefix}{key}"]
    return names
