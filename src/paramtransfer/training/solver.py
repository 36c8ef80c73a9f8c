"""Full-batch gradient descent on the two-layer CNN, behind one interface: plainly, or in the span of the data.

Shape letters: R replicates, N samples, J signs (+1 first), M filters of each sign, F = J M, D coordinates.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from paramtransfer.dataset.signal_noise import Samples
from paramtransfer.model.two_layer_cnn import TwoLayerCNN

_BLOCK = 256  # rows of a Gram matrix computed at once
_GRAM_STATE = (
    "_start_RFD",
    "noise_RNF",
    "signal_RF",
    "noise_coefficients_RNF",
    "signal_coefficients_RF",
)


class Solver(Protocol):
    """A training in progress; built from (model, samples, lr) and from then on the owner of the model's filters."""

    def __init__(self, model: TwoLayerCNN, samples: Samples, lr: float) -> None: ...

    def advance(self, num_steps: int) -> None:
        """Take that many gradient steps."""

    def loss(self) -> Tensor:
        """The mean logistic loss now: (R,)."""

    def write(self) -> None:
        """Bring the model's filters up to the present step."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides the model."""

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from such a state."""


@runtime_checkable
class Measured(Protocol):
    """A solver that has something to say of its work."""

    def metrics(self) -> dict[str, float]:
        """Metrics of the run, so far."""


class AutogradSolver:
    """One forward and one backward pass a step: slow and obviously right."""

    def __init__(self, model: TwoLayerCNN, samples: Samples, lr: float) -> None:
        self._model = model
        self._labels_RN = samples.labels_RN
        self._x_RNPD = samples.patches()
        self._sgd = torch.optim.SGD(model.parameters(), lr=lr)

    def advance(self, num_steps: int) -> None:
        with torch.enable_grad():
            for _ in range(num_steps):
                self._sgd.zero_grad()
                torch.autograd.backward(self.loss().sum())
                self._sgd.step()

    def loss(self) -> Tensor:
        return softplus(-self._labels_RN * self._model(self._x_RNPD)).mean(-1)

    def write(self) -> None:
        """The optimizer works on the model's filters themselves."""

    def state(self) -> dict[str, Tensor]:
        """Plain gradient descent has none."""
        return {}

    def resume(self, state: dict[str, Tensor]) -> None:
        """The model's filters are all that there is."""


def inner_products(vectors_RND: Tensor) -> Tensor:
    """All inner products, (R, N, N): those above the diagonal, a third or more of the work, are copied from below."""
    R, N, _ = vectors_RND.shape
    gram_RNN = vectors_RND.new_empty((R, N, N))
    for start in range(0, N, _BLOCK):
        end = start + _BLOCK
        gram_RNN[:, start:end, :end] = vectors_RND[:, start:end] @ vectors_RND[:, :end].mT
        gram_RNN[:, :start, start:end] = gram_RNN[:, start:end, :start].mT
    return gram_RNN


