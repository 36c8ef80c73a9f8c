"""Whether, from where and how much to inherit: the trainings of an advisor, composed from one configuration."""

import copy
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paramtransfer.advice.advisor import Advisor, Kept
from paramtransfer.advice.settings import Candidate, Question
from paramtransfer.cli.compose import make_job
from paramtransfer.cli.words import quoted
from paramtransfer.errors import ConfigError, first_line
from paramtransfer.experiment.job import Job
from paramtransfer.tracking.masking import masked
from paramtransfer.tracking.store import Store


def question_of(config: DictConfig) -> Question:
    """What a configuration asks.

    Raises:
        ConfigError: a key that is missing or out of range.
    """
    try:
        values: Any = OmegaConf.to_container(config.advise, resolve=True)
        sources = values.pop("from")
        if isinstance(sources, list):
            sources = [os.path.expanduser(each) if isinstance(each, str) else each for each in sources]
        return Question(sources=sources, **values)
    except (ValueError, TypeError, KeyError, OmegaConfBaseException) as error:
        raise ConfigError(first_line(error)) from error


def advise(config: DictConfig, store: Store, *, tags: Mapping[str, str]) -> Kept:
    """Answer a configuration's question.

    Raises:
        ConfigError: what cannot be asked; before anything is trained.
    """
    advisor = Advisor(question_of(config), job_maker(config), store, tags=tags)
    command = masked(shlex.join(["python", "train.py", *sys.argv[1:]]))
    return advisor.answer(command=command, config=OmegaConf.to_yaml(config, resolve=True))


def first_configs(config: DictConfig) -> list[DictConfig]:
    """A whole training of each candidate, with the configuration's seed: what an advice consists of at the least."""
    question = question_of(config)
    return [_composed(config, question, candidate) for candidate in question.candidates]


def job_maker(config: DictConfig) -> Callable[[Candidate, int | None, int | None], Job]:
    """Makes the job of a candidate, so many epochs and a seed from a configuration; None leaves what it has."""
    compose = cache(partial(_composed, config, question_of(config)))  # by candidate: composing takes its time

    def make(candidate: Candidate, epochs: int | None, seed: int | None) -> Job:
        own = copy.deepcopy(compose(candidate))
        for key, value in (("task.downstream.epochs", epochs), ("seed", seed)):
            if value is not None:
                OmegaConf.update(own, key, value)
        return make_job(own)

    return make


def _composed(config: DictConfig, question: Question, candidate: Candidate) -> DictConfig:
    """As Hydra has composed this process's configuration, with the words of a candidate after those that were typed."""
    running, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    settings = {
        "trainer.progress": config.trainer.progress,
        **(question.rules[candidate.rule] or {}),
        "model.upstream.weights": candidate.source,
    }
    words = [f"{key}={_written(value)}" for key, value in settings.items()]
    overrides = [*running.overrides.hydra, *running.overrides.task, *words]
    try:
        composed = loader.load_configuration(running.job.config_name, overrides, RunMode.RUN)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"advise.rules.{candidate.rule}: {first_line(error)}") from error
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def _written(value: object) -> str:
    """A value as Hydra's grammar reads it."""
    return quoted(value) if isinstance(value, str) else json.dumps(value)
