"""From 8-bit pixels to what a network sees, a batch at a time, on the device.

Shape letters: B images of a batch, C channels (3), H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional


def crop_and_flip(pixels_BCHW: Tensor, padding: int, generator: Generator) -> Tensor:
    """Each image padded with zeros, cropped to its size at a random place, and flipped left to right half the time."""
    B, _, H, W = pixels_BCHW.shape
    device = pixels_BCHW.device
    flip_B = torch.randint(2, (B,), generator=generator, device=device)
    top_B, left_B = torch.randint(2 * padding + 1, (2, B), generator=generator, device=device)
    both_B2CHW = torch.stack([pixels_BCHW, pixels_BCHW.flip(3)], dim=1)
    padded = functional.pad(both_B2CHW, (padding,) * 4)
    windows = padded.unfold(3, H, 1).unfold(4, W, 1)  # a view: (B, 2, C, places, places, H, W)
    return windows[torch.arange(B, device=device), flip_B, :, top_B, left_B]


@dataclass(frozen=True, kw_only=True)
class FixedNoise:
    """Gaussian noise that belongs to its image, as the theory has it: drawn once, a function of seed and number alone.

    Attributes:
        std: standard deviation, 8-bit units.
        seed: of the noise of one split.
    """

    std: float
    seed: int

    def __call__(self, pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        """Images, known by their numbers in the split, with their noise."""
        shape = pixels_BCHW.shape[1:]
        noise = [
            np.random.default_rng([self.seed, index]).standard_normal(shape, dtype=np.float32)
            for index in index_B.tolist()
        ]
        return pixels_BCHW + self.std * torch.from_numpy(np.stack(noise))


def normalize(pixels_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels in 8-bit units, less the mean, by the standard deviation of each channel."""
    mean_C, std_C = (torch.tensor(values, device=pixels_BCHW.device)[:, None, None] for values in (mean, std))
    return (pixels_BCHW - mean_C) / std_C


def resize(images_BCHW: Tensor, size: int) -> Tensor:
    """Images brought to another height and width, bicubic; unchanged where they have it."""
    if images_BCHW.shape[-1] == size:
        return images_BCHW
    return functional.interpolate(
        images_BCHW, size=(size, size), mode="bicubic", antialias=size < images_BCHW.shape[-1]
    )
