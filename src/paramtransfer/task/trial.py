"""Whether a network can be trained: forward passes without numbers, before anything is created."""

import torch
from torch import Tensor, nn

from paramtransfer.checks import refusal
from paramtransfer.errors import first_line
from paramtransfer.stage import Side

_USUAL_SIZES = (224, 256, 299, 384, 448, 512, 518)


def check_forward(network: nn.Module, *, side: Side, name: str, num_classes: int, size: int) -> None:
    """Refuse a network that would fail at its first step.

    Args:
        network: ends up without numbers.
        side: whose it is.
        name: what it is called in the configuration.
        num_classes: scores that are expected of it for each image.
        size: height and width of the images, pixels.

    Raises:
        ValueError: names the key: the size, where the network takes another one.
    """
    network.to("meta")
    reason = _failure(network, num_classes, size)
    if not reason:
        return
    reasons = {other: _failure(network, num_classes, other) for other in _USUAL_SIZES}
    fitting = [str(other) for other, why in reasons.items() if not why]
    if fitting:
        raise refusal("task.input_size", size, f"a size that {name} takes ({reason}), such as {fitting[0]}")
    why = reasons[_USUAL_SIZES[-1]]
    raise ValueError(f"model.{side}.name={name}: cannot be trained with its options as they are: {why}")


def _failure(network: nn.Module, num_classes: int, size: int) -> str:
    """What is wrong with a step of training or testing on such images; empty where nothing is."""
    for training in (True, False):
        try:
            scores = network.train(training)(torch.empty(2, 3, size, size, device="meta"))
        except NotImplementedError:  # of an operation without a version for tensors that have no numbers
            return ""
        except Exception as error:  # whatever a network makes of a size
            return first_line(error)
        if any(field.startswith("aux_logits") for field in getattr(scores, "_fields", ())):
            return "it has auxiliary outputs in training (its option aux_logits=false leaves them out)"
        if not isinstance(scores, Tensor):
            return f"it gives a {type(scores).__name__} instead of the scores of {num_classes} classes"
        if scores.shape != (2, num_classes):
            return f"it gives {tuple(scores.shape)} instead of the scores of {num_classes} classes for 2 images"
    return ""
