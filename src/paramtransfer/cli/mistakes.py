"""What is wrong with a command line, in one sentence, with the nearest name that exists."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from paramtransfer.checks import did_you_mean


def explain(error: CompactHydraException, conf: Path) -> str:
    """Hydra's word on a command line that it refuses, shortened to what the user can do.

    Args:
        error: what Hydra raised.
        conf: the folder of the configuration.
    """
    match error:
        case OverrideParseException(override=override):
            return f"{override}: must be key=value, with quotes where the value has brackets or spaces"
        case MissingConfigException(missing_cfg_file=str(path), options=[*options]) if options:
            group, _, name = path.rpartition("/")
            return f"{group}={name}: must be one of {', '.join(options)}{did_you_mean(name, options)}"
    for key, names in _unknown_keys(conf):
        return f"{key}: no such key or group{did_you_mean(key, names)}; --help lists them"
    return " ".join(str(error).split())


def _unknown_keys(conf: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """The keys of this command line that do not exist beside its groups, with the names that do."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    known, words = parser.parse_known_args(sys.argv[1:])
    overrides = OverridesParser.create().parse_overrides([word for word in words if not word.startswith("-")])
    GlobalHydra.instance().clear()  # a sweep is refused while Hydra still runs
    with initialize_config_dir(str(conf), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = [group for group in loader.list_groups("") if group != "hydra"]
        search = [f"hydra.searchpath=[file://{Path(known.config_dir).absolute()}]"] if known.config_dir else []
        chosen = [_one_option(override) for override in overrides if override.key_or_group in groups]
        config = compose("config", overrides=search)
        with suppress(HydraException):
            config = compose("config", overrides=[*search, *chosen])
        names = list(dict.fromkeys([*groups, *_keys(config)]))
        for override in overrides:
            is_group = bool(loader.get_group_options(override.key_or_group))
            if override.type is not None and not (override.is_add() or is_group or override.key_or_group in names):
                yield override.key_or_group, names


def _one_option(override: Override) -> str:
    """A group with its option; of a sweep over options the first."""
    if override.is_sweep_override():
        option = next(iter(map(str, override.sweep_string_iterator())))
    else:
        option = override.get_value_element_as_str()
    return f"{override.key_or_group}={option}"


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        yield f"{prefix}{key}"
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if isinstance(value, DictConfig):
            yield from _keys(value, f"{prefix}{key}.")
