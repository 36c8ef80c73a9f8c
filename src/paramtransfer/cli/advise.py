"""Whether, from where and how much to inherit: the trainings of an advisor, composed from one configuration."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
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
    question, compose = question_of(config), _composer(config)
    return [compose(question, candidate, None, None) for candidate in question.candidates]


def job_maker(config: DictConfig) -> Callable[[Candidate, int | None, int | None], Job]:
    """Makes the job of a candidate, so many epochs and a seed from a configuration; None leaves what it has."""
    question, compose = question_of(config), _composer(config)
    return lambda candidate, epochs, seed: make_job(compose(question, candidate, epochs, seed))


def _composer(config: DictConfig) -> Callable[[Question, Candidate, int | None, int | None], DictConfig]:
    """Composes as Hydra has composed this process's configuration, with a few words more."""
    running, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    typed = [*running.overrides.hydra, *running.overrides.task]

    def compose(question: Question, candidate: Candidate, epochs: int | None, seed: int | None) -> DictConfig:
        settings = {
            "trainer.progress": config.trainer.progress,
            **(question.rules[candidate.rule] or {}),
            "model.upstream.weights": candidate.source,
            **({} if epochs is None else {"task.downstream.epochs": epochs}),
            **({} if seed is None else {"seed": seed}),
        }
        words = [f"{key}={_written(value)}" for key, value in settings.items()]
        try:
            composed = loader.load_configuration(running.job.config_name, [*typed, *words], RunMode.RUN)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"advise.rules.{candidate.rule}: {first_line(error)}") from error
        return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])

    return compose


def _written(value: object) -> str:
    """A value as Hydra's grammar reads it."""
    return quoted(value) if isinstance(value, str) else json.dumps(value)
