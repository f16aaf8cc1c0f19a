"""`bothways doctor`, run as users run it, and its output if something is broken."""

import re
import sys
from pathlib import Path

import pytest

from modeling.network.doctor import LINES, attempt, find_version
from tests.helpers import run

HEADS = {"bothways", "python", "libraries", "platform", "cpu", "devices", "memory", "threads", "precision", "attention"}
TRIED = ("8-bit forward", "8-bit backward", "4-bit forward", "4-bit backward", "8-bit AdamW")


@pytest.fixture(scope="module")
def report() -> dict[str, str]:
    """The lines that the command prints, by head."""
    done = run(sys.executable, "-m", "modeling.network.doctor")
    lines = done.stdout.splitlines()
    assert len(lines) == len(LINES) <= 20 and (done.returncode, done.stderr) == (0, "")
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}


def test_every_line_has_its_head_and_says_something(report):
    assert set(report) == set(LINES) and set(TRIED) | HEADS <= set(report)
    assert all(report.values())
    assert report["libraries"].startswith(f"torch {find_version('torch')}, transformers ")
    assert re.fullmatch(r"[\d.]+ GB free of [\d.]+ GB", report["memory"])
    assert re.match(r"\d+ on \d+ cores", report["threads"])


def test_everything_that_is_tried_works_here(report):
    """Other tests train with the same layers and the same optimizer on this CPU."""
    assert {head: report[head] for head in TRIED} == dict.fromkeys(TRIED, "works")
    assert "Error" not in report["precision"] and "math" in report["attention"]


def test_it_names_no_folder_of_this_machine(report):
    text = "\n".join(report.values())
    for folder in (Path.home(), Path.cwd(), Path(sys.prefix)):
        assert str(folder) not in text


def test_an_error_is_one_line_without_folders():
    def break_down() -> str:
        raise OSError("/opt/someone/lib/libbroken.so: cannot open\nand much more")

    assert attempt(break_down) == "OSError: libbroken.so: cannot open"
    assert find_version("no-such-package-anywhere") == "not installed"
