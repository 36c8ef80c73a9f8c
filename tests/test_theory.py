"""The theory against arithmetic done by hand, at its limits, and against what was measured."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from paramtransfer import lemmas, theory

pytestmark = pytest.mark.filterwarnings("error")

# ‖s₁‖² = 4, ‖s₂‖² = 5, σ₁² = 1, σ₂² = 4, n = 100, log(n/δ) = log 2000 = 7.600902, log(m/δ) = log 200 = 5.298317
SETTING = theory.Setting(
    dim=100,
    u_norm=2,
    v1_norm=0,
    v2_norm=1,
    sigma1=1,
    sigma2=2,
    num1=100,
    num2=40,
    alpha=0.5,
    filters=10,
    init_std=0.01,
    lr=0.1,
    steps1=200,
    steps2=400,
)
# A setting inside Condition 4.1: n = 1000, d = n², ‖s‖² = 32 σ².
INSIDE = replace(
    SETTING, dim=1e6, u_norm=32**0.5, v2_norm=0, sigma2=1, num1=1000, num2=1000, filters=40, init_std=1e-5, lr=5e-4
)


def test_theorems_by_hand() -> None:
    """Both theorems' ratios, the error they bound, and Γ agree with the arithmetic."""
    # A = 0.25 · 10000 · 16/1 + 1600 · 25/16 = 42500, B = 0.25 · 4 · 100/1 + 40 = 140
    assert theory.signal_term(SETTING) == pytest.approx(42500)
    assert theory.noise_term(SETTING) == pytest.approx(140)
    assert theory.signal_to_threshold(SETTING) == pytest.approx(42500 / (140 * 100))
    # 40 · 25/(16 · 100)
    assert theory.scratch_ratio(SETTING) == pytest.approx(0.625)
    # 0.25 · 100 · 16/(1 · 4 · 100)
    assert theory.gamma(SETTING) == pytest.approx(1)
    # exp(−2); no bound below 1
    assert theory.error_bound(np.array([2, 0.625])) == pytest.approx([0.135335, 1], abs=1e-6)


def test_shrunk_inheritance() -> None:
    """A/(B d) with c in front of what is inherited, by hand and by its slope on both sides of the crossing."""
    # c = 0.5 halves alpha: A = 0.0625 · 10000 · 16/1 + 1600 · 25/16 = 12500, B = 0.0625 · 4 · 100/1 + 40 = 65
    assert theory.signal_to_threshold(theory.shrunk(SETTING, 0.5)) == pytest.approx(12500 / (65 * 100))
    # Equal tasks but for N: the crossing is at ‖u‖/‖s‖ = (40/100)^(1/4) = 0.7953
    for share, helps in ((0.79, True), (0.80, False)):
        setting = replace(SETTING, sigma2=1, u_norm=share, v1_norm=(1 - share**2) ** 0.5, v2_norm=(1 - share**2) ** 0.5)
        assert bool(theory.shrinking_helps(setting)) is helps
        less, more = (theory.signal_to_threshold(theory.shrunk(setting, scale)) for scale in (0.9, 1.1))
        assert (less > more) is np.bool_(helps)


def test_negative_transfer_agrees_with_the_measured_sign() -> None:
    """At α = 0.5 Proposition 4.4 predicts harm exactly where simulations (10 seeds, d = 400, σ² = 15) show it."""
    u_norm = np.array([0.0, 1.0, 2.0, 3.0])
    setting = replace(
        SETTING,
        dim=400,
        u_norm=u_norm,
        v2_norm=np.sqrt(9 - u_norm**2),
        sigma1=15**0.5,
        sigma2=15**0.5,
        num1=1000,
        num2=100,
    )
    measured_gain = np.array([0.628 - 0.657, 0.649 - 0.658, 0.712 - 0.659, 0.815 - 0.661])
    assert (theory.negative_transfer(setting) == (measured_gain < 0)).all()


def test_negative_transfer_needs_both_inequalities() -> None:
    """A weak shared signal harms only where enough noise is inherited, and never where nothing is."""
    # α N₁ σ₂² = 400 α against N₂ σ₁² = 40
    weak = replace(SETTING, u_norm=0, alpha=np.array([0, 0.05, 0.5]))
    assert theory.negative_transfer(weak).tolist() == [False, False, True]
    # 5 · 40 · 1 = 200 against 0.5 · 100 · 4 · 4 = 800
    assert not theory.negative_transfer(SETTING)


