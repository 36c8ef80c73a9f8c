"""What a process that died has left of a run: its points and its end, as far as they can be read."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from mlflow.entities import Metric

POINTS, END = "points.jsonl", "end.json"

log = logging.getLogger(__name__)


class End(TypedDict):
    """How a run ended."""

    status: str
    time: int
    """As MLflow counts it."""
    tags: dict[str, str]


def points_as_text(points: Sequence[Metric]) -> str:
    """What is appended to the file; its last line may be cut short."""
    lines = [json.dumps([point.key, point.value, point.timestamp, point.step]) for point in points]
    return "".join(f"\n{line}" for line in lines)


def read_points(folder: Path) -> list[Metric]:
    """Those that can be read; a line of the log for the others.

    Raises:
        OSError: the file cannot be read.
    """
    lines = list(filter(None, _text(folder / POINTS).splitlines()))
    points = [point for line in lines if (point := _point(line)) is not None]
    if len(points) < len(lines):
        log.warning(f"{folder / POINTS}: {len(lines) - len(points)} lines cannot be read and are passed over")
    return points


def read_end(folder: Path) -> End | None:
    """How the run ended; None if nothing says it, or nothing that can be read.

    Raises:
        OSError: the file cannot be read.
    """
    text = _text(folder / END)
    match _json(text):
        case {"status": str(status), "time": int(time), "tags": dict(tags)}:
            return End(status=status, time=time, tags=tags)
    if (folder / END).exists():
        log.warning(f"{folder / END}: cannot be read and is passed over")
    return None


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _point(line: str) -> Metric | None:
    match _json(line):
        case [str(key), int() | float() as value, int(timestamp), int(step)]:
            return Metric(key, value, timestamp, step)
    return None


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
