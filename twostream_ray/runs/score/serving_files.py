"""Transitive closure of imports: the modules of this package that a registered model must carry to be served."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import twostream_ray

_PACKAGE = Path(twostream_ray.__file__).resolve().parent

SERVED = _PACKAGE / "served.py"
"""The entry of a registered model: the file that MLflow runs."""


def serving_files(entry: Path = SERVED) -> dict[str, Path]:
    """The modules that `entry` imports, at once or in a function, with all that these import.

    Imports are read from the syntax tree, so nothing is loaded, and those under `if TYPE_CHECKING` do not count.

    Args:
        entry: a file of Python code; it is itself in the result only where a module imports it.

    Returns:
        File by its path relative to the folder that holds the package, such as `twostream_ray/inference.py`, sorted.
    """
    found: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        for file in _imported_files(waiting.pop()):
            path = file.relative_to(_PACKAGE.parent).as_posix()
            if path not in found:
                found[path] = file
                waiting.append(file)
    return dict(sorted(found.items()))


def _imported_files(file: Path) -> Iterator[Path]:
    """Files of this package that an import of `file` runs, the __init__.py of packages on the way among them."""
    for name in _imported_names(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        parts = name.split(".")
        if parts[0] != _PACKAGE.name:
            continue
        for length in range(1, len(parts) + 1):
            stem = _PACKAGE.parent.joinpath(*parts[:length])
            # The last part may be no module: what `from package import name` takes out of one is often a class.
            yield from (path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file())


def _imported_names(node: ast.AST) -> Iterator[str]:
    """Dotted names that the imports below `node` may mean; the package itself has no relative imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
        for otherwise in node.orelse:
            yield from _imported_names(otherwise)
    else:
        for below in ast.iter_child_nodes(node):
            yield from _imported_names(below)
