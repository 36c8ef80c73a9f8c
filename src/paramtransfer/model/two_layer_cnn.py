"""The two-layer ReLU CNN of Section 3, with a fixed second layer.

Shape letters: R replicates, N samples, P patches (2), J signs (+1 first), M filters of each sign, F = J M, D
coordinates.
"""

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from paramtransfer.checks import number, whole


def output(first_RNF: Tensor, second_RNF: Tensor) -> Tensor:
    """f(W; x) = F_{+1} - F_{-1} from the pre-activations of both patches: (R, N)."""
    positive_RNM, negative_RNM = (torch.relu(first_RNF) + torch.relu(second_RNF)).chunk(2, dim=-1)
    return positive_RNM.mean(-1) - negative_RNM.mean(-1)


class TwoLayerCNN(nn.Module):
    """R independent two-layer CNNs; `filters` (R, J, M, D) are all their parameters."""

    # The dimension of each parameter that counts filters: transfer needs no more of the architecture.
    filter_dims: ClassVar = {"filters": 2}

    def __init__(self, filters_RJMD: Tensor) -> None:
        super().__init__()
        self.filters = nn.Parameter(filters_RJMD)

    def forward(self, x_RNPD: Tensor) -> Tensor:
        """f(W; x): (R, N)."""
        first_RNF, second_RNF = (x_RNPD @ self.filters.flatten(1, 2).mT[:, None]).unbind(dim=2)
        return output(first_RNF, second_RNF)


class _Drawn(Protocol):
    initial_RFD: Tensor


class TwoLayerCNNs:
    """Both architectures of a synthetic job: `filters` (m) filters of each sign, drawn from N(0, init_std^2 I).

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(self, *, filters: int, init_std: float) -> None:
        self.filters = whole("model.filters", filters, at_least=1)
        self.init_std = number("model.init_std", init_std, above=0)

    @property
    def num_filters(self) -> int:
        """Filters of both signs."""
        return 2 * self.filters

    def build(self, data: _Drawn) -> TwoLayerCNN:
        """A fresh network for a stage whose data module has drawn `initial_RFD`, standard normal filters."""
        return TwoLayerCNN(self.init_std * torch.unflatten(data.initial_RFD, 1, (2, self.filters)))
