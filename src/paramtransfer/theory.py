"""The bounds and conditions of "Towards Understanding Feature Learning in Parameter Transfer" (arXiv 2509.22056).

Every function is pure and vectorised: the fields of a `Setting` may be arrays that broadcast, and so are the results
then. The paper leaves its constants open; all of them are taken as 1 here, so a threshold says "of this order".

A ratio x / 0 is infinite and 0 / 0 counts as 0: a vanishing numerator stands for no signal, nothing inherited or no
step taken, and no lack of noise makes up for that.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = float | NDArray[Any]
Flags = np.bool_ | NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Two tasks, a network and its training, as the theorems see them; each field is kept in double precision."""

    dim: Values
    """Dimension of a patch, d."""
    u_norm: Values
    """Norm of the universal signal, ‖u‖."""
    v1_norm: Values
    """Norm of the signal that only task 1 has, ‖v₁‖."""
    v2_norm: Values
    """Norm of the signal that only task 2 has, ‖v₂‖."""
    sigma1: Values
    """Standard deviation of one noise coordinate of task 1, σ₁."""
    sigma2: Values
    """Standard deviation of one noise coordinate of task 2, σ₂."""
    num1: Values
    """Training samples of task 1, N₁."""
    num2: Values
    """Training samples of task 2, N₂."""
    alpha: Values
    """Share of the filters that is inherited, α."""
    filters: Values
    """Filters for each sign, m."""
    init_std: Values
    """Standard deviation of a weight at initialization, σ₀."""
    lr: Values
    """Step size of gradient descent, η."""
    steps1: Values
    """Steps on task 1, T₁."""
    steps2: Values
    """Steps on task 2, T₂."""
    delta: Values = 0.05
    """Failure probability that the statements allow, δ; Theorem 4.2 holds with probability 1 − 2 δ."""

    def __post_init__(self) -> None:
        for field in fields(self):  # numpy's numbers give inf where Python's raise
            object.__setattr__(self, field.name, np.asarray(getattr(self, field.name), dtype=np.float64)[()])

    @property
    def s1_sq(self) -> Values:
        """Squared norm of task 1's whole signal, ‖s₁‖² = ‖u + v₁‖² with u ⟂ v₁."""
        return self.u_norm**2 + self.v1_norm**2

    @property
    def s2_sq(self) -> Values:
        """Squared norm of task 2's whole signal, ‖s₂‖² = ‖u + v₂‖² with u ⟂ v₂."""
        return self.u_norm**2 + self.v2_norm**2


def signal_term(s: Setting) -> Values:
    """Theorem 4.2: A = α² N₁² ‖u‖⁴/σ₁⁴ + N₂² ‖s₂‖⁴/σ₂⁴, what both tasks teach of task 2's signal."""
    upstream = quotient(s.alpha**2 * s.num1**2 * s.u_norm**4, s.sigma1**4)
    values: Values = upstream + quotient(s.num2**2 * s.s2_sq**2, s.sigma2**4)
    return values


def noise_term(s: Setting) -> Values:
    """Theorem 4.2: B = α² σ₂² N₁/σ₁² + N₂, what both tasks leave of noise; A/B is the largest d that is learnable."""
    values: Values = quotient(s.alpha**2 * s.sigma2**2 * s.num1, s.sigma1**2) + s.num2
    return values


def signal_to_threshold(s: Setting) -> Values:
    """Theorem 4.2: A / (B d), what decides the test error with transfer.

    A = α² N₁² ‖u‖⁴/σ₁⁴ + N₂² ‖s₂‖⁴/σ₂⁴ and B = α² σ₂² N₁/σ₁² + N₂. From 1 on the error is at most exp(−A/(B d)), see
    `error_bound`; up to 1 it is at least 0.1.

    Evaluated as the mean of N₁ ‖u‖⁴/(σ₁² σ₂² d) and `scratch_ratio`, weighted with α² N₁ σ₂² and N₂ σ₁², which is the
    same number and has the right limit where a noise is 0 (where both are: the limit for σ₁ = σ₂).
    """
    inherited = quotient(s.num1 * s.u_norm**4, s.sigma1**2 * s.sigma2**2 * s.dim)
    weight = s.alpha**2 * s.num1 * s.sigma2**2
    share = quotient(weight, weight + s.num2 * s.sigma1**2)
    return _product(share, inherited) + _product(1 - share, scratch_ratio(s))


def scratch_ratio(s: Setting) -> Values:
    """Theorem 4.3: N₂ ‖s₂‖⁴/(σ₂⁴ d), what decides the test error without transfer.

    From 1 on the error is at most exp(−ratio), see `error_bound`; up to 1 it is at least 0.1.
    """
    return quotient(s.num2 * s.s2_sq**2, s.sigma2**4 * s.dim)


