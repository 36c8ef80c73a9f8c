"""Many steps of full-batch gradient descent at once, the error of every leap estimated and kept in bounds.

Between changes of activation the path of gradient descent is smooth: what the next h steps will do is known before they
are taken. A leap

1. predicts h times the present update: one product with K, as for a single step;
2. corrects it: residuals change linearly, and an entry of Z = <w, xi_i> whose sign has changed was active for as many
   steps as gradient descent finds, given its slopes on both sides of zero (`active_steps`). What that changes of the
   update acts at once through the diagonal of K, and through the rest of K with the product of the next leap;
3. compares the margins with a parabola through the last three: the largest distance is the estimated error. A leap
   that was too long is taken back; the next one is longer or shorter by its error.

Where not even a few steps pass, single ones are taken, bit for bit those of the gram solver.

Shape letters: R replicates, N samples, F filters (both signs, +1 first), D coordinates, E entries of Z.
"""

import torch
from torch import Tensor

from paramtransfer.checks import number
from paramtransfer.dataset.signal_noise import Samples
from paramtransfer.metrics import LEAP_ERROR, PRODUCTS
from paramtransfer.model.two_layer_cnn import TwoLayerCNN
from paramtransfer.training.solver import GramSolver

_POINTS = 3  # that the parabola goes through
_AIM, _KEPT = 0.2, 0.3  # of the tolerance: the estimated error that a leap is to have, and that of one that is kept
_CAUTION = 0.9
_SHORTER, _LONGER = 0.2, 2.0  # how much shorter or longer the next leap may be
_PAUSE = 32  # single steps before the path is looked at again; twice as many after each shortest leap that has failed


