"""The memory plan of a training run: bytes per device, computed before anything is loaded.

It must not know scripts or data. On a CPU the estimate is within 25% of what a process was measured to hold
(tests/training/test_memory.py), but for ZeRO-3. For a GPU it is computed; it was 12% above the one step that was
measured, Gemma-2-9B in 8 bit on an H200 (benchmarks/results/gpu.json).
"""

import math
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedConfig

from modeling.network.attention import list_kernels
from modeling.network.expansion import FLOAT32
from modeling.network.footprint import MemoryPlan, build_network, count_activations, count_weights
from modeling.network.precision import DTYPES
from modeling.runtime.distributed import BUCKET_SIZE

OPTIMIZER_BLOCK, MIN_8BIT_SIZE = 256, 4096  # of bitsandbytes' 8-bit optimizers; smaller tensors keep float32 state
# Optimizers that keep no state, or one tensor per parameter. The others keep two, as AdamW does.
STATELESS, ONE_STATE = ("sgd", "lomo", "adalomo"), ("lion", "rmsprop", "adagrad")
# glibc's malloc keeps freed blocks that later tensors do not fit into. Over five settings of batch, length, dtype and
# layers, a process held 1.43 to 1.75 times the live bytes. With every tensor in a mapping of its own it was 1.02 times,
# but each step took seconds more of system time.
HEAP_OVERHEAD = 1.5


def plan_memory(
    config: PreTrainedConfig,
    *,
    dtype: str,
    r: int,
    freeze_layers: int,
    lengths: Sequence[int],
    optim: str,
    lora_dropout: float = 0.0,
    gradient_checkpointing: bool = False,
    use_reentrant: bool = False,
    num_processes: int = 1,
    zero_stage: int = 0,
    device_type: str = "cpu",
    kernel: str | None = None,
    resident: int = 0,
) -> MemoryPlan:
    """Estimates the memory that training holds at its peak on each device.

    Args:
        config: The base's config; its quantization_config, if any, decides between 8 bit and 4 bit.
        dtype: Precision of everything that is not quantised, a key of `DTYPES`.
        lengths: Tokens of each sequence of one forward pass. They are packed, and share no prefix.
        optim: Name of the optimizer, as in TrainingArguments.
        lora_dropout: Above 0, each projection keeps an input and a mask of its own.
        use_reentrant: The kind of gradient checkpointing. False keeps the input of every 8-bit layer all the same:
            bitsandbytes stores it as `ctx.A`, not as a saved tensor, so the checkpoint cannot drop it.
        zero_stage: DeepSpeed's stage; 0 without DeepSpeed.
        device_type: "cpu" adds what malloc wastes.
        kernel: Attention, a key of `KERNELS`; None is the best that such a device may have.
        resident: Bytes that the process holds already.
    """
    # Under ZeRO-3 DeepSpeed holds the base's weights in float32, whatever they are computed in.
    held = "float32" if zero_stage == 3 else dtype
    network = build_network(
        config,
        dtype=held,
        r=r,
        freeze_layers=freeze_layers,
        lora_dropout=lora_dropout,
        kernel=kernel or list_kernels(config, device_type, DTYPES[dtype])[0],
    )
    if gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    parts = {"process before": resident}
    parts["base weights"] = count_weights(network) // (num_processes if zero_stage == 3 else 1)
    if zero_stage == 3:
        parts["layers collected at a time"] = FLOAT32 * (count_largest_module(network) + BUCKET_SIZE)
    parts |= count_states(trained, optim, num_processes, zero_stage)
    parts["activations"], heap = count_activations(network, lengths, DTYPES[dtype], device_type)
    if device_type == "cpu":
        parts["freed, kept by malloc"] = int(heap * (HEAP_OVERHEAD - 1))
    return MemoryPlan({name: size for name, size in parts.items() if size})


def count_states(trained: list[int], optim: str, num_processes: int, zero_stage: int) -> dict[str, int]:
    """Counts the bytes per device of trained parameters, given their sizes, of gradients and of optimizer state."""
    total, shared = FLOAT32 * sum(trained), num_processes if zero_stage >= 2 else 1
    parts = {"adapters and head": total // (shared if zero_stage == 3 else 1)}
    parts |= {"copy of the share to update": total // shared} if zero_stage else {}
    parts["gradients"] = total // shared
    # Gradients are reduced from copies in buckets; DDP's buckets together are as large as all gradients.
    parts["buckets"] = FLOAT32 * BUCKET_SIZE if zero_stage else total * (num_processes > 1)
    return parts | {"optimizer": sum(count_optimizer(optim, size) for size in trained) // shared}


def count_largest_module(network: nn.Module) -> int:
    """Counts the weights of the largest single module, usually the embedding."""
    return max(sum(p.numel() for p in module.parameters(recurse=False)) for module in network.modules())


def count_optimizer(optim: str, size: int) -> int:
    """Counts the bytes that an optimizer keeps for a tensor of `size` elements; unknown ones count as AdamW."""
    if optim.startswith(STATELESS):
        return 0
    tensors = 1 if optim.removeprefix("paged_").startswith(ONE_STATE) else 2
    if optim.endswith("8bit") and size >= MIN_8BIT_SIZE:
        return tensors * (size + FLOAT32 * math.ceil(size / OPTIMIZER_BLOCK))
    return tensors * FLOAT32 * size


# --- measured ---------------------------------------------------------------------------------------------------------


def measure_resident() -> int:
    """Measures the bytes that this process holds now; without /proc, the most it has held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return measure_peak_memory()


def measure_peak_memory() -> int:
    """Measures the most bytes held so far, on this process's GPU if it uses one, else by the process."""
    if PartialState().device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # In bytes on macOS, in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
