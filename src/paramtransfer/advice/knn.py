"""How well the nearest neighbours among features tell the classes, each image left out in turn.

Shape letters: N images, D features, K neighbours.
"""

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = 5


def knn_accuracy(features_ND: Tensor, labels_N: Tensor, *, neighbours: int = NEIGHBOURS) -> float:
    """Share of images that most of their nearest other images are of the class of, by cosine distance.

    Of classes with equally many neighbours the one with the more similar ones counts. Where all features of an image
    are 0, every other image is equally far from it.

    Raises:
        ValueError: fewer than two images.
    """
    num = len(labels_N)
    if num < 2:
        raise ValueError(f"{num} images: must be two or more, to compare one with the others")
    unit_ND = functional.normalize(features_ND.double(), dim=1)
    similarity_NN = (unit_ND @ unit_ND.T).fill_diagonal_(-torch.inf)
    near = similarity_NN.topk(min(neighbours, num - 1), dim=1)
    votes = 1 + near.values / (4 * neighbours)  # so that all similarities together weigh less than a neighbour
    classes_NC = torch.zeros(num, int(labels_N.max()) + 1, dtype=torch.double)
    classes_NC.scatter_add_(1, labels_N[near.indices], votes)
    return (classes_NC.argmax(dim=1) == labels_N).double().mean().item()
