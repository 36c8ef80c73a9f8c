"""What a run keeps of a stage: weights and hits, in one file that loads as plain tensors.

Shape letters: R replicates, N test points.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

FILE = "result.pt"


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a training ended. All accuracies and gains derive from the hits."""

    state: Mapping[str, Tensor]
    """The trained network's state dict, on the CPU."""
    hits_RN: Tensor
    """Which test points are right, bool; (R, 0) where nothing was tested."""

    def save(self, path: Path) -> None:
        """Write the file; hits are packed into bits."""
        packed = torch.from_numpy(np.packbits(self.hits_RN.numpy(), axis=1))
        torch.save({"state": dict(self.state), "hits": packed, "num_test": self.hits_RN.shape[1]}, path)

    @classmethod
    def load(cls, path: str) -> Self:
        """Read such a file.

        Raises:
            Exception: whatever is wrong with it.
        """
        saved = torch.load(path, map_location="cpu", weights_only=True)
        hits_RN = torch.from_numpy(np.unpackbits(saved["hits"].numpy(), axis=1, count=saved["num_test"])).bool()
        return cls(state=saved["state"], hits_RN=hits_RN)
