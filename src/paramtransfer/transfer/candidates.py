"""`transfer=chosen`: of several starts, the one that does best on the target's own training data.

Shape letters: C candidates, R replicates, N samples.
"""

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from paramtransfer.checks import choice, refusal
from paramtransfer.stage import Stage
from paramtransfer.transfer.controls import Aligned, Spectrum
from paramtransfer.transfer.explained_variance import Target
from paramtransfer.transfer.keep_default import choose
from paramtransfer.transfer.report import Compared, Inherited, Report
from paramtransfer.transfer.rules import Filters, Nothing
from paramtransfer.transfer.start import Start

_Rule = Filters | Nothing | Aligned
_RULES: dict[str, type[_Rule]] = {"filters": Filters, "none": Nothing, "aligned": Aligned, "spectrum": Spectrum}
_FRESH = ("none", "aligned", "spectrum")  # of no knowledge of the upstream's but, of the last, its singular values
_KEY = "transfer.candidates"

Account = tuple[dict[str, Tensor], Report]
"""A start, and what it inherits."""


class Comparison(NamedTuple):
    """What a comparison has found."""

    scores_RCN: Sequence[Tensor]
    """Of each replicate, every start's score on every sample; larger is better."""
    inflation: float = 1.0
    """Of standard errors, where the samples are not independent."""
    training_variance: float = 0.0
    """Of a difference, from one training to the next."""
    finalists: Sequence[int] = ()
    """Those that have come to the end; none named: all."""
    is_claim: bool = True
    """Whether the scores can carry a verdict."""

    def how(self) -> dict[str, Any]:
        """How the scores are to be judged."""
        return {name: value for name, value in self._asdict().items() if name != "scores_RCN"}


class Candidate(NamedTuple):
    """A start to compare."""

    rule: _Rule
    inherits: bool


class Chosen(ABC):
    """Compares candidates; a subclass says on which samples. The choice never sees the test data.

    Args:
        candidates: names of rules (`none`, `aligned`), or settings of `transfer=filters` or of another `rule`, whose
            lists are spanned to a grid. The first is the default, a fresh start, kept unless another is better by more
            than one standard error of their paired difference.

    Raises:
        ValueError: an argument that is out of range, named by its configuration key.
    """

    alpha = 1.0
    scale = math.nan  # the theory speaks of one start, not of a choice
    label = "chosen"
    needs_upstream = True
    start = Start()

    def __init__(self, *, candidates: Sequence[str | Mapping[str, Any]]) -> None:
        if not isinstance(candidates, list | tuple) or not candidates:
            raise refusal(_KEY, candidates, "a list of starts, a fresh one first: [none, {alpha: [0.5, 1]}]")
        self.candidates = {made.rule.label: made for entry in candidates for made in _spanned(entry)}
        first = next(iter(self.candidates.values()))
        if first.inherits or first.rule.needs_upstream:
            raise refusal(_KEY, candidates[0], "none or aligned in the first place: the default is a fresh start")
        if not any(made.inherits for made in self.candidates.values()):
            raise refusal(_KEY, candidates, "two or more different starts, one of which inherits")
        self.needs_target = any(made.rule.needs_target for made in self.candidates.values())

    def identity(self, stage: Stage) -> dict[str, object]:
        """The settings that a stage's result depends on: the downstream's alone."""
        if stage != "downstream":
            return {}
        made = enumerate(self.candidates.items())
        return {"candidates": {str(i): {"name": name, **each.rule.identity(stage)} for i, (name, each) in made}}

    def starts(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, target: Target | None = None
    ) -> list[Account]:
        """What each candidate makes of the two models."""
        return [made.rule(upstream, downstream, seed=seed, target=target) for made in self.candidates.values()]

    def __call__(
        self, upstream: nn.Module, downstream: nn.Module, *, seed: int, target: Target | None = None
    ) -> Account:
        """The default, before anything is compared; refuses what any candidate refuses."""
        state, report = self.starts(upstream, downstream, seed=seed, target=target)[0]
        return state, Report(report.rows, candidates=tuple(self.candidates))

    def choose(
        self, starts: Sequence[Account], module: LightningModule, data: Any, make_trial: Callable[[int], Trainer]
    ) -> Account:
        """The start that is kept, for each replicate its own, and the account of it.

        Args:
            starts: see `starts`.
            module: a model of the downstream's kind and how it is trained; left as it is.
            data: the downstream's.
            make_trial: a trainer for so many epochs that logs nothing.
        """
        started = time.perf_counter()
        found = self.compare(starts, module, data, make_trial)
        inherits = [made.inherits for made in self.candidates.values()]
        choices = [choose(scores_CN, inherits, **found.how()) for scores_CN in found.scores_RCN]
        kept = [each.index for each in choices]
        state = {name: _mixed([start[name] for start, _ in starts], kept) for name in starts[0][0]}
        seconds = time.perf_counter() - started
        compared = Compared(
            candidates=tuple(self.candidates),
            choices=choices,
            seconds=seconds,
            accuracies_RC=self.in_hindsight(starts, module, data),
        )
        return state, Report(_mixed_rows([report.rows for _, report in starts], kept), compared=compared)

    @abstractmethod
    def compare(
        self, starts: Sequence[Account], module: LightningModule, data: Any, make_trial: Callable[[int], Trainer]
    ) -> Comparison:
        """Try the starts out; the module is left as it is."""

    def in_hindsight(self, starts: Sequence[Account], module: LightningModule, data: Any) -> Tensor | None:
        """Test accuracies of all starts, (R, C), once the choice is made, to measure it by; None: not asked for."""
        return None

    @abstractmethod
    def check_target(self, data: object) -> None:
        """Refuse data that starts cannot be compared on.

        Raises:
            ValueError: names the key.
        """
        for made in self.candidates.values():
            made.rule.check_target(data)


