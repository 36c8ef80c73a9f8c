"""What an upstream network makes of the target's images before any training: the input of its head.

Shape letters: N images, D features.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from paramtransfer.transfer.explained_variance import Labelled, inputs_of, testing
from paramtransfer.transfer.reader import head_of


def features_of(network: nn.Module, images: Iterable[Labelled]) -> tuple[Tensor, Tensor]:
    """Features (N, D), averaged over places where there are several, and labels (N,).

    Args:
        network: with a head, whose first layer's input is what is meant, or without, whose output is.
        images: some batches.
    """
    head = {name.rpartition(".")[0] for name in head_of(network)}
    first = [name for name, _ in network.named_modules() if name in head][:1]
    rows, labels = [], []
    with testing(network), inputs_of(network, first) as seen:
        for images_BCHW, labels_B in images:
            scores = network(images_BCHW)
            given = seen[first[0]] if first else scores
            rows.append(given.flatten(2).mean(2) if given.dim() > 2 else given)
            labels.append(labels_B)
    return torch.cat(rows).cpu(), torch.cat(labels).cpu()
