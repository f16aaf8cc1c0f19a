"""What a launch waits for before it starts."""

import os
import threading
import time

import pytest
from accelerate import PartialState

from modeling.runtime.distributed import MAX_BUILD, wait_for_extensions


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """The lock of an extension that is being built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    PartialState()  # the logger asks it which process this is
    path = tmp_path / "deepspeed_shm_comm" / "lock"
    path.parent.mkdir()
    path.touch()
    return path


def test_the_lock_of_a_killed_build_is_removed(lock, caplog):
    """torch would wait for it for ever, without a word."""
    os.utime(lock, (time.time() - MAX_BUILD - 1,) * 2)
    wait_for_extensions()
    assert not lock.exists() and caplog.messages == [f"Removed the lock of a build that was killed: {lock}"]


def test_a_build_that_is_going_on_is_waited_for(lock, caplog):
    caplog.set_level("INFO")
    start = time.monotonic()
    threading.Timer(0.5, lock.unlink).start()
    wait_for_extensions()
    assert time.monotonic() - start >= 0.5
    assert caplog.messages == [f"Waiting for another process that builds DeepSpeed's extension ({lock})"]


def test_without_a_build_nothing_is_said(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    wait_for_extensions()
    assert caplog.messages == []
