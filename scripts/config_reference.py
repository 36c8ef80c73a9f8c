"""docs/config.md and docs/experiments.md from the configuration itself: what its comments say of keys and experiments.

python scripts/config_reference.py          (make docs)
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

_REPO = Path(__file__).parents[1]
_CONF = _REPO / "conf"
_GROUPS = ("dataset", "task", "model", "transfer", "optim", "solver", "trainer", "hydra/launcher")
_WIDTH = 60  # of commands, before what is said of them
_LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?: (?P<value>[^#]*?))?(?: *# (?P<comment>.*))?$")
_HIDDEN = ("_target_", "_partial_", "defaults", "hydra")
_COMMAND = re.compile(r"^ +(?P<command>python .*?|\S+=.*?)(?: {3,}\(?(?P<remark>.*?)\)?)?$")
_PARAGRAPHS = ("Paper", "Ours", "Direct simulation")  # what begins a new one


class Key(NamedTuple):
    """A line of a configuration file."""

    name: str
    """Dotted, from the root."""
    default: str
    comment: str


def reference() -> str:
    """The page of groups and keys, as Markdown."""
    lines = [
        "# Configuration",
        "",
        "Made from the comments in `conf/` by `make docs`; edit those. Any key is set on the command line,",
        "`key=value`, and any group by `group=option`; `python train.py --cfg job` prints what a command comes to.",
        "The options of `experiment` are in [experiments.md](experiments.md).",
        "",
        "## Root keys",
        "",
        *_table(_CONF / "config.yaml", prefix=""),
    ]
    advise = [key for key in _keys(_CONF / "experiment" / "advise.yaml", prefix="") if key.name.startswith("advise.")]
    lines += ["## `advise`", "", "With `experiment=advise`: see [choosing.md](choosing.md).", "", *_rows(advise)]
    for group in _GROUPS:
        lines += [f"## `{group}`", ""]
        for path in sorted((_CONF / group).glob("*.yaml")):
            lines += [
                f"### `{group}={path.stem}`",
                "",
                *_head(path),
                *_parents(path),
                *_table(path, prefix=f"{group.replace('/', '.')}."),
            ]
    return "\n".join(lines).rstrip() + "\n"


def experiments() -> str:
    """The page of experiments, as Markdown: what the head of each file says, its commands as such."""
    paths = sorted((_CONF / "experiment").glob("*.yaml"))
    lines = [
        "# Experiments",
        "",
        "Made from the heads of `conf/experiment/*.yaml` by `make docs`; edit those. An experiment is a file of",
        "differences from the default configuration; one that sweeps keys needs no `-m`. Any key can be set on top,",
        "`python train.py experiment=fig1c dataset.signal_norm=4`, a swept one, too, to other values. `scale=small`,",
        "the default, is made for two cores; `scale=full` is the whole grid, on images all data and a GPU's work.",
        "Tables and figures that we measured are in [results](results/README.md).",
        "",
        "| experiment | |",
        "|---|---|",
    ]
    lines += [f"| [`{path.stem}`](#{path.stem}) | {_cell(_comment(path)[0])} |" for path in paths]
    for path in paths:
        lines += ["", f"## {path.stem}", "", *_prose(_comment(path))]
    return "\n".join(lines) + "\n"


def _prose(comment: Sequence[str]) -> Iterator[str]:
    """A comment as Markdown: indented lines are commands, which its paragraphs stand around."""
    is_code = False
    for number, line in enumerate(comment):
        command = _COMMAND.match(line)
        if bool(command) != is_code:
            yield from ("", "```") if command else ("```", "")
        elif number and line.startswith(_PARAGRAPHS):
            yield ""
        is_code = bool(command)
        if command:
            remark = command["remark"]
            yield f"{command['command']:<{_WIDTH}}  # {remark}" if remark else command["command"]
        else:
            yield line.replace("<", "&lt;").replace("+-", "±")
    if is_code:
        yield "```"


def _comment(path: Path) -> list[str]:
    """What the file says of itself above its first key."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def _head(path: Path) -> list[str]:
    comment = _comment(path)
    return [*map(_cell, comment), ""] if comment else []


def _parents(path: Path) -> list[str]:
    """The options that this one starts from, which must be of the same group, and those of others that it brings."""
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    parents = content.get("defaults", [])
    names = [f"`{parent}`" for parent in parents if isinstance(parent, str)]
    brought = [
        f"`{group.removeprefix('override /')}={option}`"
        for parent in parents
        if isinstance(parent, dict)
        for group, option in parent.items()
    ]
    lines = [f"Brings {', '.join(brought)} with it.", ""] if brought else []
    return [*lines, f"Starts from {', '.join(names)}; differences:", ""] if names else lines


def _table(path: Path, prefix: str) -> list[str]:
    return _rows(list(_keys(path, prefix)))


def _rows(keys: Sequence[Key]) -> list[str]:
    if not keys:
        return []
    rows = [f"| `{key.name}` | `{key.default}` | {_cell(key.comment)} |" for key in keys]
    return ["| key | default | |", "|---|---|---|", *rows, ""]


def _keys(path: Path, prefix: str) -> Iterator[Key]:
    """The keys that have a value, as YAML sees them, with value and comment as they are written."""
    text = path.read_text(encoding="utf-8")
    prefix = "" if text.startswith("# @package _global_") else prefix
    written = _written(text)
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    explained = {name for name, (_, comment) in written.items() if comment}
    for name, value in _leaves(content, explained):
        default, comment = written.get(name, ("", ""))
        yield Key(f"{prefix}{name}", default or _in_one_line(value), comment)


def _leaves(content: Mapping[str, Any], explained: Set[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """The keys that have a value; what a comment explains as a whole is one."""
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and key not in _HIDDEN and name not in explained:
            yield from _leaves(value, explained, f"{name}.")
        elif key not in _HIDDEN:
            yield name, value


def _in_one_line(value: object) -> str:
    """A value as YAML, as short as a command line has it."""
    return json.dumps(value).replace('"', "")


def _written(text: str) -> dict[str, tuple[str, str]]:
    """Value and comment of each line with a key, by the key's dotted name."""
    above: list[str] = []
    written = {}
    for line in text.splitlines():
        if found := _LINE.match(line):
            del above[len(found["indent"]) // 2 :]
            above.append(found["key"])
            written[".".join(above)] = ((found["value"] or "").strip(), found["comment"] or "")
    return written


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


PAGES = {"config.md": reference, "experiments.md": experiments}
"""What each page is made by."""


def main() -> None:
    """Write both pages."""
    for name, page in PAGES.items():
        path = _REPO / "docs" / name
        path.write_text(page(), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
