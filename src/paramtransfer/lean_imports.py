"""Lightning and MLflow import whatever they find installed: 40 % of the time before the first progress bar.

Neither needs those packages for what a job does, and both work where they are missing (`mlflow-skinny` comes without).
So they are imported as if they were: 4.0 s of CPU instead of 6.7 s up to the first bar (n = 5 each, in turn). What a
job uses itself is imported as ever.
"""

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError
from types import ModuleType

_NOT_NEEDED = ("torchvision", "scipy", "matplotlib", "pandas", "pyarrow")
_DYNAMO = "torch._dynamo"


def import_lean() -> None:
    """Import torch, Lightning and MLflow, without more than they need."""
    import torch  # noqa: F401 (what torch itself imports, it shall find)

    with _hidden(_NOT_NEEDED), _without_dynamo():
        import pytorch_lightning  # noqa: F401

        import paramtransfer.tracking.store  # noqa: F401 (MLflow, with its environment set)


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """In the block, packages that are not imported yet seem not to be installed."""
    hidden = [name for name in names if name not in sys.modules]
    find = importlib.metadata.distribution

    def distribution(distribution_name: str) -> Distribution:
        if distribution_name in hidden:
            raise PackageNotFoundError(distribution_name)
        return find(distribution_name)

    importlib.metadata.distribution = distribution
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        yield
    finally:
        importlib.metadata.distribution = find
        for name in hidden:
            del sys.modules[name]


class _IsCompiled(type):
    def __instancecheck__(cls, instance: object) -> bool:
        """Nothing is compiled where the compiler has not been imported."""
        compiler = sys.modules.get(_DYNAMO)
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class _OptimizedModule(metaclass=_IsCompiled):
    """What Lightning asks whether a module is one."""


@contextmanager
def _without_dynamo() -> Iterator[None]:
    """In the block, torch's compiler is not imported; it is when something is compiled."""
    if _DYNAMO in sys.modules:
        yield
        return
    stand_in = ModuleType(_DYNAMO)
    stand_in.OptimizedModule = _OptimizedModule  # type: ignore[attr-defined]
    stand_in.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    sys.modules[_DYNAMO] = stand_in
    try:
        yield
    finally:
        del sys.modules[_DYNAMO]
