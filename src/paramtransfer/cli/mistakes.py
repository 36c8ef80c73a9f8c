"""What is wrong with a command line, in one sentence, with the nearest name that exists."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from paramtransfer.cli.words import for_shell, overrides_in
from paramtransfer.suggestions import did_you_mean


def explain(error: Exception, conf: Path) -> str:
    """Hydra's word on a command line that it refuses, shortened to what the user can do.

    Args:
        error: what Hydra raised.
        conf: the folder of the configuration.
    """
    words = overrides_in(sys.argv[1:])
    match error:
        case OverrideParseException(override=override):
            return _unreadable(str(override))
        case MissingConfigException(missing_cfg_file=str(path), options=[*options]) if options:
            return no_option(path, options)
        case MissingConfigException(missing_cfg_file=str(path)) if str(error).startswith("Cannot find primary config"):
            return f"--config-name={path}: must be config, or a file in the folder that --config-dir names"
    text = " ".join(str(error).split())
    if type(error).__module__.startswith("paramtransfer."):  # a job's own refusal
        return text
    for word in words:
        key = word.partition("=")[0]
        if f"'{word}'" in text and text.startswith("Ambiguous value"):
            return _unasked_sweep(word)
        if f"already at '{key.lstrip('+')}'" in text:
            return f"{word}: the key exists, and is set without a plus: {word.lstrip('+')}"
    for mistake in _wrong_words(conf):
        return mistake
    if found := re.match(r"Could not override '(\S+)'", text):
        key = getattr(error.__cause__, "full_key", None) or found[1]
        added = f", and +{key}=value adds one" if key != found[1] else ""
        return f"{key}: no such key beside the other settings; --help lists them{added}"
    return text


def no_option(path: str, options: Sequence[str]) -> str:
    """That a group has no such option.

    Args:
        path: group/option.
        options: that there are.
    """
    group, _, name = path.rpartition("/")
    return f"{group}={name}: must be one of {', '.join(options)}{did_you_mean(name, options)}"


def _unreadable(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or not key:
        return f"{word}: must be key=value"
    return f"{word}: must be key=value; brackets, quotes, commas or = in a value are typed {for_shell(key, value)}"


def _unasked_sweep(word: str) -> str:
    key, _, value = word.partition("=")
    whole, _, fraction = value.partition(",")
    decimal = f"{key}={whole}.{fraction} for one number, " if (whole + fraction).isdecimal() else ""
    one = for_shell(key, value)
    return f"{word}: must be one value: {decimal}-m {word} to try each of them, {one} where the commas belong to it"


def _wrong_words(conf: Path) -> Iterator[str]:
    """What is wrong with the keys and groups of this command line, one sentence each."""
    known = get_args_parser().parse_known_args(sys.argv[1:])[0]
    if known.config_dir and not Path(known.config_dir).is_dir():
        yield f"--config-dir={known.config_dir}: must be a folder"
        return
    GlobalHydra.instance().clear()  # a sweep is refused while Hydra still runs
    with initialize_config_dir(str(conf), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(known.overrides)
        groups = [group for group in loader.list_groups("") if group != "hydra"]
        search = [f"hydra.searchpath=[file://{Path(known.config_dir).absolute()}]"] if known.config_dir else []
        chosen = [_one_option(override) for override in overrides if override.key_or_group in groups]
        config = compose("config", overrides=search)
        with suppress(HydraException, ValueError):
            config = compose("config", overrides=[*search, *chosen])
        names = list(dict.fromkeys([*groups, *keys_in(config)]))
        for override in overrides:
            key, options = override.key_or_group, loader.get_group_options(override.key_or_group)
            is_known = override.is_add() or options or key in names or key.startswith("hydra.")
            if override.type is not None and not is_known:
                yield f"{key}: no such key or group{did_you_mean(key, names)}; --help lists them"
            if options and not override.is_sweep_override() and not isinstance(override.value(), str):
                yield f"{override.input_line}: must be one of {', '.join(options)}"


def _one_option(override: Override) -> str:
    """A group with its option; of a sweep over options the first."""
    if override.is_sweep_override():
        option = next(iter(map(str, override.sweep_string_iterator())))
    else:
        option = override.get_value_element_as_str()
    return f"{override.key_or_group}={option}"


def keys_in(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys, dotted; after a prefix."""
    for key in map(str, config):
        yield f"{prefix}{key}"
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if isinstance(value, DictConfig):
            yield from keys_in(value, f"{prefix}{key}.")
