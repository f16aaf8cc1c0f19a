"""The precision that a device computes in: chosen by measuring it, and put on a model.

Most CPUs and older GPUs have no bf16 instructions. torch then imitates bf16, many times slower than float32, so that
neither a CPU's features nor `is_bf16_supported` say enough: the products themselves are timed. It must not know where
models come from.
"""

import logging
import math
import time
from collections.abc import Sequence
from functools import lru_cache

import torch
from accelerate.logging import get_logger
from bitsandbytes.autograd._functions import MatMul8bitFp
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import PreTrainedConfig

from modeling.runtime.choices import PRECISIONS
from modeling.runtime.distributed import call_on_main

logger = get_logger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Most that a probability may move between a member's two precisions: the one in which its probe battles were read,
# and the one in which it reads now. The same pair in either order. Between machines, versions and kernels float32 needs
# room for another order of summing; bf16 has 8 bits of significand, float16 11.
TOLERANCES = {
    ("float32", "float32"): 1e-4,
    ("float16", "float32"): 0.01,
    ("float16", "float16"): 0.01,
    ("bfloat16", "float16"): 0.03,
    ("bfloat16", "float32"): 0.03,
    ("bfloat16", "bfloat16"): 0.02,
}
# What is timed: rows times a matrix of the model's hidden and intermediate size. First with few rows, which takes 60 ms
# even where a core computes 0.6 GFLOP/s in bf16: a precision that is SLOW times slower than float32 there is imitated.
# The others are then compared with many rows, as a packed sequence has, because few do not show what a precision gains.
FEW_ROWS, SLOW = 32, 2.0
# Many rows, and the least and most of a size: a small model shall not measure overhead, nor a large one take seconds.
ON_CPU = {"rows": 512, "hidden": (256, 512), "intermediate": (512, 1024)}
ELSEWHERE = {"rows": 2048, "hidden": (1024, 4096), "intermediate": (2048, 16384)}
SECONDS_EACH, MOST_ROUNDS = 0.03, 20  # of each precision


def choose_dtype(asked: str, device: torch.device, config: PreTrainedConfig, *, training: bool) -> str:
    """The precision to compute in, the same on every process of a launch; said in the log in one line.

    Args:
        asked: One of `PRECISIONS`. "auto" takes bfloat16 where the device computes in it faster than in float32,
            float16 on a GPU that has no bf16 and only reads, and float32 everywhere else.
        device: That computes.
        config: Of the model, for the shape of its products.
        training: Whether gradients are computed too: float16 is refused then.

    Returns:
        A key of `DTYPES`.

    Raises:
        ValueError: If the precision is unknown, cannot train, or the device lacks it.
    """
    if asked not in PRECISIONS:
        raise ValueError(f"--dtype: expected one of {', '.join(PRECISIONS)}; found {asked!r}.")
    if training and asked == "float16":
        raise ValueError(
            "--dtype float16: expected a precision to train in; found one to read in, whose largest number, 65,504, "
            "gradients exceed. Train with --dtype auto; the member can be read in float16 afterwards."
        )
    if asked == "float32":
        return asked
    sizes = (config.hidden_size, config.intermediate_size)
    chosen, said, imitated = call_on_main(_choose, asked, device, sizes, training)
    logger.log(logging.WARNING if imitated else logging.INFO, f"Precision: {said}")
    return chosen


def _choose(asked: str, device: torch.device, sizes: tuple[int, int], training: bool) -> tuple[str, str, bool]:
    """The precision, what is to be said of it, and whether the device only imitates it."""
    name = describe_device(device)
    candidates = ["bfloat16"] if device.type == "cpu" or training else ["bfloat16", "float16"]
    candidates = candidates if asked == "auto" else [asked]
    measured = measure_precisions(device, *sizes, ("float32", *candidates))
    ratios = {candidate: measured[candidate] for candidate in candidates}
    if asked != "auto" and math.isinf(ratios[asked]):
        raise ValueError(
            f"--dtype {asked}: expected a precision that {name} can compute in; found that it cannot. Take "
            "--dtype auto."
        )
    native = [candidate for candidate in candidates if ratios[candidate] < 1 and has_units(candidate, device)]
    times = "; ".join(_compare(candidate, ratio) for candidate, ratio in ratios.items())
    said = f"{times}, in products of the model's shape, forward and backward"
    if asked == "auto":
        chosen = native[0] if native else "float32"
        return chosen, f"{chosen} on {name}: {said}", False
    if native:
        return asked, f"{asked}, as asked, on {name}: {said}", False
    return asked, f"{asked}, as asked, is imitated on {name}: {said}. --dtype auto avoids it.", True


def _compare(candidate: str, ratio: float) -> str:
    """How a precision's time compares with float32's, in words."""
    if math.isinf(ratio):
        return f"{candidate} is not available"
    if ratio < 1:
        return f"{candidate} is {1 / ratio:.1f} times faster than float32"
    return f"{candidate} is {ratio:.1f} times slower than float32"


