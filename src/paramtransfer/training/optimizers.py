"""Optimizers and their schedules."""

from paramtransfer.checks import number


class GradientDescent:
    """Full-batch gradient descent with step size `lr` (eta), the rule of Algorithms 1 and 2.

    Raises:
        ValueError: `lr` is not a finite number above 0.
    """

    def __init__(self, *, lr: float) -> None:
        self.lr = number("optim.lr", lr, above=0)
