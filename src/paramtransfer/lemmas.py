"""What the proofs state of a training (Appendices A to E), to be held against a run with `task.training.dynamics=true`.

Constants are taken as 1, as in `paramtransfer.theory`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from paramtransfer.theory import Setting, Values, quotient


def noise_norm_share(noise_sq_norms: ArrayLike, dim: float, sigma: float) -> Values:
    """Lemma C.1: share of the samples with σ² d/2 ≤ ‖ξ‖² ≤ 3 σ² d/2, all of them with high probability.

    `noise_sq_norms` (..., N) holds ‖ξ‖², the result (...) the shares.
    """
    relative = np.asarray(noise_sq_norms) / (sigma**2 * dim)
    share: Values = np.mean((relative >= 0.5) & (relative <= 1.5), axis=-1)
    return share


def active_share(active_counts: ArrayLike, filters: float) -> Values:
    """Lemma C.3: share of the samples on which at least 0.4 m filters with j = y are active at initialization.

    `active_counts` (..., N) counts those filters, out of m = `filters`, the result (...) holds the shares. The lemma
    says all samples, with high probability; `active_share_by_chance` is what fresh filters have on average.
    """
    share: Values = np.mean(5 * np.asarray(active_counts) >= 2 * filters, axis=-1)
    return share


def active_share_by_chance(filters: float) -> Values:
    """Lemma C.3: the share of samples on which at least 0.4 m of m fresh filters are active, each half the time.

    0.92 at m = 40, 0.87 at m = 20; filters of one stage are independent given the sample, inherited ones are not.
    """
    from scipy.stats import binom  # imported here alone: half a second that most jobs do not need

    share: Values = binom.sf(np.ceil(2 * np.asarray(filters) / 5) - 1, filters, 0.5)
    return share


def noise_memorization(steps: ArrayLike, s: Setting, task: Literal[1, 2], b: float = 1.0) -> Values:
    """Appendix A: the filter mean of ρ̄ after `steps` steps on `task`, in the continuous approximation.

    The solution x of x + b eˣ = c t + b with c = η σ² d |S|/(N m²), |S| = m/2 filters active on a sample: noise
    memorization that starts at 0. Written with Wright's omega function, W(eᶻ) of Lambert's W: as b eˣ = ω(c t + b +
    log b), nothing overflows however large t is. `steps` broadcasts with the setting.
    """
    from scipy.special import wrightomega  # imported here alone: half a second that most jobs do not need

    sigma, num = {1: (s.sigma1, s.num1), 2: (s.sigma2, s.num2)}[task]
    rate = s.lr * sigma**2 * s.dim / (2 * num * s.filters)
    memorized: Values = np.log(wrightomega(rate * np.asarray(steps) + b + math.log(b))) - math.log(b)
    return memorized


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One thing that the proofs say of a training, held against a run."""

    name: str
    """What is bounded, and how."""
    source: str
    """Where the paper says it."""
    measured: float
    """The run's value, for the worst filter, sample and replicate."""
    bound: float
    """What the paper allows, constants taken as 1."""
    holds: bool
    """Whether the run keeps to it."""


def statements(s: Setting, observed: dict[str, float]) -> list[Statement]:
    """What the proofs say of a training on task 2 of `s`, held against its `dynamics/...` metrics.

    They presuppose Condition 4.1. `kappa` is our reading of κ_D, see `paramtransfer.training.dynamics`.
    """
    log_steps = math.log(max(float(s.steps1), float(s.steps2)))
    learning = float(quotient(s.num2, s.sigma2**2 * s.dim)) * log_steps
    at_most = [
        ("ρ̄ ≤ 4 log T*", "Prop. D.1, E.1", "rho_bar_max", 4 * log_steps),
        ("γ ≲ N‖u‖²/(σ² d) log T*", "Prop. D.1, E.1", "gamma_max", learning * float(s.u_norm) ** 2),
        ("γ_k ≲ N‖v_k‖²/(σ² d) log T*", "Prop. D.1, E.1", "gamma_k_max", learning * float(s.v2_norm) ** 2),
        ("ratio of sample gradients ≤ 13", "Lemma E.5", "gradient_ratio", 13.0),
        ("κ_D < 0.1", "Prop. D.1, E.1", "kappa", 0.1),
    ]
    at_least = [
        ("ρ̄ ≥ 0", "Prop. D.1, E.1", "rho_bar_min", 0.0),
        ("ρ̲ ≥ −4 log T*", "Prop. D.1, E.1", "rho_under_min", -4 * log_steps),
        ("j⟨w, s⟩ never falls", "App. D, E", "signal_step_min", 0.0),
        ("σ²d/2 ≤ ‖ξ‖² ≤ 3σ²d/2, share of samples", "Lemma C.1", "noise_norm_share", 1.0),
        ("0.4 m active filters with j = y, share of samples", "Lemma C.3", "active_share", 1.0),
    ]
    return [
        Statement(name=name, source=source, measured=value, bound=bound, holds=sign * value <= sign * bound)
        for sign, group in ((1, at_most), (-1, at_least))
        for name, source, key, bound in group
        for value in [observed[f"dynamics/{key}"]]
    ]
