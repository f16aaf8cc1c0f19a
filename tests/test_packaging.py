"""What is imported is declared, what is declared is pinned within its range, and the wheel holds what it should."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import REPOSITORY

# Of distributions whose import has another name.
IMPORTED_AS = {
    "jinja2": "jinja2",
    "markdown-it-py": "markdown_it",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
# Imported by tests though it is declared nowhere: pytest depends on it.
COMES_WITH_PYTEST = {"packaging"}
SERVING = REPOSITORY / "modeling" / "serving"
# scripts/app.py imports them once it has found Gradio.
APP_ONLY = {SERVING / f"{name}.py" for name in ("api", "app", "monitoring", "page", "requests", "web")}
SETUP = ConfigParser()
SETUP.read(REPOSITORY / "setup.cfg", encoding="utf-8")


def read_requirements(*extras: str) -> dict[str, Requirement]:
    """What an installation with these extras requires, by canonical name; extras that name extras are followed."""
    texts = [SETUP["options"]["install_requires"], *(SETUP["options.extras_require"][extra] for extra in extras)]
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]
    found = {}
    for requirement in map(Requirement, lines):
        if requirement.name == "bothways":
            found |= read_requirements(*requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def list_imports(folder: Path) -> dict[str, set[str]]:
    """Top-level names that a folder's files import, in functions too, and what a file's own neighbours are not."""
    own = {path.stem for path in folder.glob("*.py")} | {"modeling", "tests", "bothways", "benchmarks"}
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names:
                found.setdefault(name, set()).add(str(path.relative_to(REPOSITORY)))
    return found


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("modeling", ["app", "deepspeed", "demo"]),
        ("scripts", ["app"]),
        ("tests", ["dev", "ray"]),
        ("benchmarks", ["dev", "benchmark", "liger"]),
    ],
)
def test_every_package_that_is_imported_is_declared(folder, extras):
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in read_requirements(*extras)}
    imported = list_imports(REPOSITORY / folder)
    assert len(imported) > 2
    undeclared = {name: files for name, files in imported.items() if name not in declared | COMES_WITH_PYTEST}
    assert undeclared == {}


def test_what_only_an_extra_brings_is_imported_where_it_is_needed_only():
    """Without extras every module can be imported, except the app's own."""
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in read_requirements()}
    for path in sorted((REPOSITORY / "modeling").rglob("*.py")):
        if path in APP_ONLY:
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in body if isinstance(node, ast.ImportFrom) and not node.level]
        tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"modeling"}
        assert tops <= declared, path


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_constraints_pin_every_requirement_within_its_range(file):
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    pins = dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines if line and line[0] != "#")
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    requirements = read_requirements(*SETUP["options.extras_require"])
    assert set(pins) == set(requirements)
    for name, requirement in requirements.items():
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]}: {requirement.specifier}"
        if file == "constraints-lowest.txt" and name != "torch":
            assert f"=={pins[name]}" in str(requirement.specifier).replace(">=", "=="), name


def test_the_makefile_installs_with_the_constraints_and_torch_first():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    torch = re.search(r"^torch==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)[1]
    rule = makefile.split(".venv/installed:")[1].split("\n\n")[0]
    first, second = (line for line in rule.splitlines() if "pip install" in line and "--no-deps" not in line)
    assert f"torch=={torch}" in first and "-c constraints.txt" in second


# --- the wheel --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The names in a wheel that is built of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("modeling", "scripts", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as file:
        return set(file.namelist())


def list_files(folder: str) -> set[str]:
    root = REPOSITORY / folder
    return {
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_script_and_recipe(wheel):
    assert {f"bothways/{name}" for name in list_files("scripts")} <= wheel
    recipes = {name for name in list_files("configs") if not name.startswith("study/")}
    assert "demo/train.yaml" in recipes and "gemma2-9b/train.yaml" in recipes
    assert {f"bothways/configs/{name}" for name in recipes} == {name for name in wheel if name.endswith(".yaml")}


def test_the_wheel_holds_every_module_and_data_file_but_no_benchmarks(wheel):
    expected = {f"modeling/{name}" for name in list_files("modeling")}
    assert "modeling/py.typed" in expected and "modeling/data/demo/train.jsonl" in expected
    assert {name for name in wheel if name.startswith("modeling/")} == expected
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in wheel)
