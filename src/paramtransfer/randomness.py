"""Explicit random streams: every draw of the project comes from one of these."""

import numpy as np


def stream(name: str, *, seed: int, replicate: int = 0) -> np.random.Generator:
    """The stream `name` of one replicate of one seed; independent of every other name, replicate and seed."""
    return np.random.default_rng([seed, replicate, *name.encode()])
