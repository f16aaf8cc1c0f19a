"""A log names the process only where there are several, and only scripts decide what is shown."""

import logging
import subprocess
import sys
from importlib.resources import files

import pytest
from accelerate import PartialState

from modeling.runtime.logs import build_logger
from tests.helpers import REPOSITORY


@pytest.mark.parametrize(("num_processes", "expected"), [(1, "said"), (2, "[RANK 0] said")])
def test_only_one_of_several_processes_is_named(num_processes, expected, monkeypatch, caplog):
    monkeypatch.setitem(PartialState()._shared_state, "num_processes", num_processes)
    build_logger("modeling.tests").warning("said")
    assert caplog.messages == [expected]


def test_a_message_comes_from_the_line_that_logs_it(caplog):
    build_logger("modeling.tests").warning("said")
    assert caplog.records[0].funcName == "test_a_message_comes_from_the_line_that_logs_it"


def test_importing_the_package_leaves_the_log_to_its_user():
    """The root logger, and the level of our own."""
    program = "import logging, modeling; modeling.Judge; root = logging.getLogger()\n"
    program += "print(root.handlers, root.level, logging.getLogger('modeling').handlers)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"[] {logging.WARNING} []\n", "")


def test_an_import_does_not_ask_for_a_package_that_nothing_here_uses():
    """bitsandbytes does on a CPU with AVX512_BF16; what else its module says is still seen."""
    (module,) = files("bitsandbytes").joinpath("backends/cpu").glob("ops.py")
    text = module.read_text(encoding="utf-8")
    assert "Failed to load CPU gemm_4bit_forward" in text and "logger = logging.getLogger(__name__)" in text
    program = "import logging, modeling; logger = logging.getLogger('bitsandbytes.backends.cpu.ops')\n"
    program += "logger.warning('Failed to load CPU gemm_4bit_forward from %s', 'a hub'); logger.warning('another')"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stderr == "another\n"
