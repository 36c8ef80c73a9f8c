"""A job starts without what it does not use, and has it all the same when it asks."""

import subprocess
import sys

SCRIPT = """
import sys
from paramtransfer.lean_imports import import_lean

import_lean()
left_out = {"torchvision", "scipy", "matplotlib", "pandas", "pyarrow", "torch._dynamo"}
assert not left_out & sys.modules.keys(), left_out & sys.modules.keys()

import torch
from lightning_fabric.wrappers import OptimizedModule
assert not isinstance(torch.nn.Linear(1, 1), OptimizedModule)
assert "torch._dynamo" not in sys.modules

compiled = torch.compile(torch.nn.Linear(1, 1))
assert isinstance(compiled, OptimizedModule)
assert not isinstance(torch.nn.Linear(1, 1), OptimizedModule)
import matplotlib.figure, pandas, pyarrow, scipy.special, torchvision.models
from importlib.metadata import version
assert version("torchvision") and version("pandas")
"""


def test_what_is_left_out_comes_when_asked_for() -> None:
    """Nothing of what is not needed is imported; later it is, and Lightning knows a compiled module."""
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
