"""Loggers whose messages appear once per launch, not once per process. Scripts or users decide where they go."""

from collections.abc import Mapping

from accelerate import PartialState
from accelerate.logging import MultiProcessAdapter, get_logger


class ProcessLogger(MultiProcessAdapter):
    """accelerate's logger, which names the process only where there are several."""

    def process(self, msg: str, kwargs: Mapping) -> tuple[str, Mapping]:
        """Returns the message, after "[RANK n]" in a launch of several processes, and the options of the call."""
        named, kwargs = super().process(msg, kwargs)
        return named if PartialState().num_processes > 1 else msg, kwargs


def build_logger(name: str) -> ProcessLogger:
    """Returns the logger of a module. `PartialState()` must exist when it is used."""
    return ProcessLogger(get_logger(name).logger, {})
