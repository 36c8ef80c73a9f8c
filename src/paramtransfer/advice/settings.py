"""What an advisor is asked: candidates, and what it may spend and risk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paramtransfer.advice.policy import Thresholds
from paramtransfer.checks import number, refusal, whole

_RULES = "a rule by name, each with the keys that it sets: {whole: {transfer: filters, alpha: 1}}"


class Candidate(NamedTuple):
    """A start that inherits."""

    source: str
    """Where the upstream's weights are from: what `model.upstream.weights` takes."""
    rule: str
    """What is inherited of them, by the rule's name."""

    @property
    def name(self) -> str:
        """Both."""
        return f"{self.source} {self.rule}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """The key `advise` of a configuration.

    Raises:
        ValueError: a key that is out of range.
    """

    sources: Sequence[str]
    """`advise.from`."""
    rules: Mapping[str, Mapping[str, object] | None]
    """Keys and values that each rule sets; None leaves a rule out."""
    minutes: float
    """Of all trainings together."""
    seeds: int
    """The most seeds that finalists are compared on."""
    risk: float
    worth: float
    prior: float
    """Standard deviation of gains, before anything is seen."""

    def __post_init__(self) -> None:
        if not isinstance(self.sources, list | tuple) or not self.sources:
            raise refusal("advise.from", self.sources, "a list of upstreams: [DEFAULT,mine.pt,RUN_ID]")
        for source in self.sources:
            if not isinstance(source, str) or not source:
                raise refusal(
                    "advise.from", source, "run ids, checkpoint files or DEFAULT, in quotes if of digits alone"
                )
        if len(set(self.sources)) < len(self.sources):
            raise refusal("advise.from", list(self.sources), "different upstreams")
        if not isinstance(self.rules, Mapping) or not any(self.rules.values()):
            raise refusal("advise.rules", self.rules, _RULES)
        for name, rule in self.rules.items():
            if rule is not None and (not isinstance(rule, Mapping) or not rule):
                raise refusal(
                    f"advise.rules.{name}", rule, "null or the keys that it sets: {transfer: filters, alpha: 1}"
                )
        number("advise.minutes", self.minutes, above=0)
        whole("advise.seeds", self.seeds, at_least=2)
        number("advise.prior", self.prior, above=0)
        for key in ("risk", "worth"):
            number(f"advise.{key}", getattr(self, key), at_least=0)
        if not 0 < self.risk < 0.5:
            raise refusal("advise.risk", self.risk, "a number between 0 and 0.5")

    @property
    def thresholds(self) -> Thresholds:
        """What its verdict keeps to."""
        return Thresholds(risk=self.risk, worth=self.worth)

    @property
    def candidates(self) -> list[Candidate]:
        """Every upstream by every rule; the first rule of each upstream first."""
        rules = [name for name, rule in self.rules.items() if rule is not None]
        return [Candidate(source, rule) for rule in rules for source in self.sources]
