"""Parts `prediction` and `t4`: reading battles in both orders, the notebook's way and ours."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from benchmarks.speed.gpu.kernels import move_batch
from benchmarks.speed.gpu.measuring import Part, Setting, free_memory, measure_peak, time_call
from benchmarks.speed.gpu.models import (
    GEMMA2_9B,
    LAST_KERNEL,
    MAX_TOKENS,
    TINY,
    build_config,
    build_random,
    choose_kernel,
    count_flops,
    draw_battles,
    quantize,
)
from benchmarks.speed.padding import PREDICTION_BATCH, PaddedCollator
from modeling.encoding.packing import pack_sequences
from modeling.judging.predictor import TOKENS_PER_BATCH, build_batches, choose_budget, predict_battles
from modeling.network.base import measure_weights
from modeling.network.classifier import PreferenceMixin
from modeling.network.lora import add_adapters
from modeling.network.precision import set_dtype

BATTLES, ROUNDS = 64, 2
SHORT_TOKENS = 150  # of a battle in a dry run, at most
T4_SEQUENCES = 32
RANK = 64  # of the adapters, on all layers
LIMIT = 5.0  # seconds of a way in a round: a slow way reads only some of its batches
LARGE_BATCH = 16  # sequences
# Bytes of a 16 GB T4 that are left beside CUDA itself: its driver reports 15.6 to 15.8 GB in all.
T4_BYTES = 15_000_000_000


def measure_prediction(setting: Setting) -> Part:
    """Yields rounds of the notebook's way and ours over the same battles, all in bf16.

    The notebook's way reads each order in full, sorted by length, in padded batches, with eager attention and 8-bit
    weights. Random weights have fewer outlier columns than trained ones, so 8-bit weights are not slower here than in
    use.
    """
    config = build_config(GEMMA2_9B, **setting.pick({}, TINY))
    sequences = draw_sequences(config.vocab_size, setting)
    base = build_random(config, setting.device, "bfloat16")
    models = {name: quantize(base, name) for name in ("8bit", "4bit")}
    notebooks_model = quantize(base, "8bit")
    notebooks_model.config._attn_implementation = "eager"
    ways = {
        f"notebook, 8bit, batches of {batch}": partial(run_padded, notebooks_model, batch=batch)
        for batch in (PREDICTION_BATCH, LARGE_BATCH)
    }
    for name, model in {"bf16": base, **models}.items():
        ways[f"ours, {name}, {choose_kernel(model)}"] = partial(run_packed, model)
    for name in ("none", "8bit", "4bit"):
        # What reading takes where adapters are not merged: beside an expanded base ("none"), or one as stored.
        model = quantize(base, name)
        kernel = choose_kernel(model)
        adapted = add_adapters(model, r=RANK, alpha=RANK, dropout=0.0).eval()
        ways[f"ours, {'bf16' if name == 'none' else name}, {kernel}, adapter beside"] = partial(run_packed, adapted)
    plain = quantize(base, "none")
    plain.config._attn_implementation = LAST_KERNEL
    ways.setdefault(f"ours, bf16, {LAST_KERNEL}", partial(run_packed, plain))  # if there is a better kernel
    few = sequences[:8]
    for name, run in ways.items():
        yield f"warm-up: {name}", partial(_warm_up, run, few, setting)
    for number in range(1, ROUNDS + 1):
        for name, run in ways.items():
            yield f"round {number}: {name}", partial(run_way, run, sequences, setting)


def draw_sequences(vocab_size: int, setting: Setting) -> list[list[int]]:
    """Returns the token ids of random battles, both orders of each one after the other."""
    battles = draw_battles(setting.pick(BATTLES, 4), vocab_size, setting.pick(MAX_TOKENS, SHORT_TOKENS))
    return [ids for battle in battles for ids in battle]


def run_packed(
    model: PreferenceMixin, sequences: Sequence[list[int]], deadline: float | None = None, budget: int | None = None
) -> tuple[np.ndarray, int]:
    """Predicts our way.

    Args:
        deadline: A time of `time.monotonic()` after which no pack starts; its rows are NaN.
        budget: Most tokens of a pack; the predictor's default if None.

    Returns:
        Difference of each sequence's two logits, shape (sequences,), and the number of tokens computed.
    """
    encoded = [{"input_ids": ids} for ids in sequences]
    budget = budget or choose_budget(sequences, model.device.type)
    p = predict_battles(model, encoded, "ab", tokens_per_batch=budget, deadline=deadline, name=None)
    packs = build_batches(sequences, budget)
    computed = [pack for pack in packs if not np.isnan(p[pack]).any()]
    num_tokens = sum(len(pack_sequences([sequences[row] for row in pack]).input_ids) for pack in computed)
    return np.log(p[:, 0] / p[:, 1]), num_tokens


@torch.inference_mode()
def run_padded(
    model: PreferenceMixin, sequences: Sequence[list[int]], deadline: float | None = None, *, batch: int
) -> tuple[np.ndarray, int]:
    """Predicts the notebook's way, in batches of sequences of similar length. Args and result as of `run_packed`."""
    collate, margins, num_tokens = PaddedCollator(0), np.full(len(sequences), np.nan), 0
    rows = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    batches = [rows[first : first + batch] for first in range(0, len(rows), batch)]
    # In a random order, so that the batches before a deadline are a fair sample of all.
    random.Random(0).shuffle(batches)
    for some in batches:
        if deadline is not None and time.monotonic() >= deadline:
            break
        inputs = collate([{"input_ids": sequences[row]} for row in some])
        logits = model(**move_batch(inputs, model.device)).logits.double().cpu()
        margins[some] = (logits[:, 0] - logits[:, 1]).numpy()
        num_tokens += inputs["input_ids"].numel()
    return margins, num_tokens


