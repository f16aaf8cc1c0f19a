"""Computes the memory that the bases of the recipes need on GPUs, for the tables in docs/training.md and prediction.md.

    python -m benchmarks.speed.memory --output benchmarks/results/memory.json

Nothing is loaded and no GPU is needed: it builds each base's network of fake tensors at full size. Training: 8 battles
of 2,200 tokens per device, all layers with rank 64, LoRA dropout 0.05, `adamw_8bit`, reentrant gradient checkpointing,
and 8 processes for ddp, zero2 and zero3. Prediction: two members of rank 64.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from benchmarks.speed.gpu.models import GEMMA2_2B, GEMMA2_9B, build_config
from modeling.judging.dry_run import measure_needs
from modeling.network.base import BaseFiles, build_quantization_config
from modeling.network.footprint import fill_pack
from modeling.runtime.files import write_json
from modeling.training.memory import plan_memory

RANK, TOKENS, BATTLES, PROCESSES = 64, 2200, 8, 8
QUANTIZATIONS = ("none", "8bit", "4bit")
LAUNCHERS = {"single_gpu": (1, 0), "ddp": (PROCESSES, 0), "zero2": (PROCESSES, 2), "zero3": (PROCESSES, 3)}
# A kernel of GPUs; and the one that a GPU without such kernels takes, which for Gemma-2 stores attention's scores.
KERNELS = {"Gemma-2": ("packed_flex", "packed_eager"), "Qwen2.5": ("packed_varlen", "packed_sdpa")}
QWEN25_7B = {
    "model_type": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
BASES = {"Gemma-2-9B": GEMMA2_9B, "Gemma-2-2B": GEMMA2_2B, "Qwen2.5-7B": QWEN25_7B}


def build_quantized_config(base: str, quantization: str) -> PreTrainedConfig:
    """Returns a base's config at full size."""
    config = build_config(BASES[base])
    if quantization != "none":
        config.quantization_config = build_quantization_config(quantization).to_dict()
    return config


def plan_training(
    base: str, quantization: str, launcher: str, kernel: str, tokens: int = BATTLES * TOKENS, **changes
) -> int:
    """Returns the bytes per device of a training.

    Args:
        base, quantization, launcher: Keys of `BASES`, `QUANTIZATIONS` and `LAUNCHERS`.
        kernel: Attention.
        tokens: Tokens of one forward pass.
        changes: Other arguments of `plan_memory`.
    """
    num_processes, zero_stage = LAUNCHERS[launcher]
    settings = {
        "dtype": "bfloat16",
        "lora_dropout": 0.05,
        "gradient_checkpointing": True,
        "use_reentrant": True,
        **changes,
    }
    plan = plan_memory(
        build_quantized_config(base, quantization),
        r=RANK,
        freeze_layers=0,
        lengths=fill_pack(tokens, TOKENS),
        optim="adamw_8bit",
        num_processes=num_processes,
        zero_stage=zero_stage,
        device_type="cuda",
        kernel=kernel,
        **settings,
    )
    return plan.total


def plan_prediction(base: str, quantization: str, dtype: str, tokens: int, kernel: str) -> dict[str, int]:
    """Returns the bytes of a prediction by two members, by how their weights are held."""
    facts = SimpleNamespace(head={})
    source = SimpleNamespace(
        config=build_quantized_config(base, quantization),
        lora=LoraConfig(r=RANK),
        files=BaseFiles(Path(base)),
        facts=facts,
        max_length=TOKENS,
    )
    device = torch.device("cuda")
    needs = measure_needs([source, source], dtype, tokens, device, kernel=kernel)
    return {way: plan.total for way, plan in needs.list_ways().items()}


def list_records() -> list[tuple[dict, Callable[[], int | dict[str, int]]]]:
    """Returns the settings of each record, and what computes its bytes."""
    records = []
    for base in BASES:
        kernel, plain = KERNELS[base.rpartition("-")[0]]
        for quantization in QUANTIZATIONS:
            for launcher in LAUNCHERS:
                if launcher == "zero3" and quantization != "none":
                    continue  # refused
                # ZeRO-3 takes no kernel that has to be checked first.
                used = plain if launcher == "zero3" else kernel
                records.append(("table", [base, quantization, launcher, used], {}))
    nine, two, seven = (["Gemma-2-9B", "8bit"], ["Gemma-2-2B", "8bit"], ["Qwen2.5-7B", "8bit"])
    one, fused = ["single_gpu", "packed_flex"], {"lora_dropout": 0.0, "gradient_checkpointing": False}
    records += [
        ("step on an H200", [*nine, *one], {"tokens": 8192}),
        ("plain matrix products", [*nine, "single_gpu", "packed_eager"], {}),
        ("no checkpointing, no dropout", [*nine, *one], fused),
        ("not reentrant", [*nine, *one], {"use_reentrant": False}),
        ("half the batch", [*nine, *one], {"tokens": 4 * TOKENS}),
        ("recipe", [*two, *one], {"tokens": 4 * TOKENS}),
        ("half the batch", [*two, *one], {"tokens": 2 * TOKENS}),
        ("recipe on a T4", [*two, "single_gpu", "packed_eager"], {"tokens": 4 * TOKENS, "dtype": "float32"}),
        ("recipe", [*seven, "single_gpu", "packed_varlen"], {"tokens": 4 * TOKENS}),
        ("half the batch", [*seven, "single_gpu", "packed_varlen"], {"tokens": 2 * TOKENS}),
    ]
    names = ("base", "quantization", "launcher", "kernel")
    found = [
        ({"what": what, **dict(zip(names, places, strict=True)), **changes}, partial(plan_training, *places, **changes))
        for what, places, changes in records
    ]
    for quantization in ("8bit", "4bit"):
        for dtype, tokens, kernel in (("bfloat16", 16384, "packed_flex"), ("float16", 8192, "packed_eager")):
            places = {"base": nine[0], "quantization": quantization, "dtype": dtype, "tokens": tokens, "kernel": kernel}
            found.append(({"what": "prediction", **places}, partial(plan_prediction, **places)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write.")
    output = parser.parse_args().output
    records = [{**settings, "bytes": compute()} for settings, compute in tqdm(list_records(), desc="Plans")]
    write_json(output, {"records": records})
    for record in records:
        print(record)


if __name__ == "__main__":
    from modeling.runtime.startup import run_script

    run_script(main)
