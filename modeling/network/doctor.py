"""Prints installed versions, this machine's hardware, and what works when it is tried: `bothways doctor`.

The output is meant for bug reports, so it names no folder, user or token. Each line is computed on its own and imports
what it needs itself: a broken library costs only the lines that use it.
"""

import argparse
import logging
import os
import platform
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from modeling.runtime.packages import find_version

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")
EXTRAS = ("deepspeed", "gradio", "gguf", "flash-attn")
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # Linux's names: two on x86, the last on ARM
CPU_FLAGS = ("avx", "avx2", "avx512f", "avx512_vnni", "avx512_fp16", *BF16_FLAGS, "asimd", "sve")
SHAPE = SimpleNamespace(hidden_size=576, intermediate_size=1536)  # layer sizes of the demo's base
SIZE = 64  # width of the tested layer: 64 x 64 is the smallest weight that AdamW8bit keeps 8-bit states for
TOLERANCE = {"8bit": 0.05, "4bit": 0.2}  # largest relative error of a quantised product that counts as working
FOLDER = re.compile(r"(?:\b[A-Za-z]:|~)?(?:[\\/][\w.+@-]+)+[\\/]")


def main() -> None:
    """Prints one line for each entry of `LINES`."""
    argparse.ArgumentParser(prog="bothways doctor", description=(__doc__ or "").partition("\n")[0]).parse_args()
    logging.disable(logging.CRITICAL)  # libraries log paths as they are imported
    warnings.simplefilter("ignore")
    for head, find in LINES.items():
        print(f"{head + ':':17}{attempt(find)}", flush=True)


def attempt(find: Callable[[], str]) -> str:
    """Returns the function's result, or its error as one line without folder names."""
    try:
        return find()
    except Exception as error:  # any error of a broken library belongs into the report
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return FOLDER.sub("", f"{type(error).__name__}: {message}")[:160]


# --- versions and hardware --------------------------------------------------------------------------------------------


def list_versions(packages: tuple[str, ...]) -> str:
    """Returns packages and their versions as one line."""
    return ", ".join(f"{package} {find_version(package)}" for package in packages)


def describe_cpu() -> str:
    """Returns the processor's name, its instruction sets, and the one that torch uses."""
    import torch

    facts = read_cpu_facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = [flag for flag in CPU_FLAGS if flag in list_cpu_flags(facts)]
    # torch may use less than the processor has: ATEN_CPU_CAPABILITY lowers it.
    return f"{name}; has {' '.join(flags) or 'unknown'}; torch uses {torch.backends.cpu.get_cpu_capability()}"


def describe_bf16() -> str:
    """Returns whether the CPU has bf16 instructions, according to the operating system."""
    if not (flags := list_cpu_flags(read_cpu_facts())):
        return "not known on this system"
    native = [flag for flag in BF16_FLAGS if flag in flags]
    return f"native ({', '.join(native)})" if native else "not native: torch emulates it"


def read_cpu_facts() -> dict[str, str]:
    """Returns /proc/cpuinfo's entries for the last processor; empty on systems other than Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def list_cpu_flags(facts: dict[str, str]) -> list[str]:
    """Returns the instruction sets in /proc/cpuinfo's entries; x86 calls the entry "flags", ARM "Features"."""
    return facts.get("flags", facts.get("Features", "")).split()


