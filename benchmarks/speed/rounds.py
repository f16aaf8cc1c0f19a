"""Runs ways of doing the same task in rounds A B C A B C, each way in its own process, one at a time.

A machine that slows down then slows all ways down alike, and each process's peak memory is that of its way alone. This
module must not know what a way does.
"""

import ctypes
import gc
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from modeling.training.memory import measure_peak_memory

# Takes the index of a round and returns its results: seconds, tokens, battles and anything else.
Round = Callable[[int], dict]


def run_in_rounds(ways: Mapping[str, Callable[[], Round]], num_rounds: int) -> dict[str, list[dict]]:
    """Returns each way's results per round, with its process's peak memory in bytes as `peak_memory`.

    Args:
        ways: By name, a function that builds the way. It runs in the way's process and loads all that is not timed.
        num_rounds: Rounds of each way. All of them count, so a way that needs warming up does it while it is built.

    Raises:
        RuntimeError: If a way's process ends without a result.
    """
    # Spawn, not fork: a forked process would inherit this one's memory and torch's threads.
    context, workers = get_context("spawn"), {}
    results: dict[str, list[dict]] = {name: [] for name in ways}
    try:
        for name, build in ways.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(build, theirs), daemon=True)
            process.start()
            theirs.close()  # else the end of the process would not end our recv()
            workers[name] = (process, ours)
            _receive(name, ours)
        for number in tqdm(range(num_rounds), desc="Rounds"):
            for name, (_, connection) in workers.items():
                connection.send(number)
                results[name].append(_receive(name, connection))
    finally:
        for process, _ in workers.values():
            process.terminate()
            process.join()
    return results


def _serve(build: Callable[[], Round], connection: Connection) -> None:
    """The process of one way: builds it, then runs each round that it is told to run."""
    # As in the scripts: otherwise a sum's last bit depends on the number of threads.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    PartialState()  # accelerate's logger needs it
    try:
        run = build()
        connection.send(None)
        while True:
            found = run(connection.recv())
            found |= {"peak_memory": _measure_peak()}
            _return_memory()
            connection.send(found)
    except EOFError:
        pass
    except Exception as error:
        connection.send(error)
        raise


def _return_memory() -> None:
    """Returns freed memory to the system, where malloc would keep it from the other ways."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
        if trim:
            trim(0)


def _measure_peak() -> int:
    """The most bytes this process has held; on a GPU, in the GPU's memory."""
    status = Path("/proc/self/status")
    if torch.cuda.is_available() or not status.exists():
        return measure_peak_memory()
    # getrusage would not do: a process inherits its maximum from the parent.
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M)[1]) * 1024


def _receive(name: str, connection: Connection) -> dict | None:
    """What a way's process sends; an exception that it sends is raised here."""
    try:
        found = connection.recv()
    except EOFError:
        raise RuntimeError(f"{name}: expected a result; its process ended without one. See its output above.") from None
    if isinstance(found, Exception):
        raise found
    return found


def summarise_rounds(results: Mapping[str, list[dict]], against: str) -> dict[str, dict]:
    """Returns each way's median rates, and its speed relative to another way as [median, least, most] over the rounds.

    Args:
        results: The result of `run_in_rounds`.
        against: The name of the way to compare with.
    """
    summary = {}
    for name, rounds in results.items():
        rates = {
            f"{unit}_per_second": statistics.median(each[unit] / each["seconds"] for each in rounds)
            for unit in ("tokens", "battles")
        }
        ratios = {}
        for unit in ("tokens", "battles"):
            # A ratio within each round, not of the medians: a change of the machine's speed between rounds cancels.
            by_round = [
                (each[unit] / each["seconds"]) / (other[unit] / other["seconds"])
                for each, other in zip(rounds, results[against], strict=True)
            ]
            ratios[f"{unit}_ratio"] = [statistics.median(by_round), min(by_round), max(by_round)]
        summary[name] = {
            "seconds": [each["seconds"] for each in rounds],
            **{unit: [each[unit] for each in rounds] for unit in ("tokens", "battles")},
            **rates,
            **ratios,
            "peak_memory_gb": max(each["peak_memory"] for each in rounds) / 1e9,
        }
    return summary
