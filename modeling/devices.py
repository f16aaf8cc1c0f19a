"""What a device can do: compute in bf16, and hold so many bytes more."""

import psutil
import torch


def check_precision(dtype: str, device: torch.device) -> None:
    """Raises a ValueError where the device would only imitate bf16, at a fraction of its speed."""
    if dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"Precision on {torch.cuda.get_device_name(device)}: expected a GPU that computes in bf16; found none. "
            "Read with --dtype float32, train with --dtype float32, or take a newer GPU (Ampere and later)."
        )


def measure_free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or that this machine could give a process."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