def describe_devices() -> str:
    """Returns the GPUs with their memory, or the name of another accelerator, or "no GPU"."""
    import torch

    if not torch.accelerator.is_available():
        return "no GPU"
    if not torch.cuda.is_available():
        return str(torch.accelerator.current_accelerator())
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return "; ".join(f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, sm_{gpu.major}{gpu.minor}" for gpu in found)


def describe_memory() -> str:
    """Returns free and total main memory."""
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"


def describe_threads() -> str:
    """Returns the number of torch's threads and of the cores that this process may use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    variable = os.environ.get("OMP_NUM_THREADS", "not set")
    return f"{torch.get_num_threads()} on {cores} cores (OMP_NUM_THREADS {variable})"


# --- what works -------------------------------------------------------------------------------------------------------


def find_device() -> "torch.device":
    """Returns the accelerator if there is one, else the CPU."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def describe_precision() -> str:
    """Returns what --dtype auto chooses for the demo's base, and each precision's time relative to float32."""
    from accelerate import PartialState

    from modeling.network.precision import choose_dtype, measure_precisions

    PartialState()  # choose_dtype measures on its main process
    device = find_device()
    measured = measure_precisions(device, SHAPE.hidden_size, SHAPE.intermediate_size)
    ratios = [f"{name} {ratio:.2f}" for name, ratio in measured.items() if name != "float32"]
    chosen = choose_dtype("auto", device, SHAPE, training=True)
    return f"auto trains in {chosen} on {device.type}; time relative to float32: {', '.join(ratios)}"


def list_attention() -> str:
    """Returns the kernels of torch's scaled_dot_product_attention that run on this device."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    device, found = find_device(), []
    states = torch.ones(1, 2, 16, SIZE, device=device, dtype=torch.float16 if device.type == "cuda" else torch.float32)
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                scaled_dot_product_attention(states, states, states, is_causal=True)
        except RuntimeError:  # torch's answer if this device has no such kernel
            continue
        found.append(name.removesuffix("_ATTENTION").lower())
    return f"eager, sdpa ({', '.join(found)})"


def try_layer(quantization: str, backward: bool) -> str:
    """Returns whether a quantised layer's output, or its gradient, is close to that of the plain layer."""
    import torch
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
    from torch import nn

    device = find_device()
    generator = torch.Generator().manual_seed(0)
    plain = nn.Linear(SIZE, SIZE, bias=False)
    plain.weight.data = torch.randn(SIZE, SIZE, generator=generator)
    states = torch.randn(8, SIZE, generator=generator)
    if quantization == "8bit":
        layer = Linear8bitLt(SIZE, SIZE, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = Int8Params(plain.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        layer = Linear4bit(SIZE, SIZE, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight = Params4bit(plain.weight.data.clone(), requires_grad=False, quant_type="nf4")
    found = compute_product(layer.to(device), states.to(device), backward)  # .to(device) quantises the weight
    expected = compute_product(plain, states, backward)
    return describe_error(found.cpu(), expected, TOLERANCE[quantization], "result")


def compute_product(layer: "torch.nn.Module", states: "torch.Tensor", backward: bool) -> "torch.Tensor":
    """Returns a layer's output, or the gradient of the output's sum of squares with respect to its input."""
    states = states.clone().requires_grad_(backward)
    output = layer(states)
    if not backward:
        return output.detach().float()
    output.float().square().sum().backward()
    return states.grad.float()


def try_optimizer() -> str:
    """Returns whether a step of bitsandbytes' 8-bit AdamW is close to a step of torch's AdamW."""
    import torch
    from bitsandbytes.optim import AdamW8bit

    device, moved = find_device(), []
    for optimizer in (AdamW8bit, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.ones(SIZE, SIZE, device=device))
        weight.grad = torch.linspace(-1, 1, SIZE * SIZE, device=device).reshape(SIZE, SIZE)
        optimizer([weight], lr=0.01, weight_decay=0.0).step()
        moved.append(weight.detach() - 1)
    return describe_error(*moved, 0.05, "step")


def describe_error(found: "torch.Tensor", expected: "torch.Tensor", tolerance: float, what: str) -> str:
    """Returns "works" if the relative error is within the tolerance, else its size."""
    error = ((found - expected).norm() / expected.norm()).item()
    return "works" if error <= tolerance else f"wrong: off by {error:.2g} of the {what}"


LINES: dict[str, Callable[[], str]] = {
    "bothways": lambda: find_version("bothways"),
    "python": platform.python_version,
    "libraries": lambda: list_versions(LIBRARIES),
    "extras": lambda: list_versions(EXTRAS),
    "platform": platform.platform,
    "cpu": describe_cpu,
    "bf16 on the cpu": describe_bf16,
    "devices": describe_devices,
    "memory": describe_memory,
    "threads": describe_threads,
    "precision": describe_precision,
    "attention": list_attention,
    "8-bit forward": lambda: try_layer("8bit", backward=False),
    "8-bit backward": lambda: try_layer("8bit", backward=True),
    "4-bit forward": lambda: try_layer("4bit", backward=False),
    "4-bit backward": lambda: try_layer("4bit", backward=True),
    "8-bit AdamW": try_optimizer,
}


if __name__ == "__main__":
    main()
