"""Prepares torch for this machine, and measures how much memory a device has left.

Importing this module loads nothing heavy, because scripts import it before they check their command line.
"""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def start_torch() -> bool:
    """Imports torch, gives it this process's share of the cores, and returns whether it may use an accelerator."""
    import torch

    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        # accelerate launch sets 1 for every process where there is no GPU, which would leave the other cores idle.
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"


def measure_free_memory(device: "torch.device") -> int:
    """Returns the bytes that are free on a GPU, or a process's share of those that this machine can still give."""
    import psutil
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()  # else what torch keeps for later tensors counts as taken
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def measure_gpu() -> int:
    """Returns the bytes of this process's GPU, free or not."""
    import torch

    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
