"""What is wrong with a command line, in one sentence, with the nearest name that exists."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

_ALIKE = 0.6  # of SequenceMatcher: below it, a suggestion would be a guess
_SHOWN = 3


def explain(error: CompactHydraException, conf: Path) -> str:
    """Hydra's word on a command line that it refuses, shortened to what the user can do.

    Args:
        error: what Hydra raised.
        conf: the folder of the configuration.
    """
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: must be key=value, with quotes where the value has brackets or spaces"
    if option := re.search(r"Could not find '(?P<group>[^']+)/(?P<name>[^'/]+)'", text):
        options = re.findall(r"^\t([\w.-]+)$", text, re.MULTILINE)
        group, name = option["group"], option["name"]
        return f"{group}={name}: must be one of {', '.join(options)}{_suggestion(name, options)}"
    if key := re.search(r"Could not override '(?P<name>[^']+)'", text):
        return f"{key['name']}: no such key or group{_suggestion(key['name'], _names(conf))}; --help lists them"
    return " ".join(text.split())


def _suggestion(name: str, names: Sequence[str]) -> str:
    nearest = find_nearest(name, names)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def find_nearest(name: str, names: Sequence[str]) -> list[str]:
    """The names most like one, all that are equally near; a key may be given by its last parts alone."""
    parts = name.count(".") + 1
    scores = {
        other: (SequenceMatcher(None, name, ".".join(other.split(".")[-parts:])).ratio(), other.count(".") < parts)
        for other in names
    }
    best = max(scores.values(), default=(0.0, False))
    return [other for other, score in scores.items() if score == best and score[0] >= _ALIKE][:_SHOWN]


def _names(conf: Path) -> list[str]:
    """Groups and keys of the configuration with the options of this command line that exist."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    known, words = parser.parse_known_args(sys.argv[1:])
    search = [f"hydra.searchpath=[file://{Path(known.config_dir).absolute()}]"] if known.config_dir else []
    GlobalHydra.instance().clear()  # a sweep is refused while Hydra still runs
    with initialize_config_dir(str(conf), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = compose("config", overrides=search)
        for word in words:
            with suppress(HydraException):  # the mistake, or what a sweep takes apart
                config = compose("config", overrides=[*search, word])
                search.append(word)
        groups = [group for group in loader.list_groups("") if group != "hydra"]
    return [*groups, *_keys(config)]


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if isinstance(value, DictConfig):
            yield from _keys(value, f"{prefix}{key}.")