def error_bound(ratio: Values) -> Values:
    """Theorems 4.2 and 4.3: exp(−ratio), the most the test error can be; 1, no bound, where the ratio is below 1.

    `ratio` is `signal_to_threshold` with transfer, `scratch_ratio` without.
    """
    bound: Values = np.where(np.greater_equal(ratio, 1), np.exp(np.negative(ratio)), 1.0)[()]
    return bound


def gamma(s: Setting) -> Values:
    """Proposition 4.4: Γ = α² N₁ ‖u‖⁴/(σ₁² σ₂² d), the universal signal that is inherited over the noise it meets.

    Γ large and `scratch_ratio` below 1: transfer is near-optimal where training from scratch is not. Sufficient only.
    From a `scratch_ratio` of 1 on, the proposition calls both near-optimal.
    """
    return quotient(s.alpha**2 * s.num1 * s.u_norm**4, s.sigma1**2 * s.sigma2**2 * s.dim)


def negative_transfer(s: Setting) -> Flags:
    """Proposition 4.4: whether ‖s₂‖²/‖u‖² ≥ α N₁ σ₂²/(N₂ σ₁²) ≥ 1, where transfer is predicted to harm.

    Multiplied out, so that ‖u‖ = 0 is covered. Never where α N₁ σ₂² = 0: nothing is inherited, or task 2 has no noise.
    """
    inherited = s.alpha * s.num1 * s.sigma2**2
    own = s.num2 * s.sigma1**2
    weak_signal = np.greater_equal(s.s2_sq * own, inherited * s.u_norm**2)
    harmful: Flags = weak_signal & np.greater_equal(inherited, own) & np.greater(inherited, 0)
    return harmful


def shrunk(s: Setting, scale: Values) -> Setting:
    """Ours, not the paper's: how the theorems see c = `scale` times the best rank-1 approximation of what is inherited.

    Of the m filters of a sign it keeps what they share: the mean γ of their signal learning and the mean ρ̄ of their
    memorization of each of task 1's N₁ noises. What differs among them, their initialization first, is dropped; Theorem
    4.2 neglects it. Both are multiplied by c, which takes α's place: A = (c α)² N₁² ‖u‖⁴/σ₁⁴ + N₂² ‖s₂‖⁴/σ₂⁴ and
    B = (c α)² σ₂² N₁/σ₁² + N₂, also where c α is above 1.
    """
    return replace(s, alpha=scale * s.alpha)


def shrinking_helps(s: Setting) -> Flags:
    """Ours: whether A/(B d) grows as c falls (see `shrunk`), N₁ ‖u‖⁴/(σ₁² σ₂²) < N₂ ‖s₂‖⁴/σ₂⁴.

    A/(B d) is a mean of the two, weighted with (c α)² N₁ σ₂² and N₂ σ₁²: the less the inherited part is worth than what
    task 2 teaches itself, the less of it should be taken. For ‖s₁‖ = ‖s₂‖ and σ₁ = σ₂ that is ‖u‖/‖s₂‖ < (N₂/N₁)^(1/4).
    """
    inherited = quotient(s.num1 * s.u_norm**4, s.sigma1**2 * s.sigma2**2)
    helps: Flags = np.less(inherited, quotient(s.num2 * s.s2_sq**2, s.sigma2**4))
    return helps


def condition(s: Setting) -> dict[str, Values]:
    """Condition 4.1, line by line, as ratios of which 1 or more means that the line holds.

    With n = max(N₁, N₂) and the worse of the two tasks in each line:
    `dim` d / max(n ‖s‖²/σ², n²), logarithms dropped; `filters` m / log(n/δ); `samples` n / log(m/δ);
    `signal` ‖s‖² / (σ² log(n/δ)); `init_std` 1 / (σ₀ max(σ d/√n, √log(m/δ) ‖s‖));
    `lr` 1 / (η max(σ² d^{3/2}/(n² m √log(m/δ)), σ² d/n, ‖s‖²/m)).
    """
    n = np.maximum(s.num1, s.num2)
    log_n, log_m = np.log(n / s.delta), np.log(s.filters / s.delta)
    signal_sq = np.maximum(s.s1_sq, s.s2_sq)
    sigma = np.maximum(s.sigma1, s.sigma2)
    snr1, snr2 = quotient(s.s1_sq, s.sigma1**2), quotient(s.s2_sq, s.sigma2**2)
    max_init_std = quotient(1, np.maximum(sigma * s.dim / np.sqrt(n), np.sqrt(log_m * signal_sq)))
    lr_noise = sigma**2 * np.maximum(s.dim**1.5 / (n**2 * s.filters * np.sqrt(log_m)), s.dim / n)
    max_lr = quotient(1, np.maximum(lr_noise, signal_sq / s.filters))
    return {
        "dim": quotient(s.dim, np.maximum(n * np.maximum(snr1, snr2), n**2)),
        "filters": quotient(s.filters, log_n),
        "samples": quotient(n, log_m),
        "signal": quotient(np.minimum(snr1, snr2), log_n),
        "init_std": quotient(max_init_std, s.init_std),
        "lr": quotient(max_lr, s.lr),
    }


