"""The root keys of a configuration."""

from dataclasses import dataclass

from omegaconf import DictConfig

from paramtransfer.checks import choice, flag, share, whole


@dataclass(frozen=True, kw_only=True)
class Root:
    """The root keys.

    Raises:
        ValueError: a key that is out of range.
    """

    alpha: float | None
    """Share of the upstream's filters that the downstream inherits; None for transfer rules that take none."""
    seed: int
    """What all draws derive from."""
    replicates: int
    """Independent repetitions inside one job."""
    scale: str
    """Size of the experiments' grids: small or full."""
    reuse: bool
    """Whether finished runs with the same fingerprint are used instead of training again."""
    plan_only: bool
    """Whether to print what would be inherited, and train nothing."""
    dry_run: bool
    """Whether to print how much would be trained and reused, and train nothing."""

    def __post_init__(self) -> None:
        if self.alpha is not None:
            share("alpha", self.alpha)
        object.__setattr__(self, "seed", whole("seed", self.seed, at_least=0))
        object.__setattr__(self, "replicates", whole("replicates", self.replicates, at_least=1))
        choice("scale", self.scale, ("small", "full"))
        flag("reuse", self.reuse)
        flag("plan_only", self.plan_only)
        flag("dry_run", self.dry_run)


def check_root(config: DictConfig) -> Root:
    """The root keys, checked.

    Raises:
        ValueError: a key that is out of range.
    """
    return Root(**{key: config[key] for key in Root.__dataclass_fields__})
