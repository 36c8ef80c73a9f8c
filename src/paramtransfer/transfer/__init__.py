"""What a new model inherits: where (plan), which (select), how (apply), and the callback that does it."""

from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.blocks import plan_blocks
from paramtransfer.transfer.plan import plan_filters
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.rules import Filters, Layers, TransferRule
from paramtransfer.transfer.select import Selection

__all__ = [
    "Filters",
    "Layers",
    "Report",
    "Selection",
    "TransferRule",
    "inherit",
    "plan_blocks",
    "plan_filters",
]
