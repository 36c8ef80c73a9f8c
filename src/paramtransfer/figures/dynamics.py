"""Signal learning and noise memorization against gradient steps, held against the proofs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Protocol, runtime_checkable

import pandas as pd
from matplotlib.axes import Axes

from paramtransfer import lemmas, theory
from paramtransfer.figures import style
from paramtransfer.figures.drawing import Drawing, SweepData
from paramtransfer.metrics import dynamics
from paramtransfer.stage import Stage

_TITLES: dict[Stage, str] = {
    "upstream": "upstream (task 1)",
    "baseline": "task 2 without transfer",
    "downstream": "task 2 with transfer",
}
_CURVES = (
    ("rho_bar", r"$\overline{\rho}$, mean", "-"),
    ("rho_bar_theory", r"$\overline{\rho}$, continuous approximation", ":"),
    ("gamma", r"$\gamma$ (along $u$), mean", "-"),
    ("gamma_k", r"$\gamma_k$ (along $v_k$), mean", "-"),
    ("rho_under", r"$\underline{\rho}$, mean", "-"),
)

_WORST: dict[Callable[[pd.Series], float], tuple[str, ...]] = {
    max: ("rho_bar_max", "gamma_max", "gamma_k_max", "gradient_ratio", "kappa"),
    min: ("rho_bar_min", "rho_under_min", "signal_step_min", "noise_norm_share", "active_share"),
}


@runtime_checkable
class TasksOfTheory(Protocol):
    """Tasks that the theory speaks of."""

    def setting(self, stage: Stage, alpha: float) -> theory.Setting:
        """What it sees of one stage."""


class Dynamics:
    """A panel for each stage of the sweep's first job; a table of what the proofs state and whether it holds."""

    keys = None

    def __call__(self, data: SweepData) -> Drawing:
        tasks = data.job().tasks
        if not isinstance(tasks, TasksOfTheory):
            return Drawing(notes=[f"No figure: the theory says nothing of {type(tasks).__name__}."])
        row = data.table.iloc[0]
        run_ids = {stage: str(row[f"{stage}_run_id"]) for stage in _TITLES if f"{stage}_run_id" in row}
        figure, axes = style.panels(len(run_ids))
        curves = [self._draw(axis, data, stage, run_ids[stage]) for axis, stage in zip(axes, run_ids, strict=True)]
        axes[0].set_ylabel("coefficient (Lemma B.2)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_CURVES))
        statements = [
            (stage, statement)
            for stage, run_id in run_ids.items()
            for statement in lemmas.statements(_alone(tasks, stage), _worst(data, run_id))
        ]
        by_chance = lemmas.active_share_by_chance(float(tasks.setting("downstream", alpha=0.0).filters))
        notes = _notes(statements)
        notes.append(f"Lemma C.3: by chance alone, fresh filters satisfy it on {by_chance:.1%} of the samples")
        if "upstream" in run_ids:
            notes.append(self._inherited(data, run_ids["upstream"]))
        table = pd.DataFrame([{"stage": stage, **asdict(statement)} for stage, statement in statements])
        return Drawing(
            figures={"figure": figure}, tables={"curves": pd.concat(curves), "statements": table}, notes=notes
        )

    def _draw(self, axis: Axes, data: SweepData, stage: Stage, run_id: str) -> pd.DataFrame:
        """The curves of one stage, in the long form."""
        drawn = []
        for colour, (name, label, line) in zip(style.COLOURS, _CURVES, strict=False):
            curve = data.history(run_id, dynamics(name))
            axis.plot(curve.index, curve, line, color=colour, label=label)
            drawn.append(curve.rename_axis("step").rename("value").reset_index().assign(stage=stage, curve=name))
        axis.set_yscale("symlog", linthresh=0.01)  # signal learning is small beside memorization
        axis.set_title(_TITLES[stage])
        axis.set_xlabel("gradient steps")
        return pd.concat(drawn)

    def _inherited(self, data: SweepData, run_id: str) -> str:
        gamma, gamma_1, rho_bar = (
            data.history(run_id, dynamics(name)).iloc[-1] for name in ("gamma", "gamma_k", "rho_bar")
        )
        return (
            f"inherited with each filter, on average: γ = {gamma:.3g} along u, γ₁ = {gamma_1:.3g} along v₁, "
            f"ρ̄ = {rho_bar:.3g} of task 1's noise; in stage 2 the coefficients start at 0"
        )


def _alone(tasks: TasksOfTheory, stage: Stage) -> theory.Setting:
    """The task that a stage trains on, as task 2 of its own, over the steps T* of both stages."""
    both = tasks.setting("downstream", alpha=0.0)
    alone = tasks.setting("upstream" if stage == "upstream" else "baseline", alpha=0.0)
    return replace(alone, steps1=both.steps1, steps2=both.steps2)


def _worst(data: SweepData, run_id: str) -> dict[str, float]:
    """What the proofs bound, where it is worst over the whole training."""
    return {
        dynamics(name): float(worst(data.history(run_id, dynamics(name))))
        for worst, names in _WORST.items()
        for name in names
    }


def _notes(statements: Sequence[tuple[Stage, lemmas.Statement]]) -> list[str]:
    """How many statements hold, then each of them, those that fail first."""
    held = sum(statement.holds for _, statement in statements)
    return [
        f"{held} of {len(statements)} statements of the proofs hold:",
        *(
            f"{'holds ' if found.holds else 'FAILS '} {stage}: {found.name} ({found.source}): "
            f"measured {found.measured:.3g}, bound {found.bound:.3g}"
            for stage, found in sorted(statements, key=lambda each: bool(each[1].holds))
        ),
    ]
