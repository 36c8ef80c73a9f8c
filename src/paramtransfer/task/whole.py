"""All classes of a dataset; the source is another dataset, or weights from elsewhere (Section 6, Figure 4)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paramtransfer.checks import refusal
from paramtransfer.dataset.images import Images, say
from paramtransfer.stage import Side, Stage
from paramtransfer.task.image_tasks import ImageTasks, dataset_identity

if TYPE_CHECKING:
    from paramtransfer.transfer.rules import TransferRule

_SHOWN = 5


class Whole(ImageTasks):
    """Task 2 has all classes of the dataset, task 1 all of `task.upstream.dataset`.

    Args:
        upstream: `epochs`, and `dataset`, the source; None with weights from elsewhere.
        others: see `ImageTasks`.
    """

    def __init__(self, *, upstream: dict[str, Any], **others: Any) -> None:
        super().__init__(upstream=upstream, **others)
        self._source: Images = upstream["dataset"] or self.dataset
        if not hasattr(self._source, "classes"):
            raise refusal(
                "task.upstream.dataset",
                self._source,
                "null or a dataset: +dataset@task.upstream.dataset=image_folder task.upstream.dataset.root=...",
            )

    def identity(self, stage: Stage) -> dict[str, object]:
        """What a stage's result depends on: an upstream trained here, on nothing of the target."""
        own = super().identity(stage)
        if self.model.weights is None and self._source is not self.dataset and stage != "baseline":
            source = {"upstream": {"epochs": self.epochs["upstream"], "dataset": dataset_identity(self._source, stage)}}
            own["task"] = {**self._task_identity(stage), **source}
            if stage == "upstream":
                del own["dataset"]
        return own

    def check(self, transfer: "TransferRule", seed: int, replicates: int) -> None:
        """Refuse an upstream that would learn the target's own images, and what `ImageTasks` refuses.

        Raises:
            ValueError: names the key.
        """
        trains_upstream = transfer.needs_upstream and self.model.weights is None
        if trains_upstream and (
            self._source.place == self.dataset.place or self._source.content == self.dataset.content
        ):
            allowed = (
                "another dataset with task=whole, or model.upstream.weights a run id, a checkpoint file or DEFAULT"
            )
            given = None if self._source is self.dataset else self._source.place
            raise refusal("task.upstream.dataset", given, allowed)
        if trains_upstream:
            self._say_shared()
        super().check(transfer, seed, replicates)

    def _say_shared(self) -> None:
        """Say which of the target's classes the upstream learns, too, by their names."""
        sources = {name.casefold() for name in self._source.classes}
        shared = [name for name in self.dataset.classes if name.casefold() in sources]
        if shared:
            of = f"{len(shared)} of the target's {len(self.dataset.classes)} classes"
            say(f"task.upstream.dataset={self._source.place}: its classes include {of}: {', '.join(shared[:_SHOWN])}")

    def dataset_of(self, side: Side) -> Images:
        """The source for task 1."""
        return self._source if side == "upstream" else self.dataset

    def classes_of(self, side: Side, seed: int) -> Sequence[str]:
        """All."""
        return self.dataset_of(side).classes
