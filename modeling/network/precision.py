"""Precision: measuring which dtype a device computes in natively, choosing one, and converting a model to it.

Most CPUs and older GPUs have no bf16 instructions. torch then emulates bf16, many times slower than float32. A CPU's
feature flags do not show this reliably, so matrix products are timed; a GPU's driver says whether it has bf16. This
module must not know where models come from.
"""

import logging
import math
import time
from collections.abc import Sequence
from functools import lru_cache

import torch
from bitsandbytes.autograd._functions import MatMul8bitFp
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import PreTrainedConfig

from modeling.runtime.choices import PRECISIONS
from modeling.runtime.distributed import call_on_main
from modeling.runtime.logs import build_logger

logger = build_logger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Largest allowed change of a canary's probability between the precision in which the canaries were recorded and the one
# in which the member runs now, in either order. Even float32 needs some room: machines, versions and kernels sum in
# different orders. bf16 has 8 bits of significand, float16 has 11.
TOLERANCES = {
    ("float32", "float32"): 1e-4,
    ("float16", "float32"): 0.01,
    ("float16", "float16"): 0.01,
    ("bfloat16", "float16"): 0.03,
    ("bfloat16", "float32"): 0.03,
    ("bfloat16", "bfloat16"): 0.02,
}
# The timed product is rows x hidden size by hidden x intermediate size. The first round has few rows, so that it takes
# 60 ms even on a core that computes 0.6 GFLOP/s in bf16; a precision that is SLOW times slower than float32 there is
# emulated. The second round compares the other precisions with as many rows as a packed sequence has, because few rows
# do not show the gain of a precision.
FEW_ROWS, SLOW = 32, 2.0
# Rows of the second round, and the range of both sizes: too small would time overhead, too large would take seconds.
ON_CPU = {"rows": 512, "hidden": (256, 512), "intermediate": (512, 1024)}
ELSEWHERE = {"rows": 2048, "hidden": (1024, 4096), "intermediate": (2048, 16384)}
SECONDS_EACH, MOST_ROUNDS = 0.03, 20  # for each precision


def choose_dtype(asked: str, device: torch.device, config: PreTrainedConfig, *, training: bool) -> str:
    """Chooses the precision to compute in, the same on every process of a launch, and logs it in one line.

    Args:
        asked: One of `PRECISIONS`. "auto" chooses bfloat16 if a GPU has it, or if another device computes it faster
            than float32; else float16 on an accelerator for prediction, if that is faster; else float32.
        device: Device that computes.
        config: Config of the model, for the shape of its products.
        training: Whether gradients are computed too; float16 is then refused.

    Returns:
        Key of `DTYPES`.

    Raises:
        ValueError: If the precision is unknown, cannot train, or is not available on the device.
    """
    if asked not in PRECISIONS:
        raise ValueError(f"--dtype: expected one of {', '.join(PRECISIONS)}; found {asked!r}.")
    if training and asked == "float16":
        raise ValueError(
            "--dtype float16: expected a precision for training; found one for prediction only, because gradients "
            "can exceed its largest number, 65,504. Train with --dtype auto; the member can still predict in float16."
        )
    if asked == "float32":
        return asked
    sizes = (config.hidden_size, config.intermediate_size)
    # Measured on the main process alone: two processes could measure differently and train in different precisions.
    chosen, message, emulated = call_on_main(_choose, asked, device, sizes, training)
    logger.log(logging.WARNING if emulated else logging.INFO, f"Precision: {message}")
    return chosen


def _choose(asked: str, device: torch.device, sizes: tuple[int, int], training: bool) -> tuple[str, str, bool]:
    """Returns the precision, a message for the log, and whether the device only emulates the precision."""
    name = describe_device(device)
    candidates = ["bfloat16"] if device.type == "cpu" or training else ["bfloat16", "float16"]
    candidates = candidates if asked == "auto" else [asked]
    measured = measure_precisions(device, *sizes, ("float32", *candidates))
    ratios = {candidate: measured[candidate] for candidate in candidates}
    if asked != "auto" and math.isinf(ratios[asked]):
        raise ValueError(
            f"--dtype {asked}: expected a precision that {name} can compute in; found that it cannot. Use --dtype auto."
        )
    native = [candidate for candidate in candidates if is_native(candidate, device, ratios[candidate])]
    times = "; ".join(_compare(candidate, ratio) for candidate, ratio in ratios.items())
    timing = f"{times}, in products of the model's shape, forward and backward"
    if asked == "auto":
        chosen = native[0] if native else "float32"
        return chosen, f"{chosen} on {name}: {timing}", False
    if native:
        return asked, f"{asked}, as requested, on {name}: {timing}", False
    return asked, f"{asked}, as requested, is emulated on {name}: {timing}. --dtype auto avoids this.", True


def _compare(candidate: str, ratio: float) -> str:
    """Says in words how a precision's speed compares with float32's."""
    if math.isinf(ratio):
        return f"{candidate} is not available"
    if ratio < 1:
        return f"{candidate} is {1 / ratio:.1f} times faster than float32"
    return f"{candidate} is {ratio:.1f} times slower than float32"


