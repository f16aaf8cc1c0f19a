"""A user's mistake ends a script with one line; our own faults show a traceback."""

import re
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

from modeling.runtime.startup import forget_script_folder, run_script
from tests.helpers import REPOSITORY


def test_a_mistake_ends_a_script_with_one_line_and_code_2(monkeypatch):
    monkeypatch.delenv("BOTHWAYS_TRACEBACK", raising=False)
    program = "from modeling.settings.arguments import QuantizeArguments as Kind\n"
    program += "from modeling.settings.parsing import parse_arguments\n"
    program += "from modeling.runtime.startup import run_script\n"
    program += "run_script(lambda: parse_arguments(Kind, verb='quantize'))"
    command = [sys.executable, "-c", program, "--bse", "b"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"[\d:]+ bothways: error: Unknown argument '--bse'\. Did you mean --base\?\n", done.stderr)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, KeyError])
def test_traceback_is_shown_on_request_and_always_for_our_own_faults(error, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for asked, expected in (("0", KeyError if error is KeyError else SystemExit), ("1", error)):
        monkeypatch.setenv("BOTHWAYS_TRACEBACK", asked)
        with pytest.raises(expected):
            run_script(Mock(side_effect=error))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.\nSee the documentation"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError("Unable to allocate 9 GiB"),
    ],
    ids=["gpu", "cpu", "numpy"],
)
def test_a_lack_of_memory_ends_a_script_with_one_line_that_says_what_needs_less(error, monkeypatch, caplog):
    monkeypatch.delenv("BOTHWAYS_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop:
        run_script(Mock(side_effect=error))
    assert stop.value.code == 2
    assert "The device's memory ran out. `--dry_run true`" in caplog.messages[-1] and "\n" not in caplog.messages[-1]
    with pytest.raises(RuntimeError, match="another"):  # a fault of ours stays a traceback
        run_script(Mock(side_effect=RuntimeError("another")))


def test_ctrl_c_ends_a_script_with_one_line_that_says_how_to_go_on(caplog):
    with pytest.raises(SystemExit) as stop:
        run_script(Mock(side_effect=KeyboardInterrupt))
    assert stop.value.code == 130
    assert "Stopped. The same command goes on from here" in caplog.messages[-1]


def test_only_the_scripts_own_entry_leaves_the_import_path(tmp_path, monkeypatch):
    """In a notebook the running script lies in site-packages, which is not first on the path and has to stay."""
    script = str(tmp_path / "scripts" / "predict.py")
    for before, after in (
        ([str(tmp_path / "scripts"), "lib"], ["lib"]),
        (["", "lib", str(tmp_path / "scripts")], ["", "lib", str(tmp_path / "scripts")]),
        (["lib"], ["lib"]),
        ([], []),
    ):
        monkeypatch.setattr(sys, "argv", [script])
        monkeypatch.setattr(sys, "path", before)
        forget_script_folder()
        assert sys.path == after


def test_a_script_forgets_its_folder_with_its_first_import_of_ours():
    """scripts/select.py would replace the standard library's `select`, which `email` and much else needs."""
    program = "import sys; sys.path.insert(0, 'scripts'); sys.argv = ['scripts/predict.py']; "
    program += "import modeling.runtime.startup; sys.modules.pop('select', None); import select; "
    program += "print(hasattr(select, 'select'), 'scripts' in sys.path)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True False\n", done.stderr
    for script in (REPOSITORY / "scripts").glob("[a-z]*.py"):
        imports = re.findall(r"^(?:from|import) (\S+)", script.read_text(encoding="utf-8"), re.MULTILINE)
        before = imports[: imports.index("modeling.runtime.startup")]
        # None of these needs `select`.
        assert {*before} <= {"importlib.util", "dataclasses", "logging", "os", "pathlib", "shutil", "time", "typing"}
