"""Parts `training` and `small`: steps of LoRA, the notebook's way and ours."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import bitsandbytes as bnb
import torch
from torch import nn
from transformers.models.gemma2 import modeling_gemma2

from benchmarks.speed.gpu.kernels import move_batch
from benchmarks.speed.gpu.measuring import Part, Setting, free_memory, measure_peak, time_call
from benchmarks.speed.gpu.models import (
    GEMMA2_2B,
    GEMMA2_9B,
    GEMMA3_270M,
    MAX_TOKENS,
    TINY,
    build_config,
    build_random,
    choose_kernel,
    count_flops,
    draw_battles,
    quantize,
)
from benchmarks.speed.gpu.passes import SHORT_TOKENS, draw_sequences, run_packed, run_way
from benchmarks.speed.padding import TRAINING_BATCH, PaddedCollator
from modeling.encoding.collator import PackedCollator
from modeling.network.base import measure_weights
from modeling.network.classifier import PreferenceMixin
from modeling.network.lora import add_adapters

LORA = {"r": 64, "alpha": 4, "dropout": 0.05}  # as configs/gemma2-9b/train.yaml, with all layers
BATTLES = 16  # of a step
PART_TOKENS = 8192  # token budget of a part of our step
STEPS = 2  # timed, after one to warm up
# Bytes that training may not count on: CUDA itself and fragmentation.
RESERVE = 1_000_000_000
CARDS = {"fits_24_gb": 24_000_000_000, "fits_40_gb": 40_000_000_000}


def measure_training(setting: Setting) -> Part:
    """Yields a step of each way on the same battles in one order, in bf16 with gradient checkpointing.

    The notebook's way is 2 padded batches of 8, 8-bit weights and eager attention.
    """
    config = build_config(GEMMA2_9B, **setting.pick({}, TINY))
    battles = draw_labelled(config.vocab_size, setting)
    base = build_random(config, setting.device, "bfloat16")
    packed = PackedCollator(setting.pick(PART_TOKENS, 256))(battles)["parts"]
    yield "notebook, 8bit", partial(measure_steps, base, "8bit", pad_parts(battles), battles, setting, "eager")
    yield "ours, 8bit", partial(measure_steps, base, "8bit", packed, battles, setting)
    yield "ours, 4bit", partial(measure_steps, base, "4bit", packed, battles, setting)
    yield "ours, bf16", partial(measure_steps, base, "none", packed, battles, setting)
    if find_spec("liger_kernel"):
        yield (
            "ours, 8bit, Liger's kernels",
            partial(measure_steps, base, "8bit", packed, battles, setting, fuse=fuse_liger),
        )


def measure_small(setting: Setting) -> Part:
    """Yields prediction and training of two smaller models with unquantised weights, our way."""
    for name, shape in (("Gemma-3-270M", GEMMA3_270M), ("Gemma-2-2B", GEMMA2_2B)):
        config = build_config(shape, **setting.pick({}, TINY))
        sequences = draw_sequences(config.vocab_size, setting)
        battles = draw_labelled(config.vocab_size, setting)
        model = build_random(config, setting.device, "bfloat16")
        kernel = choose_kernel(model)
        run_packed(model, sequences)  # warms up
        yield f"{name}, prediction, {kernel}", partial(run_way, partial(run_packed, model), sequences, setting)
        parts = PackedCollator(setting.pick(PART_TOKENS, 256))(battles)["parts"]
        yield f"{name}, training", partial(measure_steps, model, "none", parts, battles, setting)
        del model
        free_memory()


def draw_labelled(vocab_size: int, setting: Setting) -> list[dict]:
    """Returns the battles of a step as `encode_dataset` would."""
    drawn = draw_battles(BATTLES, vocab_size, setting.pick(MAX_TOKENS, SHORT_TOKENS), seed=1)
    return [{"input_ids": ids, "label": [1.0, 0.0]} for ids, _ in drawn]


def pad_parts(battles: Sequence[dict]) -> list[dict]:
    """Returns the notebook's padded batches, in the form of `PackedCollator`'s parts."""
    batches = [battles[first : first + TRAINING_BATCH] for first in range(0, len(battles), TRAINING_BATCH)]
    return [PaddedCollator(0)(batch) | {"share": len(batch) / len(battles)} for batch in batches]


def measure_steps(
    base: PreferenceMixin,
    quantization: str,
    parts: Sequence[dict],
    battles: Sequence[dict],
    setting: Setting,
    kernel: str | None = None,
    fuse: Callable[[PreferenceMixin], None] = lambda model: None,
) -> dict:
    """Returns the time of a training step, and the peak memory with weights, adapters, gradients and optimizer.

    Operations are counted three times those of a forward pass over the battles' tokens: forward, once more for the
    checkpoints, and the gradients of the inputs. Frozen weights have no gradients.

    Args:
        base: Unquantised model; it does not change.
        parts: Inputs of the model, each with its share of the batch.
        kernel: Attention; the best packed kernel for training if None.
        fuse: Replaces modules of the model before it is trained.
    """
    model = quantize(base, quantization)
    if kernel is None:
        kernel = choose_kernel(model, training=True)
    model.config._attn_implementation = kernel
    fuse(model)
    weights, lengths = measure_weights(model), [len(battle["input_ids"]) for battle in battles]
    (seconds, losses), added = measure_peak(partial(_train, model, parts, setting), setting.device)
    peak, step = weights + added, statistics.median(seconds[1:])
    return {
        "kernel": kernel,
        "battles": len(battles),
        "tokens": sum(lengths),
        "computed_tokens": sum(part["input_ids"].numel() for part in parts),
        "parts": len(parts),
        "first_seconds": seconds[0],
        "seconds": step,
        "tokens_per_second": sum(lengths) / step,
        "tflops": 3 * count_flops(base, lengths) / step / 1e12,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "weights_gb": weights / 1e9,
        "peak_gb": peak / 1e9,
        **{name: peak + RESERVE <= size for name, size in CARDS.items()},
    }


def fuse_liger(model: PreferenceMixin) -> None:
    """Replaces a Gemma-2's norms and the products in its MLPs by Liger's fused kernels."""
    from liger_kernel.transformers import apply_liger_kernel_to_gemma2

    known = dict(vars(modeling_gemma2))
    off = dict.fromkeys(("rope", "cross_entropy", "fused_linear_cross_entropy"), False)
    try:
        apply_liger_kernel_to_gemma2(model=model, rms_norm=True, geglu=True, **off)
    finally:
        # It replaces the classes for later models too, which the measurements after this one must not get.
        vars(modeling_gemma2).update(known)


def _train(model: PreferenceMixin, parts: Sequence[dict], setting: Setting) -> tuple[list[float], list[float]]:
    """Adds adapters to a model and trains some steps; returns the seconds and the loss of each."""
    # Reentrant, as in the recipe: otherwise every 8-bit layer keeps its input. It needs an input with a gradient.
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    torch.manual_seed(0)
    network = add_adapters(model, **LORA | setting.pick({}, {"r": 4})).train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = bnb.optim.AdamW8bit(trained, lr=2e-4, weight_decay=0.0)
    step = partial(_run_step, network, parts, trained, optimizer, setting)
    found = [time_call(step, setting.device) for _ in range(1 + STEPS)]
    return [seconds for _, seconds in found], [loss for loss, _ in found]


def _run_step(
    network: nn.Module, parts: Sequence[dict], trained: list, optimizer: torch.optim.Optimizer, setting: Setting
) -> float:
    """Runs forward and backward over all parts and updates the weights; returns the loss."""
    total = torch.zeros((), device=setting.device)
    for part in parts:
        inputs = move_batch(part, setting.device)
        loss = inputs.pop("share") * network(**inputs).loss
        loss.backward()
        total += loss.detach()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total.item()
