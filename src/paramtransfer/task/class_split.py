"""Target and source classes of one dataset (Section 6, Table 1)."""

from collections.abc import Sequence
from typing import Any

from paramtransfer.checks import refusal, whole
from paramtransfer.randomness import stream
from paramtransfer.stage import Side, Stage
from paramtransfer.task.image_tasks import ImageTasks


class ClassSplit(ImageTasks):
    """Task 2 has the target classes, task 1 `ratio` times as many of the others; N_1 / N_2 = ratio.

    Args:
        num_target: target classes to draw by the seed.
        target_classes: their names instead; None draws.
        ratio: source classes for each target class; a larger ratio adds to the classes of a smaller one.
        others: see `ImageTasks`.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    def __init__(self, *, num_target: int, target_classes: Sequence[str] | None, ratio: int, **others: Any) -> None:
        super().__init__(**others)
        names = list(self.dataset.classes)
        self._target = None if target_classes is None else [str(name) for name in target_classes]
        for name in self._target or ():
            if name not in names:
                raise refusal("task.target_classes", name, f"among {', '.join(names)}")
        if self._target is not None and (len(set(self._target)) < len(self._target) or len(self._target) < 2):
            raise refusal("task.target_classes", self._target, "two or more different classes")
        self._num_target = len(self._target or ()) or whole("task.num_target", num_target, at_least=2)
        self._ratio = whole("task.ratio", ratio, at_least=1)
        if 2 * self._num_target > len(names):
            targets = f"{self._num_target} targets and as many sources"
            raise ValueError(
                f"task=class_split: must have at least {2 * self._num_target} classes ({targets}), not {len(names)}"
            )
        if self._num_target * (1 + self._ratio) > len(names):
            most = len(names) // self._num_target - 1
            allowed = f"at most {most}: {len(names)} classes, {self._num_target} of them targets"
            raise refusal("task.ratio", ratio, allowed)

    def _task_identity(self, stage: Stage) -> dict[str, object]:
        drawn = {"num_target": self._num_target, "target_classes": self._target}
        return {**super()._task_identity(stage), **drawn, **({} if stage == "baseline" else {"ratio": self._ratio})}

    def classes_of(self, side: Side, seed: int) -> Sequence[str]:
        """Drawn from one order of the classes: first the target's, then the source's."""
        names = list(self.dataset.classes)
        order = [names[i] for i in stream("classes", seed=seed).permutation(len(names))]
        target = self._target or order[: self._num_target]
        if side == "downstream":
            return target
        return [name for name in order if name not in target][: self._ratio * self._num_target]

    def label(self, side: Side) -> str:
        """The setting in a few words, for the names of runs."""
        ratio = f" {self._ratio * self._num_target} classes" if side == "upstream" else f" ratio={self._ratio}"
        return super().label(side) + ratio
