"""From a composed configuration to a job: root keys, groups to objects, and what each stage depends on."""

import ast
import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paramtransfer.checks import choice, flag, refusal, share, whole
from paramtransfer.errors import ConfigError
from paramtransfer.stage import SIDES, Stage

if TYPE_CHECKING:
    from paramtransfer.experiment.run import Job, StageSettings

# Groups that a stage's result depends on. The trainer's part is the device and precision.
_GROUPS = ("dataset", "task", "model", "transfer", "optim")


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


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


def register_resolvers() -> None:
    """`${calc:"..."}` in a configuration: arithmetic with + - * / ** and parentheses on interpolated numbers."""
    OmegaConf.register_new_resolver("calc", _calculate, replace=True)


def _calculate(expression: str) -> float | int:
    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise ValueError(f'${{calc:"{expression}"}}: must be arithmetic with numbers, + - * / ** and parentheses')

    result = value(ast.parse(str(expression), mode="eval").body)
    return int(result) if result == int(result) else result


def parse(text: str) -> DictConfig:
    """A configuration from its YAML."""
    return DictConfig(OmegaConf.create(text))


def check_root(config: DictConfig) -> Root:
    """The root keys, checked.

    Raises:
        ValueError: a key that is out of range.
    """
    return Root(**{key: config[key] for key in Root.__dataclass_fields__})


def sweep_jobs(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job of a sweep; None where the sweeper is not Hydra's own, which alone knows them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return jobs


def sweep_configs(config: DictConfig, jobs: Sequence[Sequence[str]]) -> Iterator[DictConfig]:
    """The configuration of each job of a sweep.

    The first is composed by Hydra. So are the others where the sweep changes groups; where it changes values only,
    they are set in the first, which takes a thirtieth of the time.

    Raises:
        HydraException: an override that does not fit.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = GlobalHydra.instance().config_loader()
    same = set(jobs[0]).intersection(*jobs)
    first = None
    for job in jobs:
        changes = OverridesParser.create().parse_overrides([text for text in job if text not in same])
        if first is None or any(loader.get_group_options(change.key_or_group) for change in changes):
            composed = loader.load_sweep_config(config, list(job))
            own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            first = first or own
            yield own
        else:
            values = copy.deepcopy(first)
            for change in changes:
                OmegaConf.update(values, change.key_or_group, change.value())
            yield values


def make_job(config: DictConfig) -> "Job":
    """Build every object of a job; nothing is drawn, trained or tracked yet.

    Raises:
        ConfigError: a setting that is out of range.
    """
    try:
        return _make_job(config)
    except (ValueError, OmegaConfBaseException) as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def instantiate(key: str, values: Any, **objects: Any) -> Any:
    """The object that a group describes.

    Raises:
        ValueError: what its class refuses. Any other error of the class itself keeps its traceback.
    """
    import hydra.utils
    from hydra.errors import InstantiationException

    try:
        return hydra.utils.instantiate(values, _convert_="all", **objects)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, TypeError | ImportError | None):
            raise ValueError(f"{key}: {error.__cause__ or error}") from error
        raise


def _make_job(config: DictConfig) -> "Job":
    from paramtransfer.experiment.run import Job

    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for group in (*_GROUPS, "solver", "trainer"):
        if not isinstance(values[group], dict):
            raise refusal(group, values[group], f"one of the options in conf/{group}/")
        if "_target_" not in values[group]:
            raise ValueError(f"{group}: must be an option of conf/{group}/ that names its class by _target_")
    if not isinstance(values["figure"], dict | None):
        raise refusal("figure", values["figure"], "null or a class of figures by its _target_")
    root = check_root(config)
    transfer = instantiate("transfer", values["transfer"])
    dataset = instantiate("dataset", values["dataset"])
    model = instantiate("model", values["model"])
    optim = instantiate("optim", values["optim"])
    tasks = instantiate("task", _without(values["task"], "training"), dataset=dataset, model=model, optim=optim)
    trainer = instantiate("trainer", values["trainer"])
    training = instantiate("task.training", values["task"]["training"], optim=optim)
    instantiate("figure", values["figure"])  # refuses now what it refuses

    stages: list[Stage] = ["baseline", "downstream"]
    if transfer.needs_upstream:
        stages.insert(0, "upstream")
    objects = {"dataset": dataset, "task": tasks, "model": model}
    unused = {group: getattr(value, "unused", {}) for group, value in objects.items()}
    tasks.check(transfer, root.seed, root.replicates)
    for side in {SIDES[stage] for stage in stages}:
        trainer.check(tasks.data(side, seed=root.seed, replicates=root.replicates))
    return Job(
        tasks=tasks,
        model=model,
        transfer=transfer,
        training=training,
        trainer=trainer,
        stages={
            stage: _settings(
                values,
                stage,
                stages,
                unused=unused,
                contents={
                    "dataset.content": tasks.content(SIDES[stage]),
                    "task.upstream.content": tasks.content("upstream"),
                    "model.upstream.content": model.content,
                },
                device=trainer.device,
            )
            for stage in stages
        },
        seed=root.seed,
        replicates=root.replicates,
        reuse=root.reuse,
        config=OmegaConf.to_yaml(config, resolve=True),
    )


def _settings(
    values: Mapping[str, Any],
    stage: Stage,
    stages: list[Stage],
    *,
    unused: Mapping[str, Mapping[str, tuple[str, ...]]],
    contents: Mapping[str, str],
    device: str,
) -> "StageSettings":
    """What a stage depends on: all groups, less what its classes say it does not use, and the content of files."""
    from paramtransfer.experiment.identity import fingerprint
    from paramtransfer.experiment.run import StageSettings

    groups = {group: values[group] for group in _GROUPS}
    alone = stage if "upstream" in stages else "baseline"  # without an upstream, task 1 is nobody's
    for group, by_stage in unused.items():
        groups[group] = _without(groups[group], *by_stage.get(alone, ()))
    params = {"seed": values["seed"], "replicates": values["replicates"]}
    if stage != "downstream":
        del groups["transfer"]
    elif values["transfer"].get("alpha") is not None:
        params["alpha"] = values["transfer"]["alpha"]
    # The device counts apart; curves on test images are the downstream's side's.
    unseen = ("accelerator", "progress", "checkpoint_minutes", *(("test_every_epoch",) if stage == "upstream" else ()))
    groups["trainer"] = _without(values["trainer"], *unseen)
    params = dict(_flatten({**params, **groups}))
    params |= {key: content for key, content in contents.items() if content and _uses(key, groups)}
    own_sources = {_source(target) for key, target in params.items() if key.endswith("_target_") and _is_own(target)}
    return StageSettings(
        fingerprint=fingerprint(params, device=device, own_sources=own_sources),
        params=params,
        own_sources={path.name: path.read_text(encoding="utf-8") for path in own_sources},
    )


def _uses(key: str, groups: Mapping[str, Any]) -> bool:
    group, _, rest = key.partition(".")
    return "." not in rest or rest.partition(".")[0] in groups[group]


def _without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from _flatten(dict(enumerate(value)), f"{prefix}{key}.")
        elif isinstance(value, float) and value.is_integer():
            yield f"{prefix}{key}", int(value)  # 1.0 and 1 are the same setting
        else:
            yield f"{prefix}{key}", value


def _is_own(target: str) -> bool:
    """Whether a class is the user's, not this package's."""
    return not target.startswith("paramtransfer.")


def _source(target: str) -> Path:
    from hydra.utils import get_object

    return Path(inspect.getsourcefile(get_object(target)) or "")
