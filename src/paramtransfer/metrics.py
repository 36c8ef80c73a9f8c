"""The names under which runs and tables keep what was measured and what the theory says; each is spelled here alone."""

from typing import Protocol

ACCURACY = "test/acc"
"""Test accuracy of a stage on its own task; in a table, of the downstream."""
BALANCED_ACCURACY = "test/acc_balanced"
"""The mean of the classes' test accuracies, where they have not as many test points each."""
BASELINE_ACCURACY = "test/acc_without_transfer"
"""The baseline's, as its downstream run keeps it."""
GAIN = "test/gain"
"""Downstream above baseline, paired over the same test points."""
ESTIMATES = (ACCURACY, BASELINE_ACCURACY, GAIN)
"""The final values that have a standard error beside them; see `sem_of`."""

TEST_CURVE = "test/acc_curve"
"""Test accuracy during training."""
VALIDATION_CURVE = "val/acc"
LOSS_CURVE = "train/loss"
TRAINING_SECONDS = "time/train"
"""Of training alone, without data, tests and tracking."""
PRODUCTS = "train/products"
"""With K, that a leaping solver has taken in place of one a step; where N is small, a leap costs as much as a few."""
LEAP_ERROR = "train/leap_error"
"""The largest error that any one of its leaps was estimated to have, in margins; relative where they are above 1."""

INHERITING = "choice/inheriting"
"""Share of the replicates whose chosen start inherits (`transfer=chosen`)."""
CHOICE_P = "choice/p"
"""p of the chosen start's lead over the default, 1 where that is kept; mean over replicates."""
CHOICE_SECONDS = "time/choice"
"""What choosing took."""

HINDSIGHT = "hindsight"
"""Before a candidate's name: its test accuracy, looked up after the choice (`transfer.hindsight=true`)."""
ABOVE = "chosen_above"
"""Before a candidate's name: how far the chosen start's accuracy is above its own; a standard error is beside it."""

ERROR = "test/error_tail"
"""Test error as an integral (`task.tail_error=true`); its standard error is beside it, see `sem_of`."""
LOG_ERROR = "test/log_error_tail"
"""Mean over replicates of its natural logarithm; its standard error is beside it."""
ERROR_SAMPLING = "test/error_tail_sampling"
"""The largest relative standard error of a replicate's integral."""

TRANSFER_RATIO = "theory/transfer_ratio"
"""A/(B d), Theorem 4.2."""
SCRATCH_RATIO = "theory/scratch_ratio"
"""N₂‖s₂‖⁴/(σ₂⁴ d), Theorem 4.3."""
GAMMA = "theory/gamma"
"""Γ, Proposition 4.4."""
HARM_PREDICTED = "theory/negative_transfer"
"""1 where Proposition 4.4 predicts harm."""
CONDITION_HOLDS = "theory/condition_holds"
"""1 where all lines of Condition 4.1 hold."""


class Values(Protocol):
    """Values by name: metrics of a run, or a row of a table."""

    def __getitem__(self, name: str, /) -> float: ...


def sem_of(name: str) -> str:
    """The name of a value's standard error."""
    return f"{name}_sem"


def of_candidate(name: str, candidate: str) -> str:
    """The name of a value of one of the starts that were compared, as MLflow takes it: `hindsight/alpha 0.5`.

    Args:
        name: `HINDSIGHT` or `ABOVE`.
        candidate: its label.
    """
    return f"{name}/{candidate.replace('α', 'alpha').replace('=', ' ')}"


def dynamics(name: str) -> str:
    """The name of a coefficient of Lemma B.2, or of what the proofs bound, during training."""
    return f"dynamics/{name}"


def as_text(values: Values, name: str) -> str:
    """`0.9300 ± 0.0050`: a value with its standard error; a gain has a sign in front.

    Args:
        values: hold it and its standard error.
        name: one of `ESTIMATES`.
    """
    sign = "+" if name == GAIN else ""
    return f"{values[name]:{sign}.4f} ± {values[sem_of(name)]:.4f}"