class GramSolver:
    """The same steps on inner products alone, exact up to rounding.

    Gradient descent never leaves the span of the data and its start: each filter is w_0 + a s + sum_i c_i xi_i. With
    K = Xi Xi^T and G the gradient with respect to the pre-activations Z = Xi W^T, a step is Z <- Z - lr K G,
    c <- c - lr G, and a scalar recursion for the signal patch: one product a step, for all replicates at once. Where
    N > 2 D, Xi (Xi^T G) is the cheaper form of K G.

    Attributes:
        sign_F: j of every filter.
        signal_RF: <w, s>.
        noise_RNF: <w, xi_i>, that is Z.
        signal_coefficients_RF: a.
        noise_coefficients_RNF: c.
    """

    def __init__(self, model: TwoLayerCNN, samples: Samples, lr: float) -> None:
        self._model = model
        self._samples = samples
        filters_RFD = model.filters.detach().flatten(1, 2)
        num_filters = model.filters.shape[2]
        noise_RND = samples.noise_RND
        _, num_samples, dim = noise_RND.shape

        self._start_RFD = filters_RFD.clone()
        self.noise_RNF = noise_RND @ filters_RFD.mT
        self.signal_RF = (filters_RFD @ samples.signal_RD[..., None]).squeeze(-1)
        self.noise_coefficients_RNF = torch.zeros_like(self.noise_RNF)
        self.signal_coefficients_RF = torch.zeros_like(self.signal_RF)

        self._gram_RNN = inner_products(noise_RND) if num_samples <= 2 * dim else None
        self._signal_sq_R1 = samples.signal_RD.square().sum(-1, keepdim=True)
        ones_M = filters_RFD.new_ones(num_filters)
        self.sign_F = torch.cat([ones_M, -ones_M])
        self._second_layer_F1 = (self.sign_F / num_filters)[:, None]
        self._labels_RN = samples.labels_RN
        self._positive_RN = samples.labels_RN > 0
        self._step_RN = samples.labels_RN * (lr / (num_samples * num_filters))
        self._by_label_R2N = samples.labels_RN[:, None] * torch.stack([self._positive_RN, ~self._positive_RN], dim=1)
        self._both_signs_2 = filters_RFD.new_tensor([1.0, -1.0])
        # Two buffers for what every step makes anew.
        self._scratch_RNF = torch.empty_like(self.noise_RNF)
        self._update_RNF = torch.empty_like(self.noise_RNF)

    def state(self) -> dict[str, Tensor]:
        """All that steps change, and the start."""
        return {name: getattr(self, name) for name in _GRAM_STATE}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        for name in _GRAM_STATE:
            getattr(self, name).copy_(state[name])

    @torch.no_grad()
    def advance(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step(self.margins())

    def _step(self, margins_RN: Tensor) -> None:
        residual_RN = self._residual(margins_RN)
        self._where_active(residual_RN, self.noise_RNF, self._update_RNF)
        self._add_product(self.noise_RNF, self._update_RNF)
        self.noise_coefficients_RNF.add_(self._update_RNF)
        # A filter with <w, s> > 0 learns from the samples of label +1, one with < 0 from those of label -1.
        self._learn_signal(residual_RN, self._on_labels() > 0)

    def _residual(self, margins_RN: Tensor) -> Tensor:
        """lr y |l'| / (N M): (R, N)."""
        return torch.sigmoid(-margins_RN).mul_(self._step_RN)

    def _where_active(self, residual_RN: Tensor, noise_RNF: Tensor, out_RNF: Tensor) -> None:
        """The update of the noise coefficients: j times the residual where <w, xi> > 0."""
        torch.mul(residual_RN[..., None], self.sign_F, out=self._scratch_RNF)
        torch.ops.aten.threshold_backward.grad_input(self._scratch_RNF, noise_RNF, 0, grad_input=out_RNF)

    def _add_product(self, base_RNF: Tensor, update_RNF: Tensor) -> None:
        """Add K times an update."""
        if self._gram_RNN is not None:
            base_RNF.baddbmm_(self._gram_RNN, update_RNF)
        else:
            noise_RND = self._samples.noise_RND
            base_RNF.baddbmm_(noise_RND, noise_RND.mT @ update_RNF)

    def _on_labels(self) -> Tensor:
        """<w, y s> for both labels: (R, 2, F)."""
        return self.signal_RF[:, None] * self._both_signs_2[:, None]

    def _learn_signal(self, residual_RN: Tensor, active_R2F: Tensor) -> None:
        """The signal patch's part of an update, from the share of it that each filter is active on either label."""
        steps_R12 = (self._by_label_R2N @ residual_RN[..., None]).mT
        update_RF = self.sign_F * (steps_R12 @ active_R2F.to(steps_R12.dtype)).squeeze(1)
        self.signal_coefficients_RF = self.signal_coefficients_RF + update_RF
        self.signal_RF = self.signal_RF + self._signal_sq_R1 * update_RF

    @torch.no_grad()
    def margins(self) -> Tensor:
        """y f(W; x): (R, N)."""
        torch.clamp(self.noise_RNF, min=0, out=self._scratch_RNF)
        f_RN = (self._scratch_RNF @ self._second_layer_F1).squeeze(-1)
        by_label_R2 = (torch.relu(self.signal_RF[..., None] * self._both_signs_2).mT @ self._second_layer_F1).squeeze(
            -1
        )
        f_RN += torch.where(self._positive_RN, by_label_R2[:, :1], by_label_R2[:, 1:])
        return f_RN.mul_(self._labels_RN)

    def loss(self) -> Tensor:
        return softplus(-self.margins()).mean(-1)

    @torch.no_grad()
    def write(self) -> None:
        signal_RFD = self.signal_coefficients_RF[..., None] * self._samples.signal_RD[:, None]
        noise_RFD = self.noise_coefficients_RNF.mT @ self._samples.noise_RND
        self._model.filters.copy_((self._start_RFD + signal_RFD + noise_RFD).view_as(self._model.filters))
