"""Which code and packages a run was made with."""

import subprocess
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

_SOURCE = Path(__file__).parent


@cache
def git_commit() -> str:
    """The commit of the checkout that this code lies in, or `unknown`."""
    return _git("rev-parse", "HEAD").strip() or "unknown"


@cache
def git_diff() -> str:
    """What has changed since that commit."""
    return _git("diff", "HEAD")


@cache
def package_versions() -> str:
    """One `name==version` a line."""
    return "\n".join(sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()}, key=str.lower)) + "\n"


def _git(*arguments: str) -> str:
    try:
        command = ["git", "-C", str(_SOURCE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
