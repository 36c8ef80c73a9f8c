"""Parameter transfer: what happens if a new model inherits part of an old one?

plan = plan_filters(upstream, downstream)
state, report = inherit(plan, upstream.state_dict(), downstream.state_dict(), Selection(alpha=0.5, seed=0))
downstream.load_state_dict(state)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paramtransfer.transfer import Selection, inherit, plan_blocks, plan_filters
    from paramtransfer.transfer.callback import ParameterTransfer

__all__ = ["ParameterTransfer", "Selection", "inherit", "plan_blocks", "plan_filters"]


def __getattr__(name: str) -> object:
    """The names above, imported when they are asked for: the command line's help needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "callback" if name == "ParameterTransfer" else ""
    return getattr(import_module(f"paramtransfer.transfer.{module}".rstrip(".")), name)