def _spanned(entry: object) -> list[Candidate]:
    """The starts that an entry of the list stands for."""
    settings = {"rule": entry} if isinstance(entry, str) else entry
    if not isinstance(settings, Mapping):
        raise refusal(_KEY, entry, "the name of a rule or its settings")
    if empty := [key for key, value in settings.items() if value in ([], ())]:
        raise refusal(f"{_KEY}.{empty[0]}", [], "a value or a list of values")
    lists = [value if isinstance(value, list | tuple) else [value] for value in settings.values()]
    return [_candidate(dict(zip(settings, values, strict=True))) for values in itertools.product(*lists)]


def _candidate(settings: dict[str, Any]) -> Candidate:
    name = choice(f"{_KEY}.rule", settings.pop("rule", "filters"), tuple(_RULES))
    try:
        rule = _RULES[name](**settings)
    except TypeError as error:
        raise refusal(_KEY, settings, f"settings of transfer={name}: {error}") from None
    if rule.start != Start():
        allowed = "without head_epochs, freeze_epochs, frozen_norms, match_steps and batchnorm=recalibrate"
        raise refusal(_KEY, settings, f"{allowed}, which come after a start")
    return Candidate(rule, name not in _FRESH)


def _mixed(tensors: Sequence[Tensor], kept: Sequence[int]) -> Tensor:
    """One of the tensors, or, where they hold replicates in their first dimension, of each replicate one."""
    if len(kept) == 1:
        return tensors[kept[0]]
    return torch.stack([tensors[index][r] for r, index in enumerate(kept)])


def _mixed_rows(rows: Sequence[Sequence[Inherited]], kept: Sequence[int]) -> list[Inherited]:
    """The account of a mixture: of each tensor, what the starts that are kept say of it."""
    mixed = []
    for same in zip(*rows, strict=True):
        most = max((same[index] for index in kept), key=lambda row: row.elements)
        mixed.append(
            Inherited(
                target=most.target,
                upstream=most.upstream,
                filters=most.filters,
                of_filters=most.of_filters,
                mask=_mixed([row.mask for row in same], kept),
                reason=most.reason,
            )
        )
    return mixed
