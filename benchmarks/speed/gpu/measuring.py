"""Time and memory of a device, and one run of a part with a time box. It must not know what a part measures.

A part is a generator of named measurements, functions that return a record. A measurement that fails, because a kernel
cannot compute a dtype or memory runs out, leaves its error as its record.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

Measurement = Callable[[], dict]
Part = Iterator[tuple[str, Measurement]]


@dataclass(frozen=True)
class Setting:
    """The device to measure; a dry run takes tiny sizes, so that it can run every line on a CPU."""

    device: torch.device
    dry_run: bool = False

    def pick(self, full: Any, tiny: Any) -> Any:
        """Returns the first value, or the second in a dry run."""
        return tiny if self.dry_run else full


class Clock:
    """Seconds since the command was started, and the time when it has to end."""

    def __init__(self, start: float, seconds: float):
        """
        Args:
            start: A time of `time.time()`, which a restarted process can continue from.
            seconds: Length of the whole command.
        """
        self.start, self.end = start, start + seconds

    def say(self, text: str) -> None:
        """Prints a line with the elapsed seconds, at once."""
        print(f"[{time.time() - self.start:6.1f} s] {text}", flush=True)


def run_part(
    part: Part, box: float, records: dict, clock: Clock, save: Callable[[], None], device: torch.device
) -> None:
    """Runs a part's measurements until its time box ends or the device fails, and saves after each.

    Args:
        part: The generator.
        box: Seconds after which no further measurement starts.
        records: Is given a record per measurement, `error` if the generator itself failed, and `stopped` if it did not
            end. Measurements that have a record already are left out.
    """
    end = min(time.time() + box, clock.end)
    records.pop("stopped", None)
    try:
        for name, measure in part:
            if name in records:
                continue
            if time.time() >= end:
                records["stopped"] = f"before {name}: the time box of {box:g} s, or the command's time, was over"
                clock.say(records["stopped"])
                break
            records[name] = attempt(measure)
            del measure  # else it would keep its model while the generator builds the next one
            clock.say(f"{name}: {describe(records[name])}")
            save()
            if not is_alive(device):
                records["stopped"] = f"after {name}: the device failed"
                break
    except Exception as error:
        records["error"] = describe_error(error)
        clock.say(records["error"])
    finally:
        part.close()  # frees the models that it holds
        free_memory()
        save()


def attempt(measure: Measurement) -> dict:
    """Returns a measurement's record, or its error."""
    try:
        return make_finite(measure())
    except Exception as error:
        # Only text is kept: the traceback would keep the tensors of its frames alive.
        return {"error": describe_error(error)}
    finally:
        free_memory()


def describe_error(error: Exception) -> str:
    """Returns an error's kind and the start of its text, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def make_finite(value: Any) -> Any:
    """Replaces numbers that JSON does not have, such as NaN, by their names, in a record of any depth."""
    if isinstance(value, dict):
        return {name: make_finite(each) for name, each in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def describe(record: dict) -> str:
    """Returns a record on one line, with numbers of four digits."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in record.items())


def format_value(value: Any) -> str:
    """Returns a number with four significant digits, and anything else as text."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# --- the device -------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory() -> None:
    """Returns freed memory to the device, so that one measurement does not take it from the next."""
    gc.collect()
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # of a device that has failed; `is_alive` says so
            torch.cuda.empty_cache()


def is_alive(device: torch.device) -> bool:
    """Returns whether the device still computes: after an illegal access, CUDA fails until the process ends."""
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True


def measure_allocated(device: torch.device) -> int:
    """Returns the bytes of all tensors on a GPU; 0 elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def measure_peak(function: Callable[[], Any], device: torch.device) -> tuple[Any, int]:
    """Returns the function's result, and the most bytes that it added on a GPU; 0 elsewhere."""
    if device.type != "cuda":
        return function(), 0
    free_memory()
    torch.cuda.reset_peak_memory_stats(device)
    before = measure_allocated(device)
    result = function()
    synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before


def time_call(function: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Returns the function's result and its seconds, those of the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    result = function()
    synchronize(device)
    return result, time.perf_counter() - start


def time_repeatedly(function: Callable[[], Any], device: torch.device, repeats: int, limit: float = 3.0) -> float:
    """Returns the median seconds of several calls after two untimed ones; of fewer where `limit` seconds are over."""
    for _ in range(2):
        function()
    seconds: list[float] = []
    while not seconds or (len(seconds) < repeats and sum(seconds) < limit):
        seconds.append(_time_once(function, device))
    return statistics.median(seconds)


def _time_once(function: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds of one call, by the GPU's own clock if there is one."""
    if device.type != "cuda":
        return time_call(function, device)[1]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000
