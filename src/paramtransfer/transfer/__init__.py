"""What a new model inherits: where (plan), which (select, scores), how (apply), how it starts, and the callback."""

from paramtransfer.transfer.apply import inherit
from paramtransfer.transfer.blocks import plan_blocks
from paramtransfer.transfer.layers import Layers
from paramtransfer.transfer.plan import plan_filters
from paramtransfer.transfer.report import Report
from paramtransfer.transfer.rules import Filters, TransferRule
from paramtransfer.transfer.select import Selection
from paramtransfer.transfer.start import Start

__all__ = [
    "Filters",
    "Layers",
    "Report",
    "Selection",
    "Start",
    "TransferRule",
    "inherit",
    "plan_blocks",
    "plan_filters",
]
