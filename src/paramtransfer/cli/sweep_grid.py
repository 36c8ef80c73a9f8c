"""The jobs of a sweep, before any of them runs: what each sets, and its configuration."""

import copy
from collections.abc import Iterator, Sequence
from functools import cache

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from paramtransfer.errors import ConfigError


def sweep_jobs(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job of a sweep; None where the sweeper is not Hydra's own, which alone knows them.

    Raises:
        ConfigError: a key is swept over no values, or over all of an interval.
    """
    if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # which knows the groups
    overrides = parser.parse_overrides([*params, *config.hydra.overrides.task])
    for override in overrides:
        if override.is_interval_sweep():
            key = override.key_or_group
            raise ConfigError(f"{override.input_line}: must be values, as {key}=0,1 or {key}=range(3)")
        if override.is_sweep_override() and next(iter(override.sweep_string_iterator()), None) is None:
            raise ConfigError(f"{override.input_line}: must hold at least one value")
    (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return jobs


def sweep_configs(config: DictConfig, jobs: Sequence[Sequence[str]]) -> Iterator[DictConfig]:
    """The configuration of each job of a sweep.

    The first is composed by Hydra. So are the others where the sweep changes groups; where it changes values only,
    they are set in the first, which takes a thirtieth of the time.

    Raises:
        HydraException: an override that does not fit.
    """

    loader = GlobalHydra.instance().config_loader()
    is_group = cache(lambda key: bool(loader.get_group_options(key)))
    same = set(jobs[0]).intersection(*jobs)
    first = None
    for job in jobs:
        changes = OverridesParser.create().parse_overrides([text for text in job if text not in same])
        if first is None or any(is_group(change.key_or_group) for change in changes):
            composed = loader.load_sweep_config(config, list(job))
            own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            first = first or own
            yield own
        else:
            values = copy.deepcopy(first)
            for change in changes:
                OmegaConf.update(values, change.key_or_group, change.value())
            yield values


def job_values(jobs: Sequence[Sequence[str]]) -> list[dict[str, object]]:
    """What each job of a sweep sets."""
    parse = OverridesParser.create().parse_overrides
    return [{override.key_or_group: override.value() for override in parse(list(job))} for job in jobs]
