"""The words of a command line as people type them: slips are told, paths are taken as they stand."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from paramtransfer.errors import ConfigError

_PATHS = ("root", "cache_dir", "weights")  # last parts of keys whose values are paths
_FUNCTION = re.compile(r"(choice|range|glob|interval|sort|shuffle|tag|extend_list)\(.*\)")


def overrides_in(words: Sequence[str]) -> list[str]:
    """The words that set something, without options and their values."""
    return list(get_args_parser().parse_known_args(list(words))[0].overrides)


def as_hydra_reads(words: Sequence[str]) -> list[str]:
    """The same command line, with what Hydra's grammar would take for something else in quotes.

    Raises:
        ConfigError: a setting is written with dashes or spaces; says how it is written.
    """
    settings = overrides_in(words)
    for slip, meant in _slips(words, settings):
        raise ConfigError(f"{slip}: a setting is one word without dashes, {meant}")
    return [_with_literal_path(word) if word in settings else word for word in words]


def quoted(text: str) -> str:
    """A string in Hydra's quotes."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def for_shell(key: str, text: str) -> str:
    """The word that sets a key to a text, as it is typed in a shell."""
    word = f"{key}={quoted(text)}"
    return shlex.quote(word) if re.search(r'[$"`\\!]', word) else f'"{word}"'


def _slips(words: Sequence[str], settings: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Settings that are written otherwise: how, and what is meant."""
    unknown = get_args_parser().parse_known_args(list(words))[1]
    for word in (word for word in unknown if word.startswith("-")):
        key, equals, value = word.lstrip("-").partition("=")
        following = words[words.index(word) + 1 :]
        if equals or not following or "=" in following[0]:
            yield word, f"{key}={value or 'value'}"
        yield f"{word} {following[0]}", f"{key}={following[0]}"
    text = " ".join(settings)
    for one, other in pairwise(settings):
        is_cut = one.endswith("=") if "=" not in other else other.startswith("=") and "=" not in one
        if is_cut or "=" in (one, other):
            (slip,) = re.findall(r"\S+\s*=\s*\S+", text[text.index(f"{one} {other}") :])[:1]
            yield slip, re.sub(r"\s*=\s*", "=", slip)


def _with_literal_path(word: str) -> str:
    """A setting whose value is a path, or several with commas between them, for Hydra."""
    key, _, text = word.partition("=")
    is_path = "." in key and key.rpartition(".")[2] in _PATHS
    if not is_path or text[:1] in "'\"" or ",'" in text or ',"' in text or _FUNCTION.fullmatch(text):
        return word
    if isinstance(_read(text), list | dict):
        return word
    parts = [text] if os.path.exists(_expanded(text)) else text.split(",")
    return f"{key}={','.join(map(_literal, parts))}"


def _literal(text: str) -> str:
    if text in ("", "null") or "${" in text:
        return text
    path = _expanded(text)
    return path if _read(path) == path and "\\" not in path else quoted(path)


def _expanded(text: str) -> str:
    return os.path.expanduser(os.path.expandvars(text))


def _read(text: str) -> object:
    """What Hydra's grammar makes of a value; None where it makes nothing."""
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
        return None if override.is_sweep_override() else override.value()
    except (HydraException, ValueError):
        return None
