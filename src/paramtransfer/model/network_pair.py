"""The upstream and the downstream network of an image job."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paramtransfer.checks import choice, refusal
from paramtransfer.model import foreign_weights
from paramtransfer.model.networks import HEADS, STEMS, check_name, library_network, make_network
from paramtransfer.randomness import stream
from paramtransfer.stage import Side, Stage

log = logging.getLogger(__name__)

_NOT_OURS = {
    "pretrained": f"trained weights are the upstream's, {foreign_weights.KEY}={foreign_weights.DEFAULT}",
    "weights": f"trained weights are the upstream's, {foreign_weights.KEY}",
    "num_classes": "the task says how many classes there are",
}  # options of the libraries' networks


class _Task(Protocol):
    side: Side
    seed: int
    classes: Sequence[str]


class NetworkPair:
    """Both architectures, by the names that torchvision or timm have for them.

    Args:
        upstream: `name`, options of the network, and `weights`: None to train on task 1, a run id, a checkpoint file,
            or `DEFAULT` for what torchvision or timm have trained.
        downstream: `name` and options of the network.
        stem: see `make_network`.
        head: see `make_network`.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(self, *, upstream: dict[str, Any], downstream: dict[str, Any], stem: str, head: str) -> None:
        self._shared = {
            "stem": choice("model.stem", stem, STEMS),
            "head": choice("model.head", head, HEADS),
        }
        self._options: dict[Side, dict[str, Any]] = {"upstream": dict(upstream), "downstream": dict(downstream)}
        self.weights: str | None = self._options["upstream"].pop("weights")
        for side, given in self._options.items():
            for option in _NOT_OURS.keys() & given.keys():
                raise ValueError(f"model.{side}.{option}={given[option]}: must be left out; {_NOT_OURS[option]}")
        self.names: dict[Side, str] = {
            side: check_name(f"model.{side}.name", options.pop("name")) for side, options in self._options.items()
        }
        if self.weights == foreign_weights.DEFAULT and self._options["upstream"]:
            own = ", ".join(self._options["upstream"])
            raise refusal(
                foreign_weights.KEY,
                foreign_weights.DEFAULT,
                f"null, a checkpoint or a run id for a network with its own {own}",
            )

    def one_sided(self) -> list[str]:
        """Which options reach one of the networks alone, in sentences."""
        sides: tuple[tuple[Side, Side], ...] = (("upstream", "downstream"), ("downstream", "upstream"))
        return [
            f"model.{side}.{option}={value} reaches the {side} alone; model.{other}.{option} is not set"
            for side, other in sides
            for option, value in self._options[side].items()
            if option not in self._options[other]
        ]

    def build(self, data: _Task) -> nn.Module:
        """A fresh network for one task; baseline and downstream of a seed start alike."""
        with torch.random.fork_rng():
            torch.manual_seed(int(stream(f"{data.side} initial weights", seed=data.seed).integers(2**63)))
            return self._network(data.side, len(data.classes))

    def _network(self, side: Side, num_classes: int) -> nn.Module:
        try:
            return make_network(self.names[side], num_classes=num_classes, **self._shared, **self._options[side])
        except TypeError as error:
            raise ValueError(f"model.{side}: {self.names[side]} has no such option ({error})") from error

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on: its own network, or both; weights from elsewhere by their content."""
        shared: dict[str, object] = {**self._shared}
        if stage != "upstream":
            shared["downstream"] = {"name": self.names["downstream"], **self._options["downstream"]}
        if stage != "baseline":
            weights_from = {"weights": self.content or None}
            shared["upstream"] = {"name": self.names["upstream"], **self._options["upstream"], **weights_from}
        return shared

    @property
    def content(self) -> str:
        """What identifies upstream weights from elsewhere."""
        if self.weights is None or _is_run(self.weights):
            return self.weights or ""
        if self.weights == foreign_weights.DEFAULT:
            return foreign_weights.default_content(self.names["upstream"])
        return foreign_weights.hash_file(self.weights)

    def foreign(
        self, read_run: Callable[[str], dict[str, Tensor]], *, download: bool = True
    ) -> dict[str, Tensor] | None:
        """The state of an upstream that is not trained here; None where it is, or would have to be downloaded.

        Raises:
            ValueError: it cannot be read, or is of another architecture.
        """
        if self.weights is None or (self.weights == foreign_weights.DEFAULT and not download):
            return None
        if self.weights == foreign_weights.DEFAULT:
            return foreign_weights.pretrained(self.names["upstream"]).state_dict()
        if _is_run(self.weights):
            return self._fitting({"": read_run(self.weights)})[1]
        network, tensors, place = self._fitting(foreign_weights.read_file(self.weights))
        if place:
            log.info(f"{foreign_weights.KEY}={self.weights}: {type(network).__name__}'s tensors are found as {place}")
        return tensors

    def upstream(self, state: Mapping[str, Tensor] | None, data: _Task) -> nn.Module:
        """The upstream network with a state, its head aside, or untrained.

        Raises:
            ValueError: the state is of another architecture.
        """
        if state is not None:
            return self._fitting({"": state})[0]
        if self.weights == foreign_weights.DEFAULT:
            return library_network(self.names["upstream"])
        return self._network("upstream", len(data.classes))

    def _fitting(self, groups: Mapping[str, Mapping[str, Tensor]]) -> tuple[nn.Module, dict[str, Tensor], str]:
        """The upstream network as configured, or as its library has it, whichever the tensors are of.

        What differs with the number of classes is the head, which nothing is inherited from: it may be missing.
        """
        name, options = self.names["upstream"], self._options["upstream"]
        makes: list[Callable[[int], nn.Module]] = [
            lambda classes: self._network("upstream", classes),
            lambda classes: library_network(name, num_classes=classes, **options),
        ]
        reason = ""
        for make in makes:
            network = make(2)
            with torch.device("meta"):
                other = make(3).state_dict()
            wanted = {
                name: tensor
                for name, tensor in network.state_dict().items()
                if tensor.shape == other[name].shape and not name.endswith("num_batches_tracked")
            }
            found = foreign_weights.match(wanted, groups)
            if isinstance(found, foreign_weights.Found):
                network.load_state_dict(found.tensors, strict=False)
                return network, found.tensors, found.place
            reason = found
        raise ValueError(f"{foreign_weights.KEY}={self.weights}: must be weights of {name}, but {reason}")


def _is_run(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{32}", text) is not None