def _warm_up(run: Callable, sequences: Sequence[list[int]], setting: Setting) -> dict:
    """Returns the seconds of a first run, which compiles kernels."""
    return {"seconds": time_call(partial(run, sequences=sequences), setting.device)[1]}


def run_way(run: Callable, sequences: Sequence[list[int]], setting: Setting, limit: float = LIMIT) -> dict:
    """Returns a way's rates, and its peak memory with its weights.

    Operations are counted for the full length of each sequence that was read, a shared prefix in both orders; padding
    is not counted. Packs compute a shared prefix once, so their rate can exceed what the card computes.
    """

    def read_sequences() -> tuple[np.ndarray, int]:
        """Runs the way until the limit."""
        return run(sequences=sequences, deadline=time.monotonic() + limit)

    timed = partial(time_call, read_sequences, setting.device)
    ((margins, computed), seconds), added = measure_peak(timed, setting.device)
    read = [len(ids) for ids, margin in zip(sequences, margins, strict=True) if not np.isnan(margin)]
    model = run.args[0]
    weights = measure_weights(model)
    return {
        "battles": len(read) / 2,
        "tokens": sum(read),
        "computed_tokens": computed,
        "seconds": seconds,
        "battles_per_second": len(read) / 2 / seconds,
        "tokens_per_second": sum(read) / seconds,
        "tflops": count_flops(model, read) / seconds / 1e12,
        "weights_gb": weights / 1e9,
        "peak_gb": (weights + added) / 1e9,
    }


# --- two 16 GB cards --------------------------------------------------------------------------------------------------


def measure_t4(setting: Setting) -> Part:
    """Yields predictions in float16 within a T4's memory: each of the two cards holds a model and reads half of the
    battles, so one is measured.

    Differences are of a sequence's logit margin, from bf16 weights, whose standard deviation is `margin_std`; those of
    the same quantised weights in bf16 show what float16 alone does.
    """
    config = build_config(GEMMA2_9B, **setting.pick({}, TINY))
    sequences = draw_sequences(config.vocab_size, setting)[:T4_SEQUENCES]
    expected: dict[str, np.ndarray] = {}
    for quantization in ("8bit", "4bit"):
        base = build_random(config, setting.device, "bfloat16")
        base.config._attn_implementation = LAST_KERNEL  # a T4 may have no better one
        if not expected:
            yield "expanded, bfloat16", partial(_predict, base, sequences, None, expected, setting)
        model = quantize(base, quantization)
        del base
        free_memory()
        yield f"{quantization}, bfloat16", partial(_predict, model, sequences, None, expected, setting)
        set_dtype(model, "float16")
        free_memory()
        for budget in (TOKENS_PER_BATCH["small"][1], 4096):
            with limit_memory(setting.device, T4_BYTES):
                name = f"{quantization}, float16, {budget} tokens"
                yield name, partial(_predict, model, sequences, budget, expected, setting)
        del model
        free_memory()


@contextmanager
def limit_memory(device: torch.device, num_bytes: int) -> Iterator[None]:
    """Inside, torch may hold only this much of a GPU's memory."""
    if device.type != "cuda":
        yield
        return
    free_memory()
    total = torch.cuda.get_device_properties(device).total_memory
    # Of the current device: this function alone refuses one without a number, as accelerate's is.
    torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _predict(
    model: PreferenceMixin,
    sequences: Sequence[list[int]],
    budget: int | None,
    expected: dict[str, np.ndarray],
    setting: Setting,
) -> dict:
    """Returns the record of one prediction; the first one's margins become the expected ones."""
    kept: list[np.ndarray] = []

    def run(model: PreferenceMixin, sequences: Sequence[list[int]], deadline: float) -> tuple[np.ndarray, int]:
        """Keeps the margins beside the measured time."""
        margins, num_tokens = run_packed(model, sequences, deadline, budget)
        kept.append(margins)
        return margins, num_tokens

    record = run_way(partial(run, model), sequences, setting, limit=60)
    margins = expected.setdefault("margins", kept[0])
    record |= {"largest_difference": float(np.abs(kept[0] - margins).max()), "margin_std": float(margins.std())}
    return record | {"budget": budget or choose_budget(sequences, setting.device.type), "kernel": LAST_KERNEL}
