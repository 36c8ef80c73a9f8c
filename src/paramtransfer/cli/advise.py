"""Whether, from where and how much to inherit: the trainings of an advisor, composed from one configuration."""

import copy
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paramtransfer.advice.advisor import Advisor, Kept
from paramtransfer.advice.settings import Candidate, Question
from paramtransfer.cli.compose import make_job
from paramtransfer.cli.mistakes import keys_in, no_option
from paramtransfer.cli.words import quoted
from paramtransfer.errors import ConfigError, first_line
from paramtransfer.experiment.job import Job
from paramtransfer.interrupts import Interrupted
from paramtransfer.model.foreign_weights import KEY
from paramtransfer.suggestions import did_you_mean
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
        question = Question(sources=sources, **values)
    except (ValueError, TypeError, KeyError, OmegaConfBaseException) as error:
        raise ConfigError(first_line(error)) from error
    _check_words(question)
    return question


def _check_words(question: Question) -> None:
    """Refuse what was typed and does nothing."""
    set_by_all = set.intersection(*(set(rule) for rule in question.rules.values() if rule))
    for word in HydraConfig.get().overrides.task:
        key, _, value = word.lstrip("+").partition("=")
        if key == "advise.rules" and re.fullmatch(r"\{\s*\}", value):
            raise ConfigError(
                f"{word}: must name rules, which are added to those there are; {{all: null}} leaves one out"
            )
        if key == KEY:
            raise ConfigError(f"{word}: must be left out with experiment=advise, whose upstreams are in advise.from")
        if key in set_by_all:
            raise ConfigError(f"{word}: must be left out with experiment=advise, each of whose advise.rules sets {key}")


def advise(config: DictConfig, store: Store, *, tags: Mapping[str, str]) -> Kept:
    """Answer a configuration's question.

    Raises:
        ConfigError: what cannot be asked; before anything is trained.
    """
    with _refusing_sources():
        advisor = Advisor(question_of(config), job_maker(config), store, tags=tags)
    command = masked(shlex.join(["python", "train.py", *sys.argv[1:]]))
    try:
        return advisor.answer(command=command, config=OmegaConf.to_yaml(config, resolve=True))
    except Interrupted as error:
        raise Interrupted(f"{error}: the same command goes on with the advice") from None


@contextmanager
def _refusing_sources() -> Iterator[None]:
    """An upstream that is refused in the block is so by the key that it was named by."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(re.sub(f"^{re.escape(KEY)}", "advise.from", str(error))) from error


def first_configs(config: DictConfig) -> list[DictConfig]:
    """A whole training of each candidate, with the configuration's seed: what an advice consists of at the least.

    Raises:
        ConfigError: a candidate that is refused.
    """
    question, make = question_of(config), job_maker(config)
    with _refusing_sources():
        for candidate in question.candidates:
            make(candidate, None, None)
    return [_composed(config, question, candidate) for candidate in question.candidates]


def job_maker(config: DictConfig) -> Callable[[Candidate, int | None, int | None], Job]:
    """Makes the job of a candidate, so many epochs and a seed from a configuration; None leaves what it has."""
    question = question_of(config)
    compose = cache(partial(_composed, config, question))  # by candidate: composing takes its time

    def make(candidate: Candidate, epochs: int | None, seed: int | None) -> Job:
        own = copy.deepcopy(compose(candidate))
        for key, value in (("task.downstream.epochs", epochs), ("seed", seed)):
            if value is not None:
                OmegaConf.update(own, key, value)
        try:
            return make_job(own)
        except ConfigError as error:
            rule, text = f"advise.rules.{candidate.rule}", str(error)
            is_of_rule = text.startswith(tuple(question.rules[candidate.rule] or ()))
            raise ConfigError(f"{rule}: {text}" if is_of_rule else text) from error

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
        raise ConfigError(f"advise.rules.{candidate.rule}: {_reason(error, config)}") from error
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def _reason(error: Exception, config: DictConfig) -> str:
    """Why a rule cannot be composed."""
    match error:
        case MissingConfigException(missing_cfg_file=str(path), options=[*options]) if options:
            return no_option(path, options)
    if found := re.match(r"Could not override '(\S+)'", str(error)):
        names = {key for key in keys_in(config) if key.partition(".")[0] != "advise"} - {found[1]}
        return f"{found[1]}: no such key{did_you_mean(found[1], names)}"
    return first_line(error)


def _written(value: object) -> str:
    """A value as Hydra's grammar reads it."""
    return quoted(value) if isinstance(value, str) else json.dumps(value)
