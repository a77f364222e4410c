"""Code of a registered model (MLflow models-from-code): the transitive closure of the entry file's imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import twostream_ray

_PACKAGE = Path(twostream_ray.__file__).resolve().parent

SERVED = _PACKAGE / "served.py"
"""Entry file of a registered model, which MLflow runs."""


def serving_files(entry: Path = SERVED) -> dict[str, Path]:
    """The modules of this package that `entry` imports, directly or transitively, at module level or in functions.

    Imports are read from the syntax tree without importing; those under `if TYPE_CHECKING` do not count.

    Args:
        entry: a Python file; it is in the result only if a module imports it.

    Returns:
        Files by their path relative to the package's parent folder, such as `twostream_ray/inference.py`, sorted.
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
    """Files of this package that `file` imports, including the __init__.py of parent packages."""
    for name in _imported_names(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        parts = name.split(".")
        if parts[0] != _PACKAGE.name:
            continue
        for length in range(1, len(parts) + 1):
            stem = _PACKAGE.parent.joinpath(*parts[:length])
            # The last part need not be a module: `from package import name` may import a class.
            yield from (path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file())


def _imported_names(node: ast.AST) -> Iterator[str]:
    """Dotted names that the imports below `node` may refer to; this package has no relative imports."""
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