def condition_holds(s: Setting) -> Flags:
    """Condition 4.1: whether all of its lines hold, which the theorems presuppose."""
    holds: Flags = np.minimum.reduce(np.broadcast_arrays(*condition(s).values())) >= 1
    return holds


def stopping_times(s: Setting, train_loss: float = 0.1) -> dict[str, Values]:
    """The steps taken over the steps that the theorems speak of.

    `upstream` T₁ / (N₁ m/(η σ₁² d)) and `downstream` T₂ / (N₂ m/(η σ₂² d)): Theorem E.12, of order 1 each.
    `downstream_loss` T₂ / (N₂ m/(η ε σ₂²)), ε = `train_loss`: Theorem 4.2, 1 or more for a training loss of at most ε.
    """
    return {
        "upstream": quotient(s.steps1 * s.lr * s.sigma1**2 * s.dim, s.num1 * s.filters),
        "downstream": quotient(s.steps2 * s.lr * s.sigma2**2 * s.dim, s.num2 * s.filters),
        "downstream_loss": quotient(s.steps2 * s.lr * train_loss * s.sigma2**2, s.num2 * s.filters),
    }


def metrics(s: Setting) -> dict[str, float]:
    """The bounds and conditions of a setting without arrays, named for an experiment tracker.

    Entries that are not finite are left out: ratios to a noise, step size or initialization of 0.
    """
    named = {
        "A": signal_term(s),
        "B": noise_term(s),
        "A_over_B": signal_to_threshold(s) * s.dim,
        "transfer_ratio": signal_to_threshold(s),
        "scratch_ratio": scratch_ratio(s),
        "gamma": gamma(s),
        "negative_transfer": negative_transfer(s),
        "shrinking_helps": shrinking_helps(s),
        "condition_holds": condition_holds(s),
        **{f"condition/{line}": ratio for line, ratio in condition(s).items()},
        **{f"steps/{stage}": ratio for stage, ratio in stopping_times(s).items()},
    }
    values = {f"theory/{name}": float(value) for name, value in named.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def verdict(s: Setting) -> str:
    """What the theorems predict for a setting without arrays, a line for each."""
    transfer, scratch = float(signal_to_threshold(s)), float(scratch_ratio(s))
    outcome = {
        (True, True): "both are predicted to be near-optimal",
        (True, False): "transfer is predicted to help",
        (False, True): "the statements disagree: by Theorem 4.2 the error with transfer is at least 0.1, "
        "by Proposition 4.4 both are near-optimal",
        (False, False): "neither is predicted to be near-optimal",
    }[transfer >= 1, scratch >= 1]
    lines = condition(s)
    failing = [name for name, ratio in lines.items() if ratio < 1]
    guarantee = f"holds in {len(lines) - len(failing)} of {len(lines)} lines"
    if failing:
        guarantee += f" (not: {', '.join(failing)}): no guarantee here"
    times = stopping_times(s)
    return "\n".join(
        [
            f"The theory, constants taken as 1: {outcome}.",
            f"  Theorem 4.2, with transfer: A/(B d) = {_text(transfer)}, {_predicted_error(transfer)}",
            f"  Theorem 4.3, without: N₂‖s₂‖⁴/(σ₂⁴ d) = {_text(scratch)}, {_predicted_error(scratch)}",
            f"  Proposition 4.4: Γ = {_text(gamma(s))}, "
            f"negative transfer is {'' if negative_transfer(s) else 'not '}predicted",
            f"  Theorem E.12: T₁ is {_text(times['upstream'])} and T₂ {_text(times['downstream'])} "
            "times the stopping time",
            f"  Condition 4.1 {guarantee}",
        ]
    )


def quotient(numerator: Values, denominator: Values) -> Values:
    """The quotient, with x / 0 = ∞ and 0 / 0 = 0."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        divided: Values = np.where(np.equal(numerator, 0), 0.0, np.divide(numerator, denominator))[()]
    return divided


def _product(weight: Values, value: Values) -> Values:
    """The product, with 0 · ∞ = 0."""
    with np.errstate(invalid="ignore"):
        product: Values = np.where(np.equal(weight, 0), 0.0, np.multiply(weight, value))[()]
    return product


def _text(value: Values) -> str:
    return f"{value:.3g}".replace("inf", "∞")


def _predicted_error(ratio: float) -> str:
    return f"error ≤ {_text(error_bound(ratio))}" if ratio >= 1 else "error ≥ 0.1"