class LeapSolver(GramSolver):
    """The gram solver, leaping.

    Args:
        tolerance: how far a margin y f is to lie from gradient descent's at most, relative where that is above 1. A
            leap is kept if its own error is estimated at 0.3 of it at most; those of several add up, or cancel.
    """

    def __init__(self, model: TwoLayerCNN, samples: Samples, lr: float, *, tolerance: float) -> None:
        super().__init__(model, samples, lr)
        self._tolerance = tolerance
        self._norm_sq_RN1 = torch.linalg.vector_norm(samples.noise_RND, dim=-1, keepdim=True).square()
        # What the last leap corrected in its update: until the next one, K has acted on it through its diagonal alone.
        self._correction_RNF = torch.zeros_like(self.noise_RNF)
        self._is_pending = False
        self._history: list[tuple[int, Tensor]] = []  # numbers of steps, and the margins after them
        # About as many single steps cost what a leap does.
        self._shortest = min(2 + 400 // samples.noise_RND.shape[1], 5)
        self._length = float(self._shortest)
        self._largest_error = 0.0
        self._num_steps = 0
        self._num_products = 0
        self._num_single = _POINTS - 1  # single steps to take now
        self._pause = _PAUSE
        self._spare_RNF = torch.empty_like(self.noise_RNF)
        self._next_correction_RNF = torch.empty_like(self.noise_RNF)

    def metrics(self) -> dict[str, float]:
        """Products taken, and the largest estimated error of a leap."""
        return {PRODUCTS: float(self._num_products), LEAP_ERROR: self._largest_error}

    def state(self) -> dict[str, Tensor]:
        counts = (self._num_steps, self._num_products, self._num_single, self._pause, self._is_pending)
        return super().state() | {
            "correction": self._correction_RNF,
            "history_steps": torch.tensor([num_steps for num_steps, _ in self._history]),
            "history_margins": torch.stack([margins_RN for _, margins_RN in self._history]),
            "numbers": torch.tensor([*counts, self._length, self._largest_error], dtype=torch.float64),
        }

    def resume(self, state: dict[str, Tensor]) -> None:
        super().resume(state)
        self._correction_RNF.copy_(state["correction"])
        margins = state["history_margins"].to(self.noise_RNF.device)
        self._history = list(zip(state["history_steps"].tolist(), margins, strict=True))
        *counts, self._length, self._largest_error = state["numbers"].tolist()
        self._num_steps, self._num_products, self._num_single, self._pause, is_pending = map(int, counts)
        self._is_pending = bool(is_pending)

    @torch.no_grad()
    def advance(self, num_steps: int) -> None:
        end = self._num_steps + num_steps
        while self._num_steps < end:
            remaining = end - self._num_steps
            # Leaps of one length up to the end, none too short to pay.
            length = min(max(round(remaining / -(-remaining // self._length)), self._shortest), remaining)
            if self._num_single > 0 or length < self._shortest:
                self._take(min(self._num_single or remaining, remaining))
            else:
                self._try(length)

    def _take(self, num_steps: int) -> None:
        """Single steps, of which the history keeps what `_is_smooth` asks for."""
        if self._is_pending:
            self._add_late_product(self._correction_RNF)
            self._correction_RNF.zero_()
            self._is_pending = False
            del self._history[-1]
            self._num_products += 1
        for left in range(num_steps, 0, -1):
            margins_RN = self._present() if left < _POINTS + self._shortest else self.margins()
            self._step(margins_RN)
            self._num_steps += 1
        self._num_products += num_steps
        if self._num_single > 0:
            self._num_single -= num_steps
            if self._num_single == 0 and not self._is_smooth():
                self._num_single = _PAUSE

    def _is_smooth(self) -> bool:
        """Whether the shortest leap would have passed in place of the last single steps; true where nobody knows."""
        now_RN = self._present()
        before = self._history[: -self._shortest][-_POINTS:]
        return (
            len(before) < _POINTS
            or self._error(now_RN, _extrapolate(before, self._num_steps)) <= _AIM * self._tolerance
        )

    def _present(self) -> Tensor:
        """The margins now, which the history keeps: (R, N)."""
        if not self._history or self._history[-1][0] < self._num_steps:
            self._remember(self.margins())
        return self._history[-1][1]

    def _remember(self, margins_RN: Tensor) -> None:
        self._history = [*self._history[1 - _POINTS - self._shortest :], (self._num_steps, margins_RN)]

    def _error(self, margins_RN: Tensor, expected_RN: Tensor) -> float:
        """The largest distance, as the tolerance counts it."""
        return ((margins_RN - expected_RN) / margins_RN.abs().clamp(min=1)).abs().max().item()

    def _try(self, num_steps: int) -> None:
        """Take a leap, or take it back; either way, the next one is as long as the error allows."""
        start_RNF, signal = self.noise_RNF, (self.signal_RF, self.signal_coefficients_RF)
        present_RN = self._present()
        expected_RN = _extrapolate(self._history[-_POINTS:], self._num_steps + num_steps)
        self._leap(num_steps, self._residual(present_RN))
        self._num_products += 1
        margins_RN = self.margins()
        error = self._error(margins_RN, expected_RN)

        # The error grows between linearly and with the cube of the length.
        factor = _CAUTION * (_AIM * self._tolerance / error) ** 0.5 if error > 0 else _LONGER
        factor = min(max(factor, _SHORTER), _LONGER)
        if error <= _KEPT * self._tolerance:
            self.noise_coefficients_RNF.add_(self._update_RNF).sub_(self._correction_RNF).add_(
                self._next_correction_RNF
            )
            self._correction_RNF, self._next_correction_RNF = self._next_correction_RNF, self._correction_RNF
            self._is_pending = True
            self._spare_RNF = start_RNF
            self._num_steps += num_steps
            self._remember(margins_RN)
            self._largest_error = max(self._largest_error, error)
            self._length = max(float(self._shortest), num_steps * factor)
            if num_steps >= 4 * self._shortest:
                self._pause = _PAUSE
        else:
            self._spare_RNF, self.noise_RNF = self.noise_RNF, start_RNF
            self.signal_RF, self.signal_coefficients_RF = signal
            self._length = num_steps * min(factor, 0.5)
            if self._length < self._shortest:
                self._num_single, self._pause, self._length = self._pause, 2 * self._pause, float(self._shortest)

    def _leap(self, num_steps: int, residual_RN: Tensor) -> None:
        """Move pre-activations and signal coefficients; the update and its correction stay in their buffers."""
        start_RNF, start_R2F = self.noise_RNF, self._on_labels()
        signal = self.signal_RF, self.signal_coefficients_RF
        predicted_RN = num_steps * residual_RN
        self._where_active(predicted_RN, start_RNF, self._update_RNF)
        self._update_RNF.add_(self._correction_RNF)
        self.noise_RNF = self._spare_RNF.copy_(start_RNF)
        self._add_late_product(self._update_RNF)
        self._learn_signal(predicted_RN, start_R2F > 0)

        change_RN = (num_steps - 1) / 2 * (self._residual(self.margins()) - residual_RN)
        total_RN = predicted_RN + change_RN
        self._where_active(change_RN, start_RNF, self._next_correction_RNF)
        self._correct_flips(start_RNF, residual_RN, total_RN, num_steps)
        self.noise_RNF.addcmul_(self._norm_sq_RN1, self._next_correction_RNF)

        drift_R2F = (self._on_labels() - start_R2F) / num_steps
        active_R2F = active_steps(start_R2F, drift_R2F, torch.zeros_like(drift_R2F), num_steps) / num_steps
        self.signal_RF, self.signal_coefficients_RF = signal
        self._learn_signal(total_RN, active_R2F)

    def _add_late_product(self, update_RNF: Tensor) -> None:
        """Add K times an update that has the last correction in it, on which the diagonal of K has acted already."""
        self._add_product(self.noise_RNF, update_RNF)
        self.noise_RNF.addcmul_(self._norm_sq_RN1, self._correction_RNF, value=-1)

    def _correct_flips(self, start_RNF: Tensor, residual_RN: Tensor, total_RN: Tensor, num_steps: int) -> None:
        """The corrections of entries whose sign has changed."""
        torch.mul(start_RNF, self.noise_RNF, out=self._scratch_RNF)
        flips_E = self._scratch_RNF.clamp_(max=0).view(-1).nonzero().squeeze(1)
        sample_E = flips_E // len(self.sign_F)
        sign_E = self.sign_F[flips_E % len(self.sign_F)]
        start_E, end_E = (noise_RNF.view(-1).index_select(0, flips_E) for noise_RNF in (start_RNF, self.noise_RNF))
        norm_sq_E, residual_E, total_E = (
            values.reshape(-1).index_select(0, sample_E) for values in (self._norm_sq_RN1, residual_RN, total_RN)
        )
        predicted_E = sign_E * residual_E * (start_E > 0)
        mean_E = sign_E * total_E / num_steps

        drift_E = (end_E - start_E) / num_steps - norm_sq_E * predicted_E
        active_E = active_steps(start_E, drift_E, norm_sq_E * mean_E, num_steps)
        self._next_correction_RNF.view(-1).index_copy_(0, flips_E, active_E * mean_E - num_steps * predicted_E)


def active_steps(start: Tensor, drift: Tensor, push: Tensor, num_steps: int) -> Tensor:
    """How many of the steps z <- z + drift + push 1[z > 0] find z above zero, from z = start, in any shape."""
    slope = drift + push
    until_below = torch.where(slope < 0, -torch.floor(start / slope), num_steps)
    once_above = torch.where(drift > 0, num_steps - 1 + torch.ceil(start / drift), 0)
    # Pushed back whenever it rises: as often as it takes to carry the drift away.
    to_and_fro = -torch.floor((start + (num_steps - 1) * drift) / push)
    steps = torch.where((drift > 0) & (slope < 0), to_and_fro, torch.where(start > 0, until_below, once_above))
    return steps.clamp(0, num_steps)


def _extrapolate(history: list[tuple[int, Tensor]], to: int) -> Tensor:
    """The parabola through three points (Lagrange): (R, N)."""
    (a, at_a), (b, at_b), (c, at_c) = history
    weight_a = (to - b) * (to - c) / ((a - b) * (a - c))
    weight_b = (to - a) * (to - c) / ((b - a) * (b - c))
    weight_c = (to - a) * (to - b) / ((c - a) * (c - b))
    return weight_a * at_a + weight_b * at_b + weight_c * at_c


class Leap:
    """Makes the solver of each stage.

    Raises:
        ValueError: a tolerance that is not above 0.
    """

    def __init__(self, *, tolerance: float) -> None:
        self.keywords = {"tolerance": number("solver.tolerance", tolerance, above=0)}
        """What a result depends on, named as a `functools.partial` names it."""

    def __call__(self, model: TwoLayerCNN, samples: Samples, lr: float) -> LeapSolver:
        return LeapSolver(model, samples, lr, **self.keywords)