def describe_device(device: torch.device) -> str:
    """A device's name for logs: a GPU's own, or "cpu" with its widest instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device.type


def has_units(dtype: str, device: torch.device) -> bool:
    """Whether a GPU has units for a precision; of others this is not known, and only what was measured counts."""
    return device.type != "cuda" or dtype != "bfloat16" or torch.cuda.is_bf16_supported(including_emulation=False)


@lru_cache(maxsize=8)
def measure_precisions(
    device: torch.device, hidden_size: int, intermediate_size: int, dtypes: Sequence[str] = tuple(DTYPES)
) -> dict[str, float]:
    """How long a forward and a backward product take in each precision, in multiples of float32's time.

    Args:
        dtypes: Keys of `DTYPES`, a tuple with "float32" in it.

    Returns:
        Multiples by precision; infinite where the device computes no product in it.
    """
    limits = ON_CPU if device.type == "cpu" else ELSEWHERE
    asked = {"hidden": hidden_size, "intermediate": intermediate_size}
    shape = {name: min(max(size, limits[name][0]), limits[name][1]) for name, size in asked.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a CPU: what else runs there would otherwise decide how long it takes
    try:
        few = {name: _time_products(DTYPES[name], device, FEW_ROWS, **shape) for name in dtypes}
        fast = [name for name, seconds in few.items() if seconds <= SLOW * few["float32"]]
        many = {name: _time_products(DTYPES[name], device, limits["rows"], **shape) for name in fast if fast[1:]}
    finally:
        torch.set_num_threads(threads)
    compared = (few, many) if many else (few,)
    return {name: seconds / times["float32"] for times in compared for name, seconds in times.items()}


@torch.inference_mode()
def _time_products(dtype: torch.dtype, device: torch.device, rows: int, hidden: int, intermediate: int) -> float:
    """Seconds of a linear layer's forward product and of the backward one for its input, the best of some rounds."""
    sizes = ((rows, hidden), (intermediate, hidden), (rows, intermediate))
    # Of a CPU only the seconds count in which this thread ran.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    try:
        states, weight, gradient = (torch.full(size, 0.5, dtype=dtype, device=device) for size in sizes)
        rounds, start = [], clock()
        # At least two, as the first one prepares kernels, for longer than a product takes.
        while len(rounds) < 2 or (len(rounds) < MOST_ROUNDS and clock() - start < SECONDS_EACH):
            begin = clock()
            nn.functional.linear(states, weight)
            (gradient @ weight)[0, 0].item()  # which waits for a GPU to be done
            rounds.append(clock() - begin)
    except (RuntimeError, TypeError):  # torch says either where a device lacks a dtype
        return math.inf
    return min(rounds)


def find_tolerance(recorded: str, read: str) -> float:
    """Most that a probe battle's probability may move between two precisions."""
    return TOLERANCES[tuple(sorted((recorded, read)))]


# --- a model in a precision -------------------------------------------------------------------------------------------


def set_dtype(model: nn.Module, dtype: str) -> None:
    """Puts all of a model that is not quantised into a precision, and makes it compute in that; the head stays float32.

    A checkpoint that bitsandbytes has quantised keeps embeddings and norms in the dtype they were saved in, whatever
    `from_pretrained(dtype=...)` says: each layer's input, and so each product, would stay in bf16.
    """
    target, head = DTYPES[dtype], {id(parameter) for parameter in model.score.parameters()}
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = target, True
            if hasattr(module.weight, "quant_state"):  # in which a backward expands the weight
                module.weight.quant_state.dtype = target
    for parameter in model.parameters():
        # Of buffers there are only rotary frequencies, which are float32 and have to stay so.
        if parameter.is_floating_point() and id(parameter) not in head:
            parameter.data = parameter.data.to(target)
    model.compute_dtype = target
    _keep_training_kernels(model)


def _keep_training_kernels(model: nn.Module) -> None:
    """Makes quantised layers compute in eval mode what they compute in training, and in float32 only float32 products.

    bitsandbytes otherwise changes kernels on a CPU. 8 bit: activations are quantised too, with outliers chosen over the
    whole batch, so a probability depends on its neighbours; and it takes twice as long. 4 bit: the packed kernel has
    no backward, and after one evaluation every gradient is wrong. On a GPU 8 bit has that kernel in training too: there
    it is left alone, but for float32.
    """
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            on_cpu = module.weight.device.type == "cpu"
            if on_cpu:
                module.train()
                module.train = lambda mode=True, module=module: module
            elif model.compute_dtype == torch.float32:
                module.forward = lambda states, module=module: _multiply_expanded(module, states)
        elif isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _multiply_expanded(module: Linear8bitLt, states: Tensor) -> Tensor:
    """An 8-bit layer's product with its weight expanded into the states' dtype, as bitsandbytes does it on a CPU."""
    if module.weight.CB is not None:
        module.init_8bit_state()
    return MatMul8bitFp.apply(states, module.weight, None, module.bias, module.state)
