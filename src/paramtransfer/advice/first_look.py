"""Cheap scores of upstreams: an order to try them in, and which of them has probably seen the target's classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from paramtransfer.advice.knn import knn_accuracy
from paramtransfer.advice.logme import logme

_FAR = 3.0  # standard errors
_FEWER = 0.5  # of the errors


class Cheap(NamedTuple):
    """What an upstream's features say of the target's training images."""

    knn: float
    """Share of images whose nearest others are of their class."""
    logme: float
    """Mean log evidence per image and class."""
    num_images: int


def cheap_scores(features_ND: Tensor, labels_N: Tensor) -> Cheap:
    """Both scores of some features, (N, D), with labels (N,)."""
    return Cheap(knn_accuracy(features_ND, labels_N), logme(features_ND, labels_N), len(labels_N))


def promising_first(scores: Mapping[str, Cheap]) -> list[str]:
    """Upstreams by the sum of their ranks in both scores; among equals the better k-NN accuracy first."""
    ranks: dict[str, int] = dict.fromkeys(scores, 0)
    for field in ("knn", "logme"):
        values = sorted({getattr(score, field) for score in scores.values()}, reverse=True)
        for name, score in scores.items():
            ranks[name] += values.index(getattr(score, field))
    return sorted(scores, key=lambda name: (ranks[name], -scores[name].knn))


def probably_seen(scores: Mapping[str, Cheap]) -> Sequence[str]:
    """Upstreams whose k-NN accuracy is far above all others': at most half of the next one's errors, and 3 s.e. fewer.

    The standard error is as if both were measured on images of their own, which is more than it is on the same. One
    upstream alone has nothing to be compared with: an easy target and a target seen before look the same.
    """
    order = sorted(scores, key=lambda name: -scores[name].knn)
    if len(order) < 2:
        return []
    (first, num), (second, _) = ((scores[name].knn, scores[name].num_images) for name in order[:2])
    sem = ((first * (1 - first) + second * (1 - second)) / num) ** 0.5
    is_far = 1 - first <= _FEWER * (1 - second) and first - second > _FAR * sem
    return order[:1] if is_far else []
