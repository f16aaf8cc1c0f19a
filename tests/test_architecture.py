"""The house: ten packages whose imports go down only, and nothing of them that knows what is merely measured."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeling import PACKAGES
from tests.helpers import REPOSITORY

MODULES = sorted((REPOSITORY / "modeling").rglob("*.py"))


def list_imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, wherever in it the import is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def draw_graph() -> dict[str, set[str]]:
    """The packages that each package imports from."""
    graph: dict[str, set[str]] = {package: set() for package in PACKAGES}
    for path in MODULES:
        package = path.relative_to(REPOSITORY / "modeling").parts[0]
        for name in list_imports(path):
            first, _, rest = name.partition(".")
            if first == "modeling" and package in graph and (used := rest.partition(".")[0]):
                graph[package].add(used)
    return graph


def test_there_are_ten_packages_and_nothing_beside_them():
    folders = {path.name for path in (REPOSITORY / "modeling").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert len(PACKAGES) == 10 and folders == set(PACKAGES)
    assert {path.name for path in (REPOSITORY / "modeling").glob("*.py")} == {"__init__.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down_only(package):
    """DESIGN: a package imports from those below it in `modeling.PACKAGES`; never up, and so never in a circle."""
    below = set(PACKAGES[PACKAGES.index(package) + 1 :])
    assert draw_graph()[package] - {package} <= below


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY / "modeling")))
def test_no_module_knows_scripts_tests_or_benchmarks(path):
    used = {name.partition(".")[0] for name in list_imports(path)}
    assert used.isdisjoint({"scripts", "bothways", "tests", "benchmarks"})


def test_modules_do_not_import_each_other_in_a_circle():
    """Within a package too."""
    names = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in MODULES}
    graph = {name: {used for used in list_imports(path) if used in names} - {name} for name, path in names.items()}
    while free := {name for name, used in graph.items() if not used}:
        graph = {name: used - free for name, used in graph.items() if name not in free}
    assert not graph, f"in a circle: {graph}"
