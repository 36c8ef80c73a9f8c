"""Each package imports only from those above it, knows only libraries of its own, and does nothing at import."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
PACKAGE = SRC / "paramtransfer"
# From top to bottom: each line imports only from lines above it.
PLAN = (
    (
        "errors",
        "suggestions",
        "checks",
        "randomness",
        "stage",
        "metrics",
        "theory",
        "lemmas",
        "statistics",
        "interrupts",
    ),
    ("dataset",),
    ("optim",),
    ("model",),
    ("transfer",),
    ("task",),
    ("training",),
    ("trainer",),
    ("tracking",),
    ("experiment",),
    ("advice",),
    ("figures",),
    ("report",),
    ("cli",),
)
LEVELS = {name: level for level, names in enumerate(PLAN) for name in names}
OWNERS = {"hydra": {"cli"}, "omegaconf": {"cli"}, "mlflow": {"tracking"}, "sqlalchemy": {"tracking"}}
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def test_every_module_has_a_place_in_the_plan() -> None:
    assert {name.split(".")[1] for name in MODULES if "." in name} == LEVELS.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_upwards_only(name: str) -> None:
    """Imports anywhere in a module, and names of modules in its strings; Hydra and MLflow in one package each."""
    if name == "paramtransfer":  # the face offers what lies below
        return
    own = name.split(".")[1]
    for mentioned in _mentioned(MODULES[name]):
        root, _, rest = mentioned.partition(".")
        assert own in OWNERS.get(root, {own}), f"{name} imports {mentioned}"
        if root == "paramtransfer" and rest:
            other = rest.split(".")[0]
            assert other == own or LEVELS[other] < LEVELS[own] or LEVELS[own] == LEVELS[other] == 0, (
                f"{name} mentions {mentioned}, which lies below it"
            )


def test_no_circles_between_modules() -> None:
    """Within a package, too: what a module imports, directly or not, does not import it."""
    direct = {
        name: {other for other in _mentioned(path) if other in MODULES} - {name} for name, path in MODULES.items()
    }
    del direct["paramtransfer"]
    while leaves := {name for name, others in direct.items() if not others & direct.keys()}:
        direct = {name: others for name, others in direct.items() if name not in leaves}
    assert not direct


def _mentioned(path: Path) -> Iterator[str]:
    """Modules that a file imports, or names in a string."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield str(node.module)
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES
            )
        elif isinstance(node, ast.Constant) and str(node.value) in MODULES:
            yield str(node.value)


_WATCH = """
import contextlib, importlib, json, logging, os, signal, sys, warnings
libraries, own = json.loads(sys.argv[1])
for name in libraries:
    with contextlib.suppress(ImportError):  # an optional one
        importlib.import_module(name)

def state():
    loggers = {name: (logger.level, len(logger.handlers)) for name, logger in logging.root.manager.loggerDict.items()
               if isinstance(logger, logging.Logger) and not name.startswith("paramtransfer")}
    stand_ins = [name for name, module in sys.modules.items() if module is None]
    handlers = [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    return [dict(os.environ), [str(filter) for filter in warnings.filters], loggers, logging.raiseExceptions, stand_ins,
            handlers, len(logging.root.handlers)]

changed = []
for name in own:
    before = state()
    importlib.import_module(name)
    changed += [name] * (state() != before)
print(json.dumps(changed))
"""


def test_importing_changes_nothing_that_others_notice() -> None:
    """Environment, warning filters, loggers, signals and stand-ins are as the libraries alone leave them."""
    outside = {
        mentioned
        for name, path in MODULES.items()
        for mentioned in _mentioned(path)
        if not mentioned.startswith("paramtransfer")
    }
    arguments = json.dumps([sorted(outside), sorted(MODULES)])
    process = subprocess.run([sys.executable, "-c", _WATCH, arguments], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == []
