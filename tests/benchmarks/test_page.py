"""benchmarks/README.md is held to the commands, the result files and the modules that there are."""

import re
import shlex

import pytest

from tests import test_docs
from tests.helpers import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
CELLS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:2] == "| "]
COMMANDS = [
    *(
        command
        for cells in CELLS
        if len(cells) > 2
        for command in re.findall(r"`((?:[A-Z_]+=\S+ )*python [^`]*)`", cells[1])
    ),
    *re.findall(r"^python .*$", PAGE.replace("\\\n", " "), re.M),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses_as_those_of_the_pages_do(command, monkeypatch):
    test_docs.test_every_command_parses("benchmarks", command, monkeypatch)
    if "-m" in (words := shlex.split(command)):
        module = REPOSITORY.joinpath(*words[words.index("-m") + 1].split("."))
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()


def test_every_result_file_has_its_row_and_every_row_its_file():
    named = {name for cells in CELLS if len(cells) == 4 for name in re.findall(r"`([\w.]+\.json)`", cells[3])}
    assert named == {path.name for path in test_docs.RESULTS.glob("*.json")}


def test_every_module_is_named_in_the_table_of_the_code():
    code = PAGE.split("\n## The code\n")[1]
    for part in ("speed", "studies", "default_judge"):
        for path in (FOLDER / part).glob("*.py"):
            assert path.name == "__init__.py" or f"`{part}/{path.name}`" in code or f"`{path.name}`" in code, path
