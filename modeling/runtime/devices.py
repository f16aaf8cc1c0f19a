"""How many bytes more a device can hold."""

import psutil
import torch


def measure_free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or that this machine could give a process."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
