"""Signal learning and noise memorization against gradient steps, held against the proofs."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from paramtransfer import theory
from paramtransfer.figures import style
from paramtransfer.figures.drawing import Drawing, SweepData
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


class Dynamics:
    """A panel for each stage of the sweep's first job; a table of what the proofs state and whether it holds."""

    keys = None

    def __call__(self, data: SweepData) -> Drawing:
        row = data.table.iloc[0]
        stages = {stage: title for stage, title in _TITLES.items() if f"{stage}_run_id" in row}
        figure, axes = style.panels(len(stages))
        curves, statements = [], []
        for axis, (stage, title) in zip(axes, stages.items(), strict=True):
            run_id = row[f"{stage}_run_id"]
            for colour, (name, label, line) in zip(style.COLOURS, _CURVES, strict=False):
                curve = data.history(run_id, f"dynamics/{name}")
                axis.plot(curve.index, curve, line, color=colour, label=label)
                curves.append(curve.rename_axis("step").rename("value").reset_index().assign(stage=stage, curve=name))
            axis.set_yscale("symlog", linthresh=0.01)  # signal learning is small beside memorization
            axis.set_title(title)
            axis.set_xlabel("gradient steps")
            statements += self._statements(data, stage, run_id)
        axes[0].set_ylabel("coefficient (Lemma B.2)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_CURVES))
        notes = [
            f"{'holds ' if row['holds'] else 'FAILS '} {row['stage']}: {row['name']} ({row['source']}): "
            f"measured {row['measured']:.3g}, bound {row['bound']:.3g}"
            for row in sorted(statements, key=lambda row: bool(row["holds"]))
        ]
        notes.insert(
            0, f"{sum(row['holds'] for row in statements)} of {len(statements)} statements of the proofs hold:"
        )
        if "upstream" in stages:
            notes.append(self._inherited(data, row["upstream_run_id"]))
        tables = {"curves": pd.concat(curves), "statements": pd.DataFrame(statements)}
        return Drawing(figures={"figure": figure}, tables=tables, notes=notes)

    def _inherited(self, data: SweepData, run_id: str) -> str:
        gamma, gamma_1, rho_bar = (
            data.history(run_id, f"dynamics/{name}").iloc[-1] for name in ("gamma", "gamma_k", "rho_bar")
        )
        return (
            f"inherited with each filter, on average: γ = {gamma:.3g} along u, γ₁ = {gamma_1:.3g} along v₁, "
            f"ρ̄ = {rho_bar:.3g} of task 1's noise; in stage 2 the coefficients start at 0"
        )

    def _statements(self, data: SweepData, stage: Stage, run_id: str) -> list[dict[str, Any]]:
        """Each statement at its worst over the whole training."""
        tasks: Any = data.job().tasks
        both = tasks.setting("downstream", alpha=0.0)
        alone = tasks.setting("upstream" if stage == "upstream" else "baseline", alpha=0.0)
        setting = replace(alone, steps1=both.steps1, steps2=both.steps2)
        observed = {
            f"dynamics/{name}": float(worst(data.history(run_id, f"dynamics/{name}")))
            for worst, names in _WORST.items()
            for name in names
        }
        return [{"stage": stage, **asdict(statement)} for statement in theory.statements(setting, observed)]
