"""Which: the filters that are inherited, out of those that could be."""

import math

import torch
from torch import Tensor


def num_inherited(alpha: float, num_filters: int) -> int:
    """alpha m, rounded to the nearest whole filter (halves up)."""
    return math.floor(alpha * num_filters + 0.5)


def first(alpha: float, num_filters: int) -> Tensor:
    """Indices of the first alpha m filters: for exchangeable filters, in law a random sample (Algorithm 1)."""
    return torch.arange(num_inherited(alpha, num_filters))
