"""What identifies a stage's result: its settings, the code that computes it and the versions below that code."""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_CODE = ("dataset", "task", "model", "transfer", "training", "randomness.py", "estimates.py", "stage.py", "theory.py")
_VERSIONS = ("numpy", "torch", "torchvision", "timm")


def fingerprint(settings: Mapping[str, Any], *, device: str, own_sources: Iterable[Path] = ()) -> str:
    """A hash of all that can change the stage's result.

    Args:
        settings: the configuration keys that the stage depends on, flattened.
        device: `cpu` or `cuda`.
        own_sources: source files of the user's classes that the configuration names.
    """
    package = [_code_hash(path) for name in _CODE for path in _sources(_PACKAGE / name)]
    content = {
        "settings": dict(settings),
        "device": device,
        "code": package + [_code_hash(path) for path in sorted(own_sources)],
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _VERSIONS}


@cache
def _sources(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


@cache
def _code_hash(path: Path) -> str:
    """Read once: what is edited while a sweep runs is not what the process has loaded."""
    return code_hash(path.read_text(encoding="utf-8"))


def code_hash(source: str) -> str:
    """A hash of what the code does: comments, docstrings and layout do not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        # Docstrings, and the strings that stand below a field.
        node.body = [line for line in node.body if not _is_string(line)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_string(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
