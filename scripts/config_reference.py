"""docs/config.md from the configuration itself: every group, option and key with its default and its comment.

python scripts/config_reference.py          (make docs)
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

_REPO = Path(__file__).parents[1]
_CONF = _REPO / "conf"
_GROUPS = ("dataset", "task", "model", "transfer", "optim", "solver", "trainer")
_LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?: (?P<value>[^#]*?))?(?: *# (?P<comment>.*))?$")
_HIDDEN = ("_target_", "_partial_", "defaults", "hydra")


class Key(NamedTuple):
    """A line of a configuration file."""

    name: str
    """Dotted, from the root."""
    default: str
    comment: str


def reference() -> str:
    """The page, as Markdown."""
    lines = [
        "# Configuration",
        "",
        "Made from the comments in `conf/` by `make docs`; edit those. Any key is set on the command line, ",
        "`key=value`, and any group by `group=option`; `python train.py --cfg job` prints what a command comes to.",
        "",
        "## Root keys",
        "",
        *_table(_CONF / "config.yaml", prefix=""),
    ]
    for group in _GROUPS:
        lines += [f"## `{group}`", ""]
        for path in sorted((_CONF / group).glob("*.yaml")):
            lines += [
                f"### `{group}={path.stem}`",
                "",
                *_head(path),
                *_parents(path),
                *_table(path, prefix=f"{group}."),
            ]
    lines += ["## `experiment`", "", "| option | shows |", "|---|---|"]
    for path in sorted((_CONF / "experiment").glob("*.yaml")):
        lines.append(f"| `{path.stem}` | {_cell(_comment(path)[0])} |")
    return "\n".join(lines) + "\n"


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
    """The options that this one starts from, which must be of the same group."""
    found = re.search(r"^defaults:(?: \[(.*)\]|((?:\n  - .*)+))$", path.read_text(encoding="utf-8"), re.MULTILINE)
    names = re.findall(r"\w+", found[1] or found[2]) if found else []
    return [f"Starts from {', '.join(f'`{name}`' for name in names)}; differences:", ""] if names else []


def _table(path: Path, prefix: str) -> list[str]:
    keys = list(_keys(path, prefix))
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
    for name, value in _leaves(content):
        default, comment = written.get(name, (str(value), ""))
        yield Key(f"{prefix}{name}", default, comment)


def _leaves(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and key not in _HIDDEN:
            yield from _leaves(value, f"{above}{key}.")
        elif key not in _HIDDEN:
            yield f"{above}{key}", value


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


def main() -> None:
    """Write the page."""
    path = _REPO / "docs" / "config.md"
    path.write_text(reference(), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
