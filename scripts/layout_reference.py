"""The list of modules in docs/architecture.md, from what each says of itself in its first line.

python scripts/layout_reference.py          (make docs)
"""

import ast
from collections.abc import Iterator
from pathlib import Path

_REPO = Path(__file__).parents[1]
_SOURCE = _REPO / "src" / "paramtransfer"
_BEGIN, _END = "<!-- modules: made by make docs -->\n", "<!-- end of modules -->\n"
PAGE = _REPO / "docs" / "architecture.md"
PACKAGES = (
    *("dataset", "optim", "model", "transfer", "task", "training"),
    *("trainer", "tracking", "experiment", "advice", "figures", "report", "cli"),
)
"""From top to bottom: each imports only from those before it."""


def page() -> str:
    """The page as it is, with the list as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    lines = [*_modules(_SOURCE, indent="")]
    for package in PACKAGES:
        lines += ["", f"{package}/", *_modules(_SOURCE / package, indent="  ")]
    return "".join([before, _BEGIN, "```text\n", *(f"{line}\n" for line in lines), "```\n", _END, after])


def _modules(folder: Path, indent: str) -> Iterator[str]:
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
            yield f"{indent + path.stem:<24}{first}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
