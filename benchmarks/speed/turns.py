"""Ways of doing the same thing, timed in turns A B C A B C, each in a process of its own that the others wait for: a
machine that slows down slows all of them down, and each process's peak of memory is its way's.
"""

import ctypes
import gc
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from modeling.training.memory import measure_peak_memory

VERSIONS = ("bothways", "torch", "transformers", "peft", "bitsandbytes", "tokenizers", "ftfy", "pairjudge", "trl")
# Takes the number of a turn and gives what happened in it: seconds, tokens, battles, and whatever else.
Turn = Callable[[int], dict]


def run_in_turns(ways: Mapping[str, Callable[[], Turn]], turns: int) -> dict[str, list[dict]]:
    """What each way gave in each turn, with the peak of its process's memory, in bytes, as `peak_memory`.

    Args:
        ways: By name, what builds a way, in its own process: it loads all that is not timed.
        turns: Of each way; before the first there is none that is not counted, so a way warms up while it is built.
    """
    context, workers = get_context("spawn"), {}
    results: dict[str, list[dict]] = {name: [] for name in ways}
    try:
        for name, build in ways.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(build, theirs), daemon=True)
            process.start()
            theirs.close()
            workers[name] = (process, ours)
            _receive(name, ours)
        for turn in tqdm(range(turns), desc="Turns"):
            for name, (_, connection) in workers.items():
                connection.send(turn)
                results[name].append(_receive(name, connection))
    finally:
        for process, _ in workers.values():
            process.terminate()
            process.join()
    return results


def _serve(build: Callable[[], Turn], connection: Connection) -> None:
    """A way's process: builds it, then runs whichever turn it is told to."""
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
    """Gives back what a turn has freed, where the system's malloc would keep it from the ways that come next."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim:
            trim(0)


def _measure_peak() -> int:
    """Most bytes that this process has held, or the GPU for it."""
    status = Path("/proc/self/status")
    if torch.cuda.is_available() or not status.exists():
        return measure_peak_memory()
    # Not getrusage, whose maximum a process inherits from the one that started it.
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M)[1]) * 1024


def _receive(name: str, connection: Connection) -> dict | None:
    """What a way's process sends; its failure is raised here."""
    try:
        found = connection.recv()
    except EOFError:
        raise RuntimeError(f"{name}: its process ended without a word; see what it printed") from None
    if isinstance(found, Exception):
        raise found
    return found


def summarise_turns(results: Mapping[str, list[dict]], against: str) -> dict[str, dict]:
    """Medians of each way, and how many times faster than another it is, turn by turn: median, least, most.

    Args:
        results: What `run_in_turns` returned.
        against: The way that the ratios are to.
    """
    summary = {}
    for name, turns in results.items():
        rates = {
            f"{unit}_per_second": statistics.median(turn[unit] / turn["seconds"] for turn in turns)
            for unit in ("tokens", "battles")
        }
        ratios = {}
        for unit in ("tokens", "battles"):
            each = [
                (turn[unit] / turn["seconds"]) / (other[unit] / other["seconds"])
                for turn, other in zip(turns, results[against], strict=True)
            ]
            ratios[f"{unit}_ratio"] = [statistics.median(each), min(each), max(each)]
        summary[name] = {
            "seconds": [turn["seconds"] for turn in turns],
            **{unit: [turn[unit] for turn in turns] for unit in ("tokens", "battles")},
            **rates,
            **ratios,
            "peak_memory_gb": max(turn["peak_memory"] for turn in turns) / 1e9,
        }
    return summary


def describe_machine() -> dict:
    """Device and cores that this process may use, the commit, and the versions that matter."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or f"{cores} CPU cores, {_name_processor()}",
        "commit": _find_commit(),
        "tokenizers_parallelism": os.environ.get("TOKENIZERS_PARALLELISM", "true"),
        "versions": {"python": platform.python_version(), **_find_versions()},
    }


def _name_processor() -> str:
    """The processor's own name, where the system tells it, what it could compute bf16 with, and what torch uses, which
    is less where an older processor is emulated."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    named = {key.strip(): value.strip() for key, value in lines.items()}
    flags = named.get("flags", "").split()
    kernels = [flag.upper() for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags][:1]
    used = f"torch using {torch.backends.cpu.get_cpu_capability()}"
    return " with ".join([named.get("model name") or platform.machine(), *kernels]) + f", {used}"


def _find_versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a peer that is not installed
            continue
    return found


def _find_commit() -> str | None:
    """Of the checkout that this module stands in; None where it is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None
