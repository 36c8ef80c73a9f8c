"""How figures look: print size, labels with symbols, colours that colour-blind readers tell apart."""

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypedDict

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

_LABELS = {
    "alpha": r"inherited share $\alpha$",
    "dataset.dim": r"dimension $d$",
    "dataset.u_norm": r"universal signal $\|u\|$",
    "dataset.signal_norm": r"signal $\|u + v_k\|$",
    "dataset.v1_norm": r"task 1's own signal $\|v_1\|$",
    "dataset.v2_norm": r"task 2's own signal $\|v_2\|$",
    "model.filters": r"filters per sign $m$",
    "model.init_std": r"initialization $\sigma_0$",
    "optim.lr": r"step size $\eta$",
    "regime.n": r"size $n$",
    "regime.shared": r"shared part $\|u\|/\|s\|$",
    "task.upstream.num_samples": r"source samples $N_1$",
    "task.downstream.num_samples": r"target samples $N_2$",
    "task.upstream.noise": r"source noise $\sigma_{p,1}$",
    "task.downstream.noise": r"target noise $\sigma_{p,2}$",
    "task.upstream.steps": r"source steps $T_1$",
    "task.downstream.steps": r"target steps $T_2$",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito, 2008
BASELINE = "#555555"
OUTLINE: list[AbstractPathEffect] = [
    withStroke(linewidth=2, foreground="#333333")
]  # keeps white lines legible on any colour
_STYLE: "dict[RcKeyType, object]" = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


class Look(TypedDict, total=False):
    """How the points of one curve are drawn, in matplotlib's words."""

    color: str
    marker: str
    markerfacecolor: str
    linestyle: str
    label: str


def applied() -> AbstractContextManager[None]:
    """What is drawn and written to a file in this context looks as said here."""
    return matplotlib.rc_context(_STYLE)


def label(key: str) -> str:
    """A key as an axis label: in words with its symbol where it has one."""
    return _LABELS.get(key, key)


def symbol(key: str) -> str:
    """A key as it stands in a legend: its symbol where it has one."""
    return _LABELS.get(key, key).split()[-1]


def ordered(num: int) -> Sequence[str]:
    """As many colours, told apart by colour-blind readers; of many, from dark to light."""
    if num <= len(COLOURS):
        return COLOURS[:num]
    return [to_hex(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(0, 0.9, num))]


def panels(num: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure with that many panels: up to three side by side, more in rows of two."""
    columns = num if num <= 3 else 2
    rows = -(-num // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows))
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel()[:num])


def as_files(name: str, figure: Figure) -> dict[str, bytes]:
    """The figure as PNG and PDF, by file name."""
    contents = {}
    for suffix in ("png", "pdf"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix)
        contents[f"{name}.{suffix}"] = buffer.getvalue()
    return contents


def is_log(values: Sequence[float]) -> bool:
    """Whether values spread so far that an axis shows them better by their logarithms."""
    positive = np.asarray(values, dtype=float)
    return bool(positive.min() > 0 and positive.max() / positive.min() >= 30)
