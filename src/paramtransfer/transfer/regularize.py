"""How inherited filters are copied: denoised, scaled, perturbed, shrunk; each off unless asked for."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, softplus
from torch.nn.modules.batchnorm import _BatchNorm

from paramtransfer.checks import choice, number, refusal, share, whole
from paramtransfer.model.two_layer_cnn import aligned
from paramtransfer.transfer.denoise import denoise
from paramtransfer.transfer.explained_variance import Labelled
from paramtransfer.transfer.plan import Pairing, Plan, State
from paramtransfer.transfer.wrapped_models import unwrap

NOISE = "noise"
SHRINKAGE = ("frobenius",)
ALONG = ("own", "one")
_POWERS = {f"{norm}.{part}": p for norm in ("norm0", "norm1") for part, p in (("running_mean", 1), ("running_var", 2))}
"""How statistics of the first norm behind a layer, or of one behind a sum of layers, go with their scale."""


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """What is done to filters on their way from the upstream to the downstream.

    Raises:
        ValueError: a value that is out of range, named by its configuration key.
    """

    rank: int | str | None = None
    """Of the upstream's weight matrices, see `denoise`."""
    shrinkage: str | None = None
    """Of their singular values, see `denoise`."""
    scale: float = 1.0
    """What weights and biases of layers are multiplied by.

    Behind a convolution with a batch norm it changes no output, only how far a step turns the filters: a step of one
    size moves those that are c times as long c^2 times less.
    """
    perturb: float = 0.0
    """How much of the fresh weight or bias at its place is added (shrink and perturb, Ash and Adams 2020)."""
    perturb_along: str = "own"
    """`own`: each fresh filter as it is. `one`: of its length, along the first one of all, for the two-layer CNN. Then
    both signs see the same half of all noise, and learn of the other half's samples from their signal alone."""
    dash: float | None = None
    """The least that a filter is multiplied by, see `shrink_by_direction`; None: 1, whatever its direction."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank != NOISE:
            if isinstance(self.rank, str):
                raise refusal("transfer.rank", self.rank, f"null, {NOISE} or a whole number of at least 1")
            object.__setattr__(self, "rank", whole("transfer.rank", self.rank, at_least=1))
        if self.shrinkage not in (None, *SHRINKAGE):
            raise refusal("transfer.shrinkage", self.shrinkage, f"null or {' or '.join(SHRINKAGE)}")
        if self.shrinkage is not None and self.rank is not None:
            raise refusal("transfer.shrinkage", self.shrinkage, f"null with transfer.rank={self.rank}")
        object.__setattr__(self, "scale", number("transfer.scale", self.scale, above=0))
        object.__setattr__(self, "perturb", number("transfer.perturb", self.perturb, at_least=0))
        choice("transfer.perturb_along", self.perturb_along, ALONG)
        if self.perturb_along != ALONG[0] and not self.perturb:
            raise refusal("transfer.perturb_along", self.perturb_along, "own without transfer.perturb")
        if self.dash is not None:
            object.__setattr__(self, "dash", share("transfer.dash", self.dash))

    def identity(self) -> dict[str, object]:
        """Its settings, under their configuration keys."""
        return asdict(self)

    @property
    def label(self) -> str:
        """What is not as usual, in a few words."""
        usual = asdict(Regularization())
        return " ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.identity().items()
            if value != usual[name]
        )

    def denoised(self, plan: Plan, upstream: State, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """The upstream's state with every weight that a plan takes from denoised, each group of filters by itself.

        Args:
            plan: which names them.
            upstream: the trained state.
            widths: numbers of a filter, by its tensor, where its coordinates are fewer.
        """
        state = dict(upstream)
        if self.rank is None and self.shrinkage is None:
            return state
        for pairing in {pairing.upstream: pairing for pairing in plan if pairing.role == "weight"}.values():
            if (name := pairing.upstream) is not None:
                matrix = as_matrix(pairing, upstream[name], groups=pairing.groups)
                made = denoise(matrix, rank=self.rank, shrinkage=self.shrinkage, width=widths.get(name))
                state[name] = made.view_as(upstream[name])
        return state

    def land(self, pairing: Pairing, taken: Tensor, fresh: Tensor) -> Tensor:
        """What a slice becomes where it lands, from the upstream's numbers and the fresh ones at its place.

        Statistics of a batch norm behind a layer follow its scale, so that the network computes what it would without
        one in tests; scale and shift of norms, and parameters of other kinds, come as they are.
        """
        if pairing.role in ("weight", "bias"):
            scaled = taken if self.scale == 1 else self.scale * taken
            along = fresh if self.perturb_along == ALONG[0] or not self.perturb else aligned(fresh, together=True)
            return scaled + self.perturb * along if self.perturb else scaled
        power = _POWERS.get(pairing.role, 0)
        return taken * self.scale**power if power and self.scale != 1 else taken


def filter_widths(model: nn.Module) -> dict[str, int]:
    """How many numbers a filter has, by its tensor, as a network says it whose filters are in fewer coordinates."""
    core = unwrap(model)
    return {f"{core.prefix}{name}": width for name, width in getattr(core.network, "filter_widths", {}).items()}


def as_matrix(pairing: Pairing, tensor: Tensor, *, groups: int = 1) -> Tensor:
    """Filters by their numbers, (..., M, D), from a weight whose axis of filters may have others before it.

    A convolution is (outputs, inputs k k), with groups a batch of such matrices; a depthwise one is (channels, k k).
    """
    dim = _filter_dim(pairing)
    matrix = tensor.flatten(dim + 1)
    return matrix if groups == 1 else torch.unflatten(matrix, dim, (groups, -1))


def shrink_by_direction(
    plan: Plan,
    state: State,
    masks: Mapping[str, Tensor],
    model: nn.Module,
    batches: Iterable[Labelled],
    *,
    floor: float,
) -> dict[str, Tensor]:
    """A start whose inherited filters are shrunk unless they point along the negative gradient of the target's loss.

    Each is multiplied by max(floor, cos(w, -gradient)), the gradient at the start, in the mean over batches, over the
    numbers of it that are inherited. As in "DASH" (arXiv 2410.23495, Section 5) a filter is a row of a linear layer,
    the k x k numbers between two channels of a convolution, and a bias as a whole. Batch norms normalize by each batch;
    what is random in training is not.

    Args:
        plan: which says what holds filters.
        state: with what was inherited in place.
        masks: which numbers are inherited.
        model: of the state's architecture; left as it is.
        batches: inputs with class numbers (cross-entropy), or with labels -1 and 1 (logistic loss, a network each row).
        floor: the least factor.
    """
    made = copy.deepcopy(model)
    made.load_state_dict(state)
    made.train(False)
    for module in made.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    dtype = next(made.parameters()).dtype
    num_batches = 0
    with torch.enable_grad():
        for inputs, labels in batches:
            made.to(inputs.device)
            torch.autograd.backward(_loss(made(inputs.to(dtype)), labels))
            num_batches += 1
    if not num_batches:
        raise ValueError(f"transfer.dash={floor:g}: must be null without any training samples of the target")
    gradients = {name: parameter.grad for name, parameter in made.named_parameters(remove_duplicate=False)}
    shrunk = dict(state)
    for pairing in plan:
        name, gradient = pairing.target, gradients.get(pairing.target)
        if pairing.role in ("weight", "bias") and name in masks and gradient is not None:
            shrunk[name] = _shrink(state[name], gradient.to(state[name]), masks[name], pairing, floor)
    return shrunk


def _loss(outputs: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return softplus(-labels * outputs).mean(-1).sum()
    return cross_entropy(outputs, labels)


def _shrink(weight: Tensor, gradient: Tensor, mask: Tensor, pairing: Pairing, floor: float) -> Tensor:
    dim = _filter_dim(pairing)
    first = 0 if pairing.role == "bias" else dim + 1 + (weight.dim() > dim + 2)  # of the dimensions of a vector
    one, other = ((tensor * mask).flatten(first) for tensor in (weight, -gradient))
    factor = cosine_similarity(one, other, dim=-1).clamp(min=floor)
    return torch.where(mask, weight * factor.view(*factor.shape, *[1] * (weight.dim() - first)), weight)


def _filter_dim(pairing: Pairing) -> int:
    return next(dim for dim, axis in enumerate(pairing.axes) if axis is not None and axis.counted)
