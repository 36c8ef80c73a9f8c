"""Which code and packages a run was made with."""

import subprocess
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

_CHECKOUT = Path(__file__).parents[3]
"""Where this package's own repository would be; another one that it lies in is somebody else's."""

_TOP = ("rev-parse", "--show-toplevel")


@cache
def git_commit() -> str:
    """The commit of the checkout that this code lies in, or `unknown`."""
    return _git("rev-parse", "HEAD").strip() or "unknown"


@cache
def git_diff() -> str:
    """What has changed since that commit."""
    return _git("diff", "--no-ext-diff", "--no-color", "HEAD")


@cache
def package_versions() -> str:
    """One `name==version` a line."""
    return "\n".join(sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()}, key=str.lower)) + "\n"


def _git(*arguments: str) -> str:
    try:
        return _output("git", *arguments) if Path(_output("git", *_TOP).strip()).samefile(_CHECKOUT) else ""
    except (OSError, subprocess.CalledProcessError):
        return ""


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, errors="replace", check=True).stdout
