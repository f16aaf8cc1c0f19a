"""The baseline: the notebook's way, re-created. It trains on random batches of 8 padded to the longest battle, predicts
in batches of 2 sorted by length, reads every order in full, and does not merge adapters. Network, kernels and encoded
battles are ours, so that only the way is compared.
"""

import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import RandomSampler, Sampler
from transformers import Trainer, TrainingArguments

from benchmarks.speed.padding import TRAINING_BATCH, PaddedCollator
from benchmarks.speed.rounds import Round
from modeling.data.battles import orient_label
from modeling.encoding.collator import encode_dataset
from modeling.judging.judge import Judge
from modeling.judging.loading import load_encoder
from modeling.network.attention import list_kernels
from modeling.network.base import find_base, load_base
from modeling.network.lora import add_adapters

SEED = 0  # of the adapters and of the order of battles, in timed rounds


def build_predictor(
    judge: Sequence[str], slices: Sequence[list[dict]], readings: str | None, batch: int, dtype: str = "auto"
) -> Round:
    """Returns a round that makes all passes over one slice of the battles with unmerged members.

    Args:
        judge: Names of its members, or of one judge.
        slices: The battles of each round.
        batch: Battles per batch.
    """
    loaded = Judge.from_pretrained(judge, merge="never", skip_probes=True, dtype=dtype)
    plan = loaded.plan_passes(readings)
    for member in loaded.members:
        use_padded_attention(member.model)
    encoded = [
        [member.encoder.encode(member.encoder.clean_battles(rows), order) for member, order in plan] for rows in slices
    ]

    def run(number: int) -> dict:
        """Seconds and tokens of all passes, battles, and each p_a."""
        start = time.perf_counter()
        p = []
        for (member, order), sequences in zip(plan, encoded[number], strict=True):
            model, collate = member.activate(), PaddedCollator(member.encoder.encoding.pad_token_id)
            p_pass = np.full((len(sequences), 2), np.nan)
            rows = sorted(range(len(sequences)), key=lambda row: -sequences[row]["length"])
            for first in range(0, len(rows), batch):
                some = rows[first : first + batch]
                with torch.inference_mode():
                    logits = model(**collate([{"input_ids": sequences[row]["input_ids"]} for row in some])).logits
                for row, by_slot in zip(some, torch.softmax(logits.double(), -1).tolist(), strict=True):
                    p_pass[row] = orient_label(by_slot, order)
            p.append(p_pass)
        seconds = time.perf_counter() - start
        tokens = sum(battle["length"] for sequences in encoded[number] for battle in sequences)
        return {"seconds": seconds, "tokens": tokens, "battles": len(slices[number]), "p_a": np.mean(p, axis=0)[:, 0]}

    return run


def use_padded_attention(model: nn.Module) -> None:
    """Sets transformers' own attention, which computes padding too: the default of the model's family."""
    # Soft-capped scores only eager computes.
    capped = "packed_sdpa" not in list_kernels(model.config, model.device.type)
    model.config._attn_implementation = "eager" if capped else "sdpa"


class NotebookTrainer(Trainer):
    """A Trainer with random batches, in an order that only the seed decides."""

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return RandomSampler(self.train_dataset, generator=torch.Generator().manual_seed(self.args.seed))


def build_model(base: str, lora: dict, seed: int, dtype: str) -> nn.Module:
    """Returns a base with fresh adapters, which are the same for every way with the same seed."""
    torch.manual_seed(seed)
    return add_adapters(load_base(find_base(base), dtype=dtype), **lora)


def build_arguments(folder: str, **options) -> TrainingArguments:
    """Returns the settings of a short run that writes nothing."""
    return TrainingArguments(
        folder,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **options,
    )


def build_trainer(model: nn.Module, train_set: Dataset, folder: str, seed: int, options: dict) -> Trainer:
    """Returns the notebook's Trainer of a model.

    Args:
        model: A base with adapters.
        train_set: The result of `encode_dataset`.
        folder: Where the Trainer may write.
        options: Fields of TrainingArguments.
    """
    use_padded_attention(model)
    return NotebookTrainer(
        model=model,
        args=build_arguments(folder, per_device_train_batch_size=TRAINING_BATCH, seed=seed, **options),
        train_dataset=train_set,
        data_collator=PaddedCollator(0),
    )


def build_training(
    build: Callable[..., Trainer],
    base: str,
    slices: Sequence[Dataset],
    lora: dict,
    max_length: int,
    options: dict,
    dtype: str,
) -> Round:
    """Returns a round that trains one epoch on one slice; the adapters continue from the round before.

    Args:
        build: `build_trainer`, or that of another way.
        base: Folder of a base.
        slices: The labelled battles of each round.
        lora: Keyword arguments of `add_adapters`.
        options: Fields of TrainingArguments.
    """
    encoder = load_encoder(find_base(base), max_length, "balanced")
    encoded = [encode_dataset(battles, encoder, "ab") for battles in slices]
    model = build_model(base, lora, SEED, dtype)

    def run(number: int) -> dict:
        """Seconds of training alone, tokens without padding, battles, and the mean loss."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = build(model, encoded[number], folder, SEED, options)
            start = time.perf_counter()
            loss = trainer.train().training_loss
            seconds = time.perf_counter() - start
        tokens = sum(encoded[number]["length"])
        return {"seconds": seconds, "tokens": tokens, "battles": len(encoded[number]), "loss": loss}

    return run
