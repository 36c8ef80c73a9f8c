"""The table of the benchmarks: times taken in turn, and the lines made of them."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch


class Times(NamedTuple):
    """Seconds of one thing."""

    ours: float
    peer: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table, as it is printed."""

    what: str
    ours: str
    peer: str
    ratio: str = ""
    wanted: str = ""
    good: bool | None = None


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, with all that it leaves the GPU to do."""
    _synchronise()
    started = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - started


def _synchronise() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def fastest(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> Times:
    """The minimum of each over several repeats, taken in turn."""
    times = [Times(seconds(ours), seconds(peer)) for _ in range(repeats)]
    return Times(min(time.ours for time in times), min(time.peer for time in times))


def faster(what: str, times: Times, *, at_least: float, aim: float) -> Line:
    """A line on how many times faster than the peer."""
    speedup = times.peer / times.ours
    return Line(
        what=what,
        ours=duration(times.ours),
        peer=duration(times.peer),
        ratio=f"{speedup:.1f} × faster",
        wanted=f"≥ {at_least:g} × (aim {aim:g})",
        good=speedup >= at_least,
    )


def at_most(what: str, times: Times, bound: float, *, percent: bool = False) -> Line:
    """A line on ours / peer, as a factor or as a part of a whole."""
    ratio = times.ours / times.peer
    return Line(
        what=what,
        ours=duration(times.ours),
        peer=duration(times.peer),
        ratio=f"{ratio:.0%}" if percent else f"{ratio:.2f} ×",
        wanted=f"≤ {bound:.0%}" if percent else f"≤ {bound:g} ×",
        good=ratio <= bound,
    )


def duration(value: float) -> str:
    """Seconds in a readable unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.0f} µs"


def hardware(device: str) -> str:
    """What the times were measured on."""
    cpu_info = Path("/proc/cpuinfo")
    models = cpu_info.read_text().partition("model name")[2].splitlines() if cpu_info.exists() else []
    cpu = models[0].lstrip("\t :") if models else platform.processor()
    load = os.getloadavg()[0]
    machine = f"{cpu}, {os.cpu_count()} cores, load {load:.1f} at the start"
    gpu = f"; {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{machine}{gpu}; torch {torch.__version__}, {torch.get_num_threads()} threads; device {device}"
