"""The command `bothways`: finds its verbs, explains unknown ones, and runs the scripts from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from modeling.settings import cli
from tests.helpers import REPOSITORY


@pytest.fixture
def scripts(monkeypatch, tmp_path) -> Path:
    """A package `bothways` with one script, instead of the installed package."""
    folder = tmp_path / "bothways"
    folder.mkdir()
    (folder / "train.py").write_text('"""Trains."""\nimport sys\nprint(__name__, sys.argv[1:])\n')
    monkeypatch.setattr(cli, "SCRIPTS", "bothways")
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: find_pretended(name, folder))
    return folder


def find_pretended(name: str, folder: Path) -> object:
    """A spec for the package of scripts alone."""
    return type("Spec", (), {"submodule_search_locations": [str(folder)]}) if name == "bothways" else None


def test_help_lists_the_verbs_with_what_they_do(scripts, capsys):
    cli.main(["--help"])
    text = capsys.readouterr().out
    assert "  train   Trains." in text and "doctor" in text


@pytest.mark.parametrize(
    ("verb", "expected"),
    [("trian", "Did you mean train?"), ("zzz", "--help lists them"), ("benchmark", "unknown verb 'benchmark'")],
)
def test_an_unknown_verb_is_one_line_and_exit_code_2(scripts, capsys, verb, expected):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--flag"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and expected in said and said.count("\n") == 1


def test_the_command_costs_no_libraries():
    """`bothways --help` answers at once: torch alone would take seconds."""
    code = "import sys, modeling.settings.cli\n"
    code += "print(sorted({'torch', 'numpy', 'transformers', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


def test_a_verb_runs_the_script_itself(tmp_path):
    """From an empty folder, with the same answer as `python scripts/predict.py`."""
    command = [sys.executable, "-m", "modeling.settings.cli", "predict", "--battels", "none.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean --battles" in done.stderr and "Traceback" not in done.stderr
