"""Which candidate is trained for how many epochs, with which seed: successive halving on paired trainings.

A rung trains the fresh start and all candidates that are left for some epochs with one seed, and keeps the better half,
until there are two. Each rung has twice the epochs of the one below, and a seed of its own, by which alone it chooses:
nobody is judged by the luck that it was chosen for. The last rung trains the finalists for all epochs, with one seed
after another as long as there is time. Time is what trainings are recorded to have taken, so that the outcome does not
depend on which of them are at hand already.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from paramtransfer.advice.policy import FRESH, Pair
from paramtransfer.training import validation_halving

_LEAST_SEEDS = 2  # of the last rung, that time is set aside for
_ROUNDING = 1e-9
_RUNG_SEEDS = 1000  # where those of the rungs below begin, or beyond the last one's


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training ended, as far as a choice may know: nothing of the test images."""

    accuracy: float
    """On validation images."""
    num_images: int
    """Of these."""
    seconds: float
    """That it took, whenever that was."""


Train = Callable[[str, int, int], Trained]
"""A candidate, or FRESH, trained for some epochs with a seed."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a search may use."""

    seconds: float
    """Of all trainings."""
    epochs: int
    """Of a whole training."""
    seeds: int
    """The most seeds of whole trainings."""
    first_seed: int

    @property
    def whole_seeds(self) -> range:
        """Those of the last rung, by which alone candidates are judged."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclass(kw_only=True)
class Search:
    """What has been trained, and what became of each candidate."""

    limits: Limits
    trained: dict[tuple[str, int, int], Trained] = field(default_factory=dict)
    """By candidate, epochs and seed."""
    states: dict[str, str] = field(default_factory=dict)
    """In words, of each candidate."""
    finalists: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all trainings."""
        return sum(each.seconds for each in self.trained.values())

    def pairs(self, candidate: str, epochs: int) -> dict[int, Pair]:
        """A candidate's trainings of some length against the fresh start's of the same seed, by seed."""
        found = {}
        for (name, length, seed), ours in self.trained.items():
            fresh = self.trained.get((FRESH, epochs, seed))
            if (name, length) == (candidate, epochs) and fresh is not None:
                found[seed] = Pair(ours.accuracy - fresh.accuracy, ours.num_images)
        return found

    def whole_pairs(self, candidate: str) -> dict[int, Pair]:
        """The same of whole trainings with the seeds that no rung has chosen by."""
        found = self.pairs(candidate, self.limits.epochs)
        return {seed: pair for seed, pair in found.items() if seed in self.limits.whole_seeds}

    def longest(self, candidate: str) -> int:
        """The most epochs that a candidate was trained for; 0 for none."""
        return max((epochs for name, epochs, _ in self.trained if name == candidate), default=0)


def search(candidates: Sequence[str], train: Train, limits: Limits) -> Search:
    """Spend the time.

    Args:
        candidates: the most promising first: the last ones are left out where there is no time for all.
        train: called once for each training.
        limits: what may be used.
    """
    done = Search(limits=limits, states=dict.fromkeys(candidates, "not trained, for lack of time"))

    def compare(names: Sequence[str], epochs: int, seed: int) -> None:
        for name in (FRESH, *names):
            if (name, epochs, seed) not in done.trained:
                done.trained[name, epochs, seed] = train(name, epochs, seed)

    compare([], limits.epochs, limits.first_seed)  # which every search needs, and which says how long an epoch takes
    left = list(candidates[: _num_affordable(len(candidates), done.seconds / limits.epochs, limits)])
    for number, (epochs, num) in enumerate(rungs(len(left), limits.epochs)):
        seed = limits.first_seed + max(_RUNG_SEEDS, limits.seeds) + number
        compare(left, epochs, seed)
        gains = {name: done.pairs(name, epochs)[seed].gain for name in left}
        order = sorted(left, key=lambda name: -gains[name])  # stable: the more promising first among equals
        left = order[:num]
        done.states |= dict.fromkeys(order[num:], f"left after {epochs} of {limits.epochs} epochs")
    done.finalists = left
    done.states |= dict.fromkeys(left, "finalist")
    for seed in limits.whole_seeds:
        missing = [name for name in (FRESH, *left) if (name, limits.epochs, seed) not in done.trained]
        longest = max(each.seconds for (_, epochs, _), each in done.trained.items() if epochs == limits.epochs)
        missing = missing[: max(int((limits.seconds - done.seconds) / longest + _ROUNDING), 0)]
        if not set(missing) - {FRESH}:
            break
        compare([name for name in missing if name != FRESH], limits.epochs, seed)
    return done


def rungs(num: int, epochs: int) -> Iterator[tuple[int, int]]:
    """The rungs below the last one: for how many epochs each trains, and how many candidates it leaves."""
    *below, _ = validation_halving.rungs(num, epochs)
    yield from below


def needed_epochs(num: int, epochs: int) -> int:
    """Epochs of all trainings of a search that starts with so many candidates, with the fewest seeds at its end."""
    total, left = 0, num
    for length, kept in rungs(num, epochs):
        total, left = total + length * (1 + left), kept
    return total + _LEAST_SEEDS * epochs * (1 + left)


def _num_affordable(num: int, seconds_per_epoch: float, limits: Limits) -> int:
    """How many candidates a search can start with; at least one."""
    while num > 1 and needed_epochs(num, limits.epochs) * seconds_per_epoch > limits.seconds:
        num -= 1
    return num
