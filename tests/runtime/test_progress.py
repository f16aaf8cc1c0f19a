"""Bars appear for what takes long, and not before."""

import io

import pytest
from transformers.utils import logging as transformers_logging

from modeling.runtime.progress import delay_loading_bars, describe_step, show_progress


def run_bar(delay: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a bar of two steps writes that appears after so many seconds."""
    monkeypatch.setenv("TQDM_DELAY", delay)
    written = io.StringIO()
    with show_progress(total=2, file=written) as bar:
        describe_step(bar, "Loading")
        for _ in range(2):
            bar.update()
    return written.getvalue()


def test_a_bar_is_there_only_after_its_delay(monkeypatch):
    shown = run_bar("0", monkeypatch)
    assert "Loading" in shown and "2/2" in shown
    assert run_bar("60", monkeypatch) == ""


def test_a_disabled_bar_is_described_in_silence():
    """Other processes than the first disable theirs, and tqdm gives such a bar no delay."""
    written = io.StringIO()
    with show_progress(total=2, file=written, disable=True) as bar:
        describe_step(bar, "Loading")
    assert written.getvalue() == ""


def test_the_bars_of_transformers_wait_too(monkeypatch):
    monkeypatch.delenv("TQDM_DELAY", raising=False)
    for delayed in (True, False):
        written = io.StringIO()
        with delay_loading_bars() if delayed else written:
            file = io.StringIO()
            list(transformers_logging.tqdm(range(3), file=file))
        assert bool(file.getvalue()) != delayed
