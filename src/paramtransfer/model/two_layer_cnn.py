"""The two-layer ReLU CNN of Section 3, with a fixed second layer.

Shape letters: R replicates, N samples, P patches (2), J signs (+1 first), M filters of each sign, F = J M, D
coordinates.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from paramtransfer.checks import number, whole
from paramtransfer.stage import Stage


def output(preactivations_RNF: Tensor) -> Tensor:
    """What a patch adds to f(W; x) = F_{+1} - F_{-1}, from its pre-activations: (R, N)."""
    num_filters = preactivations_RNF.shape[-1] // 2
    second_layer_F = preactivations_RNF.new_ones(2 * num_filters) / num_filters
    second_layer_F[num_filters:] *= -1
    return torch.relu(preactivations_RNF) @ second_layer_F


def aligned(filters_RJMD: Tensor, *, together: bool = False) -> Tensor:
    """Filters of their own lengths along the first of each sign, or of all: (R, J, M, D)."""
    first = filters_RJMD[:, :1, :1] if together else filters_RJMD[:, :, :1]
    lengths_RJM1: Tensor = torch.linalg.vector_norm(filters_RJMD, dim=-1, keepdim=True)
    return lengths_RJM1 * nn.functional.normalize(first, dim=-1)


class TwoLayerCNN(nn.Module):
    """R independent two-layer CNNs; `filters` (R, J, M, D) are all their parameters.

    Args:
        filters_RJMD: their start.
        dim: d, where D coordinates stand for more; None: D.
    """

    # The dimension of each parameter that counts filters: transfer needs no more of the architecture.
    filter_dims: ClassVar = {"filters": 2}

    def __init__(self, filters_RJMD: Tensor, *, dim: int | None = None) -> None:
        super().__init__()
        self.filters = nn.Parameter(filters_RJMD)
        self.filter_widths = {"filters": dim or filters_RJMD.shape[-1]}

    def forward(self, x_RNPD: Tensor) -> Tensor:
        """f(W; x): (R, N)."""
        return output(x_RNPD @ self.filters.flatten(1, 2).mT[:, None]).sum(dim=2)


class _Drawn(Protocol):
    @property
    def initial_RFD(self) -> Tensor: ...

    @property
    def ambient_dim(self) -> int: ...

    def carry(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


class TwoLayerCNNs:
    """Both architectures of a synthetic job: `filters` (m) filters of each sign, drawn from N(0, init_std^2 I).

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(self, *, filters: int, init_std: float) -> None:
        self.filters = whole("model.filters", filters, at_least=1)
        self.init_std = number("model.init_std", init_std, above=0)

    def identity(self, stage: Stage) -> dict[str, object]:
        """The settings that a stage's result depends on: both tasks train networks of one kind."""
        return {"filters": self.filters, "init_std": self.init_std}

    @property
    def num_filters(self) -> int:
        """Filters of both signs."""
        return 2 * self.filters

    def build(self, data: _Drawn) -> TwoLayerCNN:
        """A fresh network for a stage whose data module has drawn `initial_RFD`, standard normal filters."""
        filters_RJMD = self.init_std * torch.unflatten(data.initial_RFD, 1, (2, self.filters))
        return TwoLayerCNN(filters_RJMD, dim=data.ambient_dim)

    def upstream(self, state: Mapping[str, Tensor] | None, data: _Drawn) -> TwoLayerCNN:
        """The upstream network in the coordinates of the downstream's data; untrained, any network of that shape."""
        return self.build(data) if state is None else TwoLayerCNN(data.carry(state)["filters"], dim=data.ambient_dim)

    def foreign(self, read_run: Callable[[str], dict[str, Tensor]], *, download: bool = True) -> None:
        """The upstream is always trained."""
