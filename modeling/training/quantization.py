"""The steps of scripts/quantize.py: the plain model, the quantised one with the same head, the check of what was saved.

It must not know members or training.
"""

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from torch import Tensor, device
from transformers import AutoConfig, PreTrainedTokenizerBase

from modeling.encoding.encoder import BattleEncoder
from modeling.judging.canaries import build_canary_encoder, compute_canary_logits, load_canaries, measure_change
from modeling.network.base import (
    BaseFiles,
    check_unquantized,
    find_base,
    load_base,
    load_tokenizer,
    measure_weights,
    save_base,
)
from modeling.network.classifier import PreferenceMixin
from modeling.network.lora import check_adapter, merge_adapter
from modeling.network.precision import choose_dtype, set_dtype
from modeling.runtime.files import check_replaceable
from modeling.runtime.logs import build_logger
from modeling.settings.arguments import QuantizeArguments

logger = build_logger("bothways.quantize")
BASE_FILE = "config.json"  # a folder with this file is a base, which may be replaced
# Largest difference between the logits of a base before and after it was saved. Not 0: the last digit of float32 sums
# over the head's weights depends on the weights' alignment in memory (1e-8 was measured on a CPU).
RELOAD_TOLERANCE = 1e-5


def find_backbone(arguments: QuantizeArguments) -> BaseFiles:
    """Finds the backbone's files, after every check that needs no weights."""
    check_replaceable(Path(arguments.output_dir), BASE_FILE)
    base = find_base(arguments.base)
    check_unquantized(base, num_labels=arguments.num_labels)
    if arguments.merge_adapter:
        check_adapter(arguments.merge_adapter, base)
    return base


@dataclass(frozen=True)
class Snapshot:
    """What is compared between two states of a model: its size, and canary logits of shape (battles, slots)."""

    num_parameters: int
    num_bytes: int
    logits: Tensor


def write_base(
    arguments: QuantizeArguments,
    files: BaseFiles,
    folder: Path,
    held: str,
    tokenizer: PreTrainedTokenizerBase,
    origin: str,
) -> tuple["Snapshot", "Snapshot"]:
    """Writes a base into a folder, and checks what was written.

    Args:
        files: The backbone's, as transformers can load them.
        held: Precision of all weights that are not quantised.
        origin: What `describe_origin` returned.

    Returns:
        Snapshots of the unquantised model and of the saved one.
    """
    encoder = build_canary_encoder(tokenizer)
    dtype = choose_dtype(
        arguments.dtype, PartialState().device, AutoConfig.from_pretrained(files.folder), training=False
    )
    # One model in memory at a time: each is deleted, and its memory freed, before the next is loaded.
    model = load_plain(arguments, files, held)
    if arguments.quantization == "none":
        save_base(folder, model, tokenizer, origin)
        plain = saved = take_snapshot(model, dtype, encoder)
    else:
        if arguments.merge_adapter:
            # bitsandbytes quantises while it loads, so the merged model goes through the disk.
            model.save_pretrained(folder / "merged")
            files = BaseFiles(folder / "merged")
        plain, head = take_snapshot(model, dtype, encoder), model.score.state_dict()
        del model
        gc.collect()
        model = load_quantized(arguments, files, held, head)
        shutil.rmtree(folder / "merged", ignore_errors=True)
        save_base(folder, model, tokenizer, origin)
        saved = take_snapshot(model, dtype, encoder)
    del model
    gc.collect()
    _check_saved(folder, dtype, saved)
    return plain, saved


def take_snapshot(model: PreferenceMixin, dtype: str, encoder: BattleEncoder) -> Snapshot:
    """Measures the model's weights as they will be saved, and its canary logits in the precision `dtype`.

    The model stays in that precision.
    """
    num_bytes = measure_weights(model)
    set_dtype(model, dtype)
    return Snapshot(model.num_parameters(), num_bytes, compute_canary_logits(model, encoder, load_canaries()))


def load_plain(arguments: QuantizeArguments, files: BaseFiles, dtype: str) -> PreferenceMixin:
    """Loads the unquantised model in a precision, with a fresh head, and merges the adapter if there is one."""
    head = {name: vars(arguments)[name] for name in ("head_hidden_size", "head_bias", "num_labels")}
    if not arguments.merge_adapter:
        return load_base(files, dtype=dtype, **head)
    # Merged in float32, because bf16 would round the sums; in main memory, because that takes four times what the GPU
    # will hold in 8 bit.
    whole = load_base(files, dtype="float32", device=device("cpu"), **head)
    model = merge_adapter(whole, arguments.merge_adapter)
    set_dtype(model, dtype)
    return model.to(PartialState().device)


def load_quantized(
    arguments: QuantizeArguments, files: BaseFiles, dtype: str, head: dict[str, Tensor]
) -> PreferenceMixin:
    """Loads the model quantised, with the head that the unquantised model had."""
    model = load_base(
        files,
        dtype=dtype,
        quantization=arguments.quantization,
        bnb_4bit_quant_type=arguments.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=arguments.bnb_4bit_use_double_quant,
        head_hidden_size=arguments.head_hidden_size,
        head_bias=arguments.head_bias,
        num_labels=arguments.num_labels,
    )
    model.score.load_state_dict(head)
    return model


def _check_saved(folder: Path, dtype: str, saved: Snapshot) -> None:
    """Raises a ValueError if a saved base, loaded again with its own tokenizer, gives other canary logits."""
    model = load_base(BaseFiles(folder), dtype=dtype)
    logits = compute_canary_logits(model, build_canary_encoder(load_tokenizer(folder)), load_canaries())
    change, _ = measure_change(saved.logits, logits)
    if change > RELOAD_TOLERANCE:
        raise ValueError(
            f"Base as saved: expected the logits that it had before it was saved, within {RELOAD_TOLERANCE:g}; found a "
            f"change of {change:.3g} on the canary battles. Nothing was replaced. Check the disk, and try again."
        )


def report_change(quantization: str, dtype: str, plain: Snapshot, saved: Snapshot, size: int) -> None:
    """Logs how many bytes quantisation saves and how far it moves the canary logits."""
    logger.info(
        f"Weights: {plain.num_bytes:,} bytes in {dtype}, {saved.num_bytes:,} as {quantization} "
        f"({saved.num_bytes / plain.num_bytes:.1%}); files: {size:,} bytes"
    )
    logit, probability = measure_change(plain.logits, saved.logits)
    logger.info(
        f"{len(plain.logits)} canary battles, unquantised and as saved, with the same head: largest change of a logit "
        f"{logit:.3g} (largest logit {plain.logits.abs().max().item():.3g}), of a probability {probability:.3g}"
    )