def describe_device(device: torch.device) -> str:
    """Returns a device's name for logs: the GPU's model, or "cpu" with its widest instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device.type


def is_native(dtype: str, device: torch.device, ratio: float) -> bool:
    """Returns whether a device has hardware for a precision, whose time relative to float32 is known."""
    if device.type == "cuda" and dtype == "bfloat16":
        # Not by its time: while other programs used an H200, two of three timings put bf16 behind float32. By default
        # torch says that a T4 supports bf16, which it emulates.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return ratio < 1


@lru_cache(maxsize=8)
def measure_precisions(
    device: torch.device, hidden_size: int, intermediate_size: int, dtypes: Sequence[str] = tuple(DTYPES)
) -> dict[str, float]:
    """Measures the time of a forward and a backward product in each precision, relative to float32.

    Args:
        device: Device to measure.
        hidden_size, intermediate_size: Sizes of the model's products.
        dtypes: Keys of `DTYPES`, as a tuple that includes "float32".

    Returns:
        Time relative to float32, by precision; infinite if the device cannot compute in it.
    """
    limits = ON_CPU if device.type == "cpu" else ELSEWHERE
    asked = {"hidden": hidden_size, "intermediate": intermediate_size}
    shape = {name: min(max(size, limits[name][0]), limits[name][1]) for name, size in asked.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy CPU, other programs would otherwise decide how long several threads take
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
    """Returns the seconds of a linear layer's forward product plus its input's gradient, the best of some rounds."""
    sizes = ((rows, hidden), (intermediate, hidden), (rows, intermediate))
    # On a CPU, count only the seconds in which this thread ran.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    try:
        states, weight, gradient = (torch.full(size, 0.5, dtype=dtype, device=device) for size in sizes)
        rounds, start = [], clock()
        # At least two rounds: the first one prepares kernels, which takes longer than the product.
        while len(rounds) < 2 or (len(rounds) < MOST_ROUNDS and clock() - start < SECONDS_EACH):
            begin = clock()
            nn.functional.linear(states, weight)
            (gradient @ weight)[0, 0].item()  # .item() waits until a GPU has finished
            rounds.append(clock() - begin)
    except (RuntimeError, TypeError):  # torch raises one or the other if a device lacks a dtype
        return math.inf
    return min(rounds)


def find_tolerance(recorded: str, read: str) -> float:
    """Returns the largest allowed change of a canary's probability between two precisions."""
    return TOLERANCES[tuple(sorted((recorded, read)))]


# --- converting a model -----------------------------------------------------------------------------------------------


def set_dtype(model: nn.Module, dtype: str) -> None:
    """Converts all unquantised weights of a model to a precision and makes it compute in that; the head stays float32.

    Args:
        model: Preference model, quantised or not.
        dtype: Key of `DTYPES`.
    """
    target, head = DTYPES[dtype], {id(parameter) for parameter in model.score.parameters()}
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # compute_type_is_set: otherwise the layer replaces compute_dtype by its input's dtype at the first forward.
            module.compute_dtype, module.compute_type_is_set = target, True
            if hasattr(module.weight, "quant_state"):  # its dtype is the one a backward dequantises the weight to
                module.weight.quant_state.dtype = target
    # `from_pretrained(dtype=...)` is not enough: a checkpoint that bitsandbytes quantised keeps embeddings and norms in
    # the dtype they were saved in. Each layer's input, and so each product, would stay in bf16.
    for parameter in model.parameters():
        # Parameters only: the floating-point buffers are rotary frequencies, which must stay float32.
        if parameter.is_floating_point() and id(parameter) not in head:
            parameter.data = parameter.data.to(target)
    for module in model.modules():
        # Gemma-3 multiplies its embeddings by this buffer, which a load in bf16 rounds for good, from 25.30 to 25.25.
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.full_like(module.embed_scale, module.scalar_embed_scale, dtype=target)
    model.compute_dtype = target
    _keep_training_kernels(model)


def _keep_training_kernels(model: nn.Module) -> None:
    """Makes quantised layers compute the same in eval mode as in training, and in true float32 if that is the dtype."""
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            if module.weight.device.type == "cpu":
                # On a CPU, eval mode switches bitsandbytes to a kernel that quantises the activations too. It chooses
                # outliers over the whole batch, so a probability would depend on the other battles, and it takes twice
                # as long. So the layer ignores eval(): `train` is replaced by a function that does nothing.
                module.train()
                module.train = lambda mode=True, module=module: module
            elif model.compute_dtype == torch.float32:
                # A GPU quantises the activations in training too. That kernel stays, but it is not float32.
                module.forward = lambda states, module=module: _multiply_dequantized(module, states)
        elif isinstance(module, Linear4bit):
            # The packed CPU kernel has no backward: after a single evaluation every gradient would be wrong (cosine
            # 0.61 to the right one), with no more than a warning.
            module.support_avx512bf16_for_cpu = False


def _multiply_dequantized(module: Linear8bitLt, states: Tensor) -> Tensor:
    """Computes an 8-bit layer's product with its weight dequantised, as bitsandbytes does on a CPU in training."""
    if module.weight.CB is not None:  # before the first forward, as in Linear8bitLt.forward
        module.init_8bit_state()
    return MatMul8bitFp.apply(states, module.weight, None, module.bias, module.state)
