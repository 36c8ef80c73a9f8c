"""From a composed configuration to a job: root keys, groups to objects, and what each stage depends on."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paramtransfer.checks import refusal
from paramtransfer.cli.root_keys import Root, check_root
from paramtransfer.errors import ConfigError, first_line
from paramtransfer.experiment.identity import Depends, Identity, contents, identify
from paramtransfer.experiment.job import Job
from paramtransfer.stage import SIDES, Stage
from paramtransfer.training.fit import fit_and_test
from paramtransfer.transfer.callback import Choosing, ParameterTransfer

_GROUPS = ("dataset", "task", "model", "transfer", "optim", "solver", "trainer")
_OBJECTS = ("training",)  # keys of a group that other objects are made from


def parse(text: str) -> DictConfig:
    """A configuration from its YAML."""
    return DictConfig(OmegaConf.create(text))


def make_job(config: DictConfig) -> Job:
    """Build every object of a job; nothing is drawn, trained or tracked yet.

    Raises:
        ConfigError: a setting that is out of range.
    """
    try:
        return _make_job(config)
    except OmegaConfBaseException as error:
        key, reason = error.full_key, first_line(error)
        raise ConfigError(reason if not key or key in reason else f"{key}: {reason}") from error
    except ValueError as error:
        raise ConfigError(first_line(error)) from error


def instantiate(key: str, values: Any, **objects: Any) -> Any:
    """The object that a group describes.

    Raises:
        ValueError: what its class refuses. Any other error of the class itself keeps its traceback.
    """
    try:
        return hydra.utils.instantiate(values, _convert_="all", **objects)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, TypeError | ImportError | None):
            raise ValueError(f"{key}: {error.__cause__ or error}") from error
        raise


def _make_job(config: DictConfig) -> Job:
    values = _checked_groups(config)
    root = check_root(config)
    transfer = instantiate("transfer", values["transfer"])
    dataset = instantiate("dataset", values["dataset"])
    model = instantiate("model", values["model"])
    optim = instantiate("optim", values["optim"])
    task = {key: value for key, value in values["task"].items() if key != "training"}
    tasks = instantiate("task", task, dataset=dataset, model=model, optim=optim)
    trainer = instantiate("trainer", values["trainer"])
    training = instantiate("task.training", values["task"]["training"], optim=optim)
    instantiate("figure", values["figure"])  # refuses now what it refuses

    stages: list[Stage] = (
        ["upstream", "baseline", "downstream"] if transfer.needs_upstream else ["baseline", "downstream"]
    )
    transfer.check_target(tasks.data("downstream", seed=root.seed, replicates=root.replicates))
    tasks.check(transfer, root.seed, root.replicates)
    if isinstance(transfer, Choosing) and trainer.ranks.size > 1:
        raise refusal("trainer.devices", trainer.ranks.size, "1 with a rule that chooses among starts")
    for side in {SIDES[stage] for stage in stages}:
        trainer.check(tasks.data(side, seed=root.seed, replicates=root.replicates))
    identities = {}
    for stage in stages:
        seen: Stage = stage if transfer.needs_upstream else "baseline"  # without an upstream, task 1 is nobody's
        depends = _identity(tasks, seen)
        depends["task"] |= {"training": _identity(training, seen)}
        for group, part in (("model", model), ("optim", optim), ("trainer", trainer)):
            depends[group] = _identity(part, stage if group == "trainer" else seen)
        if "dataset" in depends and hasattr(dataset, "content"):  # data that no setting names
            depends["dataset"] = {**depends["dataset"], "content": dataset.content}
        if stage == "downstream":
            depends["transfer"] = _identity(transfer, stage)
        identities[stage] = _identify(root, depends, values)
    return Job(
        tasks=tasks,
        model=model,
        transfer=transfer,
        training=training,
        trainer=trainer,
        stages=identities,
        seed=root.seed,
        replicates=root.replicates,
        reuse=root.reuse,
        config=OmegaConf.to_yaml(config, resolve=True),
    )


def _checked_groups(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration, each of whose groups names a class."""
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for group in _GROUPS:
        if not isinstance(values[group], dict):
            raise refusal(group, values[group], f"one of the options in conf/{group}/")
        if "_target_" not in values[group]:
            raise ValueError(f"{group}: must be an option of conf/{group}/ that names its class by _target_")
    if not isinstance(values["figure"], dict | None):
        raise refusal("figure", values["figure"], "null or a class of figures by its _target_")
    return values


def _identity(part: object, stage: Stage) -> dict[str, Any]:
    """What a part of a job says that a stage depends on; a class of the user's need not say it."""
    return dict(part.identity(stage)) if isinstance(part, Depends) else {}


def _identify(root: Root, depends: Mapping[str, Any], values: Mapping[str, Any]) -> Identity:
    """The identity of a stage from what its parts depend on."""
    settings: dict[str, Any] = {"seed": root.seed, "replicates": root.replicates}
    classes: list[object] = [fit_and_test]
    if "transfer" in depends:
        alpha = depends["transfer"].pop("alpha", None)  # a root key
        settings |= {"alpha": alpha} if alpha is not None else {}
        classes.append(ParameterTransfer)
    return identify(settings | _with_classes(depends, values, classes), classes)


def _with_classes(depends: Mapping[str, Any], values: Mapping[str, Any], classes: list[object]) -> dict[str, Any]:
    """The settings with the names of their classes, which are collected.

    A class of the user's that does not define `identity` itself depends on all of its keys.
    """
    settings = dict(depends)
    target = values.get("_target_")
    if target is not None:
        made_by = get_object(target)
        made_by = made_by.func if isinstance(made_by, partial) else made_by
        classes.append(made_by)
        if not target.startswith("paramtransfer."):
            own = {} if "identity" in vars(made_by) else {key: values[key] for key in values if key not in _OBJECTS}
            settings |= own | dict(contents(values))
        settings["_target_"] = target
    for key, inner in values.items():
        if key in depends and isinstance(inner, dict):
            settings[key] = _with_classes(depends[key] or {}, inner, classes)
    return settings
