"""Signal learning and noise memorization during training: the coefficients of Lemma B.2, summarized.

Every filter is its value at the stage's start plus j gamma u/|u|^2 + j gamma_k v_k/|v_k|^2 + sum_i rho_i xi_i/|xi_i|^2.
In stage 2 the coefficients start at 0: what was inherited is part of the start.

Shape letters: R replicates, N samples, F filters (both signs, +1 first), S signals (u and v_k).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from paramtransfer import lemmas, theory
from paramtransfer.dataset.signal_noise import Samples
from paramtransfer.training.solver import GramSolver


class Coefficients(NamedTuple):
    """The decomposition of all filters at one step."""

    gamma_RF: Tensor
    """Learning of u."""
    gamma_k_RF: Tensor
    """Learning of v_k."""
    rho_RNF: Tensor
    """Memorization of each sample's noise: rho-bar where y_i = j, rho-underbar elsewhere."""


def coefficients(solver: GramSolver, samples: Samples, *, u_norm: float, v_norm: float) -> Coefficients:
    """The coefficients now, from those of the solver: w = w_0 + a (u + v_k) + sum_i c_i xi_i."""
    a_RF = solver.sign_F * solver.signal_coefficients_RF
    noise_sq_RN1 = samples.noise_RND.square().sum(-1, keepdim=True)
    return Coefficients(a_RF * u_norm**2, a_RF * v_norm**2, solver.noise_coefficients_RNF * noise_sq_RN1)


class Observer:
    """Summaries of the dynamics of one stage, taken at each point of its curves."""

    def __init__(self, solver: GramSolver, samples: Samples, setting: theory.Setting) -> None:
        self._solver = solver
        self._samples = samples
        self._setting = setting
        self._own_RNF = samples.labels_RN[..., None] == solver.sign_F
        self._last_signal_RF = solver.signal_RF.clone()

    def at_start(self) -> dict[str, float]:
        """The shares of samples that Lemmas C.1 and C.3 speak of, before the first step."""
        noise_RND, sigma = self._samples.noise_RND, self._setting.sigma2
        active_RN = ((self._solver.noise_RNF > 0) & self._own_RNF).sum(-1).cpu()
        norms = lemmas.noise_norm_share(noise_RND.square().sum(-1).cpu(), float(self._setting.dim), float(sigma))
        active = lemmas.active_share(active_RN, float(self._setting.filters))
        return {"dynamics/noise_norm_share": float(np.mean(norms)), "dynamics/active_share": float(np.mean(active))}

    def now(self, num_steps: int) -> dict[str, float]:
        """After `num_steps` steps: means over replicates, samples and filters, and extremes over all of them.

        `rho_bar_theory` is the continuous approximation of `rho_bar`; `kappa` is our reading of the proofs' kappa_D,
        twice the largest distance of a margin from the filter mean of its sample's rho-bar.
        """
        gamma_RF, gamma_k_RF, rho_RNF = coefficients(
            self._solver, self._samples, u_norm=float(self._setting.u_norm), v_norm=float(self._setting.v2_norm)
        )
        rho_bar, rho_under = rho_RNF[self._own_RNF], rho_RNF[~self._own_RNF]
        memorized_RN = (rho_RNF * self._own_RNF).sum(-1) / (len(self._solver.sign_F) // 2)
        margins_RN = self._solver.margins()
        gradients_RN = torch.sigmoid(-margins_RN)
        signal_RF = self._solver.sign_F * self._solver.signal_RF
        step = (signal_RF - self._solver.sign_F * self._last_signal_RF).min()
        self._last_signal_RF = self._solver.signal_RF.clone()
        values = {
            "gamma": gamma_RF.mean(),
            "gamma_max": gamma_RF.max(),
            "gamma_k": gamma_k_RF.mean(),
            "gamma_k_max": gamma_k_RF.max(),
            "rho_bar": rho_bar.mean(),
            "rho_bar_theory": torch.tensor(lemmas.noise_memorization(num_steps, self._setting, task=2)),
            "rho_bar_min": rho_bar.min(),
            "rho_bar_max": rho_bar.max(),
            "rho_under": rho_under.mean(),
            "rho_under_min": rho_under.min(),
            "gradient_ratio": (gradients_RN.amax(-1) / gradients_RN.amin(-1)).max(),
            "kappa": 2 * (margins_RN - memorized_RN).abs().max(),
            "signal_step_min": step,
        }
        return {f"dynamics/{name}": value.item() for name, value in values.items()}
