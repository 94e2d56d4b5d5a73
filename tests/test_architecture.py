"""The shape of the house: what may import what, how long things are, and what the docs name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tfrs_negatives"
# A module imports only what stands before it, or beside it in its own folder.
ORDER = (
    "core", "data", "towers", "step", "model", "clustering", "mining", "evaluation", "index",
    "runs", "serve", "compare", "tune", "cli",
)  # fmt: skip
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
ROOMS = [path for path in MODULES if "/" in path]


def module_of(dotted):
    """`tfrs_negatives.a.b` -> "a/b.py"; None for a name that is no module."""
    parts = dotted.split(".")[1:]
    candidates = ["/".join(parts) + ".py", "/".join([*parts, "__init__.py"])]
    return next((path for path in candidates if path in MODULES), None)


def imports(source, *, types_too=True):
    """The modules of this package that a source imports, wherever in the file."""
    found, tree = set(), ast.parse(source)
    if not types_too:
        tree.body = [x for x in tree.body if not ast.unparse(x).startswith("if TYPE_CHECKING:")]
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        ours = [name for name in names if name.split(".")[0] == PACKAGE.name]
        found |= {module for name in ours if (module := module_of(name))}
    return found - {"__init__.py", "_keras.py"}


def may_import(path, other):
    """A room knows the rooms before it, and what is in it."""
    room, others = (x.split("/")[0] for x in (path, other))
    return ORDER.index(others) <= ORDER.index(room)


def test_the_check_itself_sees_what_it_should():
    source = "from tfrs_negatives.step import task\nimport tfrs_negatives.towers.build\n"
    assert {"step/task.py", "towers/build.py"} <= imports(source)
    assert may_import("step/task.py", "towers/build.py")
    assert not may_import("towers/build.py", "step/task.py")


@pytest.mark.parametrize("path", ROOMS)
def test_a_module_imports_only_what_stands_before_it(path):
    others = imports(MODULES[path].read_text()) - {path}
    assert [other for other in sorted(others) if not may_import(path, other)] == []


def test_the_order_names_every_room():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders == set(ORDER)


def test_the_modules_of_a_room_do_not_import_each_other_in_circles():
    waiting = {
        path: imports(file.read_text(), types_too=False) - {path} for path, file in MODULES.items()
    }
    while free := {path for path, others in waiting.items() if not others & set(waiting)}:
        waiting = {path: others for path, others in waiting.items() if path not in free}
    assert waiting == {}


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
        and "log_count" in ast.unparse(node)
    }
    assert users <= {"step/correction.py"}


@pytest.mark.parametrize("path", MODULES)
def test_the_files_of_a_run_are_named_in_one_module(path):
    from tfrs_negatives.runs import files

    if path == "runs/files.py":
        return
    names = {x for n, x in vars(files).items() if n.isupper() and "." in x.strip(".")}
    tree = ast.parse(MODULES[path].read_text())
    paths = [n.right for n in ast.walk(tree) if isinstance(n, ast.BinOp)]
    said = {n.value for n in paths if isinstance(n, ast.Constant)}
    assert not said & names


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