def test_fields_broadcast() -> None:
    """A grid of d × ‖u‖ gives a grid of every quantity, each entry as if computed alone."""
    grid = replace(SETTING, dim=np.array([[100], [400]]), u_norm=np.array([0, 1, 2]))
    alone = replace(SETTING, dim=400, u_norm=1)
    for quantity in (
        theory.signal_to_threshold,
        theory.scratch_ratio,
        theory.gamma,
        lambda s: theory.condition(s)["dim"],
        theory.condition_holds,
    ):
        values = np.asarray(quantity(grid))
        assert values.shape == (2, 3)
        assert values[1, 1] == quantity(alone)


def test_noiseless_limits() -> None:
    """Without noise the ratios take their limits: what a noise of 1e-6 comes close to."""
    no_noise1, no_noise2 = replace(SETTING, sigma1=0), replace(SETTING, sigma2=0)
    assert theory.signal_to_threshold(no_noise1) == np.inf
    assert theory.scratch_ratio(no_noise1) == pytest.approx(0.625)
    assert theory.signal_to_threshold(no_noise2) == theory.scratch_ratio(no_noise2) == np.inf
    assert theory.signal_to_threshold(replace(no_noise1, sigma2=0)) == np.inf
    # nothing shared to inherit: B grows without bound, A does not
    assert theory.signal_to_threshold(replace(no_noise1, u_norm=0)) == 0
    assert theory.signal_to_threshold(replace(SETTING, sigma1=1e-6, u_norm=0)) == pytest.approx(0, abs=1e-9)
    # nothing inherited: the same as from scratch
    assert theory.signal_to_threshold(replace(no_noise1, alpha=0)) == theory.scratch_ratio(no_noise1)
    # 0 / 0: no signal at all counts as no signal
    nothing = replace(no_noise2, u_norm=0, v2_norm=0)
    assert theory.signal_to_threshold(nothing) == theory.scratch_ratio(nothing) == theory.gamma(nothing) == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            {
                "dim": 0.01,  # 100 / max(100 · max(4/1, 5/4), 100²)
                "filters": 1.315633,  # 10 / 7.600902
                "samples": 18.873917,  # 100 / 5.298317
                "signal": 0.164454,  # min(4/1, 5/4) / 7.600902
                "init_std": 5,  # 1 / (0.01 · max(2 · 100/10, √(5.298317 · 5)))
                "lr": 2.5,  # 1 / (0.1 · max(0.0174, 4 · 100/100, 5/10))
            },
        ),
        ({"u_norm": 20}, {"dim": 0.0025}),  # 100 / (100 · 400/1)
        ({"dim": 10}, {"init_std": 19.428720, "lr": 20}),  # 1 / (0.01 · √26.491587), 1 / (0.1 · 5/10)
        ({"dim": 1e8}, {"lr": 5.754516e-7}),  # 1 / (0.1 · 4 · 10¹² / (100² · 10 · √5.298317)), √5.298317 = 2.301807
    ],
)
def test_condition_by_hand(changes: dict[str, float], expected: dict[str, float]) -> None:
    """Every line of Condition 4.1, on each side of its maxima, agrees with the arithmetic."""
    lines = theory.condition(replace(SETTING, **changes))
    assert {name: lines[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_condition_holds_only_if_every_line_does() -> None:
    """A setting scaled as the paper's condition asks holds; four times its step size breaks one line and the whole."""
    assert theory.condition_holds(INSIDE)
    assert min(theory.condition(INSIDE).values()) == pytest.approx(1)  # the tightest line: d / n² = 1
    too_fast = replace(INSIDE, lr=2e-3)
    assert [name for name, ratio in theory.condition(too_fast).items() if ratio < 1] == ["lr"]
    assert not theory.condition_holds(too_fast)


def test_stopping_times_by_hand() -> None:
    """Steps over those of Theorems E.12 and 4.2 agree with the arithmetic."""
    assert theory.stopping_times(SETTING, train_loss=0.5) == pytest.approx(
        {
            "upstream": 2,  # 200 · 0.1 · 1 · 100/(100 · 10)
            "downstream": 40,  # 400 · 0.1 · 4 · 100/(40 · 10)
            "downstream_loss": 0.2,  # 400 · 0.1 · 0.5 · 4/(40 · 10)
        }
    )


def test_shares_count_the_boundaries_in() -> None:
    """The shares of Lemmas C.1 and C.3 are per row, and both ends of each range belong to it."""
    # σ² d = 400: from 200 to 600
    assert lemmas.noise_norm_share([[199, 200, 400, 600, 601], [0, 1, 2, 3, 400]], 100, 2) == pytest.approx([0.6, 0.2])
    # 0.4 · 40 = 16
    assert lemmas.active_share([15, 16, 17, 40], filters=40) == 0.75


def test_active_share_by_chance() -> None:
    """Sums of binomial coefficients: 8 or more of 20 fair coins; 2 or more of 5 in 26 of 32 cases."""
    assert lemmas.active_share_by_chance(20) == pytest.approx(sum(math.comb(20, k) for k in range(8, 21)) / 2**20)
    assert lemmas.active_share_by_chance(5) == pytest.approx(26 / 32)
    assert lemmas.active_share_by_chance(40) == pytest.approx(0.9231, abs=1e-4)


def test_noise_memorization_solves_its_equation() -> None:
    """The closed form is the root of x + b eˣ = c t + b, starts at 0, and stays finite for any number of steps."""
    steps = np.array([1.0, 100.0, 1e4, 1e8])
    # c = 0.1 · 1 · 100/(2 · 100 · 10) on task 1, 0.1 · 4 · 100/(2 · 40 · 10) on task 2
    roots1 = [brentq(lambda x, t=t: x + np.exp(x) - 0.005 * t - 1, -1, 50, xtol=1e-12) for t in steps]
    roots2 = [brentq(lambda x, t=t: x + 3 * np.exp(x) - 0.05 * t - 3, -1, 50, xtol=1e-12) for t in steps]
    assert lemmas.noise_memorization(steps, SETTING, 1) == pytest.approx(roots1, rel=1e-9)
    assert lemmas.noise_memorization(steps, SETTING, 2, b=3.0) == pytest.approx(roots2, rel=1e-9)
    # for large c t, x → log(c t) = log(0.005) + 300 log(10) = −5.298317 + 690.775528
    assert lemmas.noise_memorization([0, 1e300], SETTING, 1) == pytest.approx([0, 685.477211])


def test_metrics_are_finite_and_named() -> None:
    """A tracker gets the same flat names for each setting, less those whose value is infinite."""
    metrics = theory.metrics(SETTING)
    assert list(metrics) == [
        "theory/A",
        "theory/B",
        "theory/A_over_B",
        "theory/transfer_ratio",
        "theory/scratch_ratio",
        "theory/gamma",
        "theory/negative_transfer",
        "theory/shrinking_helps",
        "theory/condition_holds",
        "theory/condition/dim",
        "theory/condition/filters",
        "theory/condition/samples",
        "theory/condition/signal",
        "theory/condition/init_std",
        "theory/condition/lr",
        "theory/steps/upstream",
        "theory/steps/downstream",
        "theory/steps/downstream_loss",
    ]
    assert all(type(value) is float for value in metrics.values())
    assert metrics["theory/steps/downstream_loss"] == pytest.approx(0.04)  # ε = 0.1
    noiseless = theory.metrics(replace(SETTING, sigma1=0, sigma2=0, init_std=0))
    assert set(metrics) - set(noiseless) == {
        "theory/A",
        "theory/A_over_B",
        "theory/transfer_ratio",
        "theory/scratch_ratio",
        "theory/gamma",
        "theory/condition/signal",
        "theory/condition/init_std",
    }


def test_verdict_in_full() -> None:
    """The verdict states both ratios, what they predict, and that the theorems do not vouch for it here."""
    assert theory.verdict(SETTING).splitlines() == [
        "The theory, constants taken as 1: transfer is predicted to help.",
        "  Theorem 4.2, with transfer: A/(B d) = 3.04, error ≤ 0.048",
        "  Theorem 4.3, without: N₂‖s₂‖⁴/(σ₂⁴ d) = 0.625, error ≥ 0.1",
        "  Proposition 4.4: Γ = 1, negative transfer is not predicted",
        # 200 · 0.1 · 1 · 100/(100 · 10) and 400 · 0.1 · 4 · 100/(40 · 10)
        "  Theorem E.12: T₁ is 2 and T₂ 40 times the stopping time",
        "  Condition 4.1 holds in 4 of 6 lines (not: dim, signal): no guarantee here",
    ]


@pytest.mark.parametrize(
    ("setting", "phrases"),
    [
        # A/(B d) = 290000/(500 · 100) = 5.8 and 400 · 25/(16 · 100) = 6.25
        (replace(SETTING, num2=400), ["both are predicted to be near-optimal", "= 5.8,", "= 6.25,"]),
        # A/(B d) = 8100/(140 · 100) = 0.579 and 40 · 81/(16 · 100) = 2.025
        (
            replace(SETTING, u_norm=0, v2_norm=3),
            ["the statements disagree", "by Proposition 4.4 both are near-optimal", "negative transfer is predicted"],
        ),
        (replace(SETTING, u_norm=0), ["neither is predicted", "negative transfer is predicted"]),
        (replace(SETTING, sigma2=0), ["A/(B d) = ∞, error ≤ 0"]),
        (INSIDE, ["holds in 6 of 6 lines"]),
    ],
)
def test_verdict_of_each_regime(setting: theory.Setting, phrases: list[str]) -> None:
    """Each combination of predictions is told apart."""
    for phrase in phrases:
        assert phrase in theory.verdict(setting)
