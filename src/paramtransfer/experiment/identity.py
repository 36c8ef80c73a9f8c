"""What identifies a stage's result: what its objects say they depend on, the code behind them, versions.

The code is every module that the stage's classes reach by imports, this package's and the user's; what lies in
site-packages counts by version. Comments, docstrings and what only prints (`__str__`) do not count, and neither do
modules of names, of signals and of values that derive from stored results: a changed formula there repeats no training.
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Protocol, runtime_checkable

from paramtransfer.stage import Stage

Value = None | bool | int | float | str | Sequence["Value"]

_PACKAGE = "paramtransfer"
_DERIVED = tuple(f"{_PACKAGE}.{name}" for name in ("theory", "lemmas", "statistics", "metrics", "interrupts"))
_HOW = tuple(f"{_PACKAGE}.trainer.{name}" for name in ("progress", "checkpoints", "ranks"))  # not what it computes
_VERSIONS = ("numpy", "torch", "torchvision", "timm", "pytorch-lightning")
_LIBRARIES = tuple({Path(path) for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))})


@runtime_checkable
class Depends(Protocol):
    """An object of a configuration group whose settings can change a result."""

    def identity(self, stage: Stage) -> Mapping[str, object]:
        """What the result of a stage depends on: keys of the group, plain values or mappings of such."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a stage's result depends on; two stages of one fingerprint have one result."""

    settings: Mapping[str, Value]
    """Configuration keys, flattened."""
    code: Mapping[str, str]
    """A hash of each module that can change the result, by name."""
    versions: Mapping[str, str]
    """Of the packages below."""
    own_sources: Mapping[str, str]
    """The user's own modules among the code, by file name, for the run's artifacts."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all of it."""
        return _hash(self.as_json())

    @property
    def hash_of_settings(self) -> str:
        """The same for two stages that differ in code or versions alone."""
        return _hash(json.dumps(self.settings, sort_keys=True))

    def as_json(self) -> str:
        """All but the own sources."""
        content = {"settings": self.settings, "code": self.code, "versions": self.versions}
        return json.dumps(content, sort_keys=True, indent=1)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def identify(settings: Mapping[str, object], classes: Iterable[object]) -> Identity:
    """The identity of a stage.

    Args:
        settings: what it depends on, by key; nested.
        classes: the classes and functions that compute it.

    Raises:
        ValueError: a setting that is no plain value; names its key.
    """
    files: dict[str, Path] = {}
    for made_by in classes:
        module = inspect.getmodule(made_by)
        if module is not None:
            _collect(module.__name__, files)
    own = {name: path for name, path in files.items() if not _is_ours(name)}
    return Identity(
        settings=dict(_flatten(settings)),
        code={name: _code_hash(path) for name, path in files.items()},
        versions=_versions(own),
        own_sources={f"{name}.py": _text(path) for name, path in own.items()},
    )


def contents(settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Hashes of the files that some settings name, with a key for each: who reads a file depends on what is in it."""
    for key, value in settings.items():
        if isinstance(value, str) and os.path.isfile(value):
            state = os.stat(value)
            yield f"{key}.content", _file_hash(os.path.abspath(value), state.st_mtime_ns, state.st_size)
        elif isinstance(value, list | tuple | Mapping):
            inner = value if isinstance(value, Mapping) else dict(enumerate(value))
            yield from contents({f"{key}.{name}": item for name, item in inner.items()})


@cache
def _file_hash(path: str, *_: int) -> str:
    """Read once in each state of the file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield from _flatten({str(number): item for number, item in enumerate(value)}, f"{key}.")
        else:
            yield key, _plain(key, value)


def _plain(key: str, value: object) -> Value:
    match value:
        case float() if value.is_integer():
            return int(value)  # 1.0 and 1 are the same setting
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(key, item) for item in value]
    raise ValueError(f"{key}: must be a plain value to identify a result by, not {type(value).__name__}")


def _versions(own: Mapping[str, Path]) -> dict[str, str]:
    """Of what this package computes with, and of the packages that the user's own modules import."""
    imported = {module.partition(".")[0] for name, path in own.items() for module in _imports(name, path)}
    installed = _distributions() if own else {}
    names = {*_VERSIONS, *(name for module in imported - {_PACKAGE} for name in installed.get(module, ()))}
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **{name: _version(name) for name in sorted(names)},
    }


_version, _distributions = cache(version), cache(packages_distributions)


def _collect(name: str, files: dict[str, Path]) -> None:
    """Add a module's file and those of all modules that it reaches, where they can change a result."""
    path = None if name in files or name in _DERIVED or name in _HOW else _source(name)
    if path is not None:
        files[name] = path
        for reached in (*_imports(name, path), name.rpartition(".")[0]):  # Python runs what a package begins with
            _collect(reached, files)


def _source(name: str) -> Path | None:
    """The file of a module of this package or of the user's; None for what a library brings."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):  # it need not be a module: from package import function
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    return path if _is_ours(name) or not any(path.is_relative_to(library) for library in _LIBRARIES) else None


def _is_ours(name: str) -> bool:
    return f"{name}.".startswith(f"{_PACKAGE}.")


@cache
def _imports(name: str, path: Path) -> list[str]:
    """The modules that a module imports, wherever in it; a name imported from a package may be one itself."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: dict[str, None] = {}
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    of_types = {id(inner) for node in nodes if _is_for_types(node) for inner in ast.walk(node)}
    for node in nodes:
        if id(node) in of_types:
            continue
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = importlib.util.resolve_name("." * node.level + module, package)
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found[inner if _source(inner) else module] = None
    return list(found)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@cache
def _text(path: Path) -> str:
    """Read once: what is edited while a sweep runs is not what the process has loaded."""
    return path.read_text(encoding="utf-8")


@cache
def _code_hash(path: Path) -> str:
    return code_hash(_text(path))


def code_hash(source: str) -> str:
    """A hash of what the code computes: comments, docstrings, layout and `__str__` do not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_silent(line)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_silent(line: ast.stmt) -> bool:
    """A docstring, a string below a field, an import for types, or what only prints."""
    if _is_for_types(line):
        return True
    if isinstance(line, ast.FunctionDef):
        return line.name in ("__str__", "__repr__")
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
