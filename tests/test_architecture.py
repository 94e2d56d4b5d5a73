"""The shape of the house: what may import what, how long things are, and what the docs name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tfrs_negatives"
INSIDE = ("core", "encode", "propose", "score", "train")
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
STEP = [path for path in MODULES if path.split("/")[0] in INSIDE]


def module_of(dotted):
    """`tfrs_negatives.score.log_q` -> "score/log_q.py"; None for a name that is no module."""
    parts = dotted.split(".")[1:]
    candidates = ["/".join(parts) + ".py", "/".join([*parts, "__init__.py"])]
    return next((path for path in candidates if path in MODULES), None)


def imports(source):
    """The modules of this package that a source imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        ours = [name for name in names if name.split(".")[0] == PACKAGE.name]
        found |= {module for name in ours if (module := module_of(name))}
    return found - {"__init__.py"}


def may_import(path, other):
    """A step of the data flow knows the records and the steps before it, and nothing outside."""
    if path.endswith("__init__.py"):
        return Path(other).parent == Path(path).parent
    return other == "types.py" or (other in STEP and other < path)


def test_the_check_itself_sees_what_it_should():
    source = "from tfrs_negatives.train import task\nimport tfrs_negatives.encode.towers\n"
    assert {"train/task.py", "encode/towers.py"} <= imports(source)
    assert may_import("score/log_q.py", "propose/pool.py")
    assert not may_import("score/log_q.py", "train/losses.py")
    assert not may_import("score/log_q.py", "recipes.py")


@pytest.mark.parametrize("path", STEP)
def test_a_step_imports_only_types_and_what_sorts_before_it(path):
    others = imports(MODULES[path].read_text()) - {path}
    # The catalogue is named in annotations of `types`, which imports nothing at run time.
    assert [other for other in sorted(others) if not may_import(path, other)] == []


def test_the_records_import_no_module_at_run_time():
    tree = ast.parse(MODULES["types.py"].read_text())
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert imports(ast.unparse(ast.Module(top, []))) == set()


def test_what_is_inside_is_there_in_its_order():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert set(INSIDE) <= folders
    assert list(INSIDE) == sorted(INSIDE)


# ------------------------------------------------------------------ sizes


def bodies():
    """(name, lines of the body without the docstring) of every function."""
    for path, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                yield f"{path}:{node.name}", lines


def test_functions_are_short():
    sizes = dict(bodies())
    long = {name: lines for name, lines in sizes.items() if lines > 25}
    assert {name: lines for name, lines in long.items() if lines > 60} == {}
    assert len(long) <= 0.15 * len(sizes), long


@pytest.mark.parametrize("path", MODULES)
def test_files_are_at_most_400_lines(path):
    assert len(MODULES[path].read_text().splitlines()) <= 400


def test_log_counts_are_subtracted_in_one_place_only():
    users = {
        path
        for path, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Sub)
        and "log_expected_count" in ast.unparse(node)
    }
    assert users <= {"score/log_q.py"}


# ------------------------------------------------------------------ documentation


def test_every_module_has_its_line_in_the_architecture():
    page = ROOT / "docs" / "architecture.md"
    text = page.read_text()
    # A folder that is one stage may have one line: `evaluation/*`.
    missing = [
        path
        for path in MODULES
        if not Path(path).name.startswith("_")
        and f"`{path.removesuffix('.py')}`" not in text
        and f"`{Path(path).parent}/*`" not in text
    ]
    assert missing == []
