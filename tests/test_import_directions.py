"""Which package may import what."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "paramtransfer"
FORBIDDEN = {
    "dataset": {
        "hydra",
        "omegaconf",
        "mlflow",
        "paramtransfer.training",
        "paramtransfer.tracking",
        "paramtransfer.task",
    },
    "task": {"hydra", "omegaconf", "mlflow", "paramtransfer.tracking"},
    "model": {"hydra", "omegaconf", "mlflow", "paramtransfer.training", "paramtransfer.tracking"},
    "transfer": {"hydra", "omegaconf", "mlflow", "paramtransfer.training", "paramtransfer.tracking"},
    "training": {"hydra", "omegaconf", "mlflow", "paramtransfer.tracking"},
    "theory.py": {"hydra", "omegaconf", "mlflow", "pytorch_lightning", "paramtransfer"},
    "experiment.py": {"hydra", "omegaconf", "mlflow"},
    "figures": {"hydra", "omegaconf", "mlflow"},
    "tracking": {
        "hydra",
        "omegaconf",
        *(
            f"paramtransfer.{name}"
            for name in ("dataset", "task", "model", "transfer", "training", "figures", "theory")
        ),
    },
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_import_directions(name: str) -> None:
    """Only cli and config know Hydra, only tracking knows MLflow, and tracking knows no sibling."""
    path = PACKAGE / name
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    for file in files:
        for imported in _imports(file):
            for module in FORBIDDEN[name]:
                assert not f"{imported}.".startswith(f"{module}."), f"{file} imports {imported}"


def _imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module))
    return names
