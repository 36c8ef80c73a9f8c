"""All classes of a dataset; the source is another dataset, or weights from elsewhere (Section 6, Figure 4)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from paramtransfer.dataset.images import Images
from paramtransfer.stage import Side
from paramtransfer.task.image_tasks import ImageTasks


class Whole(ImageTasks):
    """Task 2 has all classes of the dataset, task 1 all of `task.upstream.dataset`, or of the same one.

    Args:
        upstream: `epochs`, and `dataset`, the source.
        others: see `ImageTasks`.
    """

    unused: ClassVar = {"upstream": ("downstream",), "baseline": ("upstream",)}

    def __init__(self, *, upstream: dict[str, Any], **others: Any) -> None:
        super().__init__(upstream=upstream, **others)
        self._source: Images = upstream["dataset"] or self.dataset

    def dataset_of(self, side: Side) -> Images:
        """The source for task 1."""
        return self._source if side == "upstream" else self.dataset

    def classes_of(self, side: Side, seed: int) -> Sequence[str]:
        """All."""
        return self.dataset_of(side).classes
