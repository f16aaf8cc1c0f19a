"""Describes the machine of a benchmark: device, commit and the versions that matter. It knows nothing about timing."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

VERSIONS = ("bothways", "torch", "transformers", "peft", "bitsandbytes", "tokenizers", "ftfy", "pairjudge", "trl")


def describe_machine() -> dict:
    """Returns the device, the cores this process may use, the commit, and package versions."""
    # os.cpu_count() counts the host's cores, also where a container or taskset allows only some of them.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or f"{cores} CPU cores, {_describe_processor()}",
        "commit": _find_commit(),
        "tokenizers_parallelism": os.environ.get("TOKENIZERS_PARALLELISM", "true"),
        "versions": {"python": platform.python_version(), **_find_versions()},
    }


def _describe_processor() -> str:
    """The processor's name, its best bf16 or vector unit, and the instruction set torch uses."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    named = {key.strip(): value.strip() for key, value in lines.items()}
    flags = named.get("flags", "").split()
    kernels = [flag.upper() for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags][:1]
    # Less than the processor has where ATEN_CPU_CAPABILITY emulates an older one.
    used = f"torch using {torch.backends.cpu.get_cpu_capability()}"
    return " with ".join([named.get("model name") or platform.machine(), *kernels]) + f", {used}"


def _find_versions() -> dict[str, str]:
    """Versions of the installed packages among VERSIONS."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a peer that is not installed
            continue
    return found


def _find_commit() -> str | None:
    """The commit of this checkout; None outside a checkout or without git."""
    if not shutil.which("git"):
        return None
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None
