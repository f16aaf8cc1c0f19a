"""Progress bars that appear only when something takes long, so that a notebook of short calls shows none."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

DELAY_SECONDS = 2.0


def _read_delay() -> float:
    """Seconds before a bar appears."""
    return float(os.environ.get("TQDM_DELAY", DELAY_SECONDS))


def show_progress(**options) -> tqdm:
    """Returns tqdm's bar, which appears after `DELAY_SECONDS`, or after those of tqdm's own variable TQDM_DELAY.

    Args:
        options: As for tqdm.
    """
    return tqdm(delay=_read_delay(), **options)


def describe_step(bar: tqdm, text: str) -> None:
    """Writes what is being done before a bar, if the bar has been there long enough to be shown."""
    # A disabled bar, as other processes than the first have it, lacks a delay.
    bar.set_description(text, refresh=not bar.disable and bar.format_dict["elapsed"] >= bar.delay)


@contextmanager
def delay_loading_bars() -> Iterator[None]:
    """Delays the bars with which transformers loads weights in the same way, and removes them when they are full."""

    def build(factory: Callable, args: Sequence, kwargs: Mapping) -> object:
        """A bar, or transformers' placeholder for one where bars are disabled."""
        return factory(*args, **{**kwargs, "delay": _read_delay(), "leave": False})

    before = transformers_logging.set_tqdm_hook(build)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)
