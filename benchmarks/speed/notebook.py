"""The notebook's way, re-created: training with random batches of 8 padded to the longest, prediction sorted by length
in fixed batches of 2, both orders in full, adapters unmerged. It has our network, kernels and encoded battles, so that
what is timed is the way alone.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import RandomSampler, Sampler
from transformers import Trainer, TrainingArguments

from benchmarks.speed.turns import Turn
from modeling.data.battles import orient_label
from modeling.encoding.collator import encode_dataset, list_passes, stack_targets
from modeling.judging.judge import Judge
from modeling.judging.loading import load_encoder
from modeling.network.attention import list_kernels
from modeling.network.base import find_base, load_base
from modeling.network.lora import add_adapters

PREDICTED_AT_ONCE, TRAINED_AT_ONCE = 2, 8  # battles of a batch
SEED = 0  # of the adapters and of the order of battles, where ways are timed


def build_predictor(
    judge: Sequence[str], slices: Sequence[list[dict]], readings: str | None, batch: int, dtype: str = "auto"
) -> Turn:
    """A turn reads a slice of the battles with each member in its order, unmerged.

    Args:
        judge: Names of its members, or of a judge.
        slices: The battles of each turn.
        batch: Battles of a batch.
    """
    loaded = Judge.from_pretrained(judge, merge="never", skip_probes=True, dtype=dtype)
    plan = loaded.plan_passes(readings)
    for member in loaded.members:
        use_padded_attention(member.model)
    encoded = [
        [member.encoder.encode(member.encoder.clean_battles(rows), order) for member, order in plan] for rows in slices
    ]

    def run(turn: int) -> dict:
        """Seconds of all passes, tokens, battles, and p that a wins."""
        start = time.perf_counter()
        p = []
        for (member, order), reading in zip(plan, encoded[turn], strict=True):
            model, collate = member.activate(), PaddedCollator(member.encoder.encoding.pad_token_id)
            p_reading = np.full((len(reading), 2), np.nan)
            rows = sorted(range(len(reading)), key=lambda row: -reading[row]["length"])
            for first in range(0, len(rows), batch):
                some = rows[first : first + batch]
                with torch.inference_mode():
                    logits = model(**collate([{"input_ids": reading[row]["input_ids"]} for row in some])).logits
                for row, by_slot in zip(some, torch.softmax(logits.double(), -1).tolist(), strict=True):
                    p_reading[row] = orient_label(by_slot, order)
            p.append(p_reading)
        seconds = time.perf_counter() - start
        tokens = sum(battle["length"] for reading in encoded[turn] for battle in reading)
        return {"seconds": seconds, "tokens": tokens, "battles": len(slices[turn]), "p_a": np.mean(p, axis=0)[:, 0]}

    return run


def use_padded_attention(model: nn.Module) -> None:
    """transformers' own attention, in which padding takes part: the family's default."""
    model.config._attn_implementation = "eager" if len(list_kernels(model.config)) == 1 else "sdpa"


class PaddedCollator:
    """Pads encoded battles to the longest of the batch.

    Example: battles of 3 and 2 ids give `input_ids` [[5, 6, 7], [0, 5, 6]], `attention_mask` [[1, 1, 1], [0, 1, 1]]
    and, if they have labels (by slot), `labels` of shape (battles, labels).
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, battles: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        passes = [each for battle in battles for each in list_passes(battle)]
        rows = [torch.tensor(each["input_ids"]) for each in passes]
        pad = partial(pad_sequence, batch_first=True, padding_side="left")
        return {
            "input_ids": pad(rows, padding_value=self.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in rows]),
            **stack_targets(passes),
        }


class NotebookTrainer(Trainer):
    """Random batches, in an order that the seed alone decides."""

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return RandomSampler(self.train_dataset, generator=torch.Generator().manual_seed(self.args.seed))


def build_model(base: str, lora: dict, seed: int, dtype: str) -> nn.Module:
    """A base with fresh adapters, the same for each way of one seed."""
    torch.manual_seed(seed)
    return add_adapters(load_base(find_base(base), dtype=dtype), **lora)


def build_arguments(folder: str, **options) -> TrainingArguments:
    """Settings of a few steps that write nothing."""
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
    """The Trainer of a model as the notebook has it.

    Args:
        model: A base with adapters.
        train_set: What `encode_dataset` returned.
        folder: Where it may write.
        options: Of TrainingArguments.
    """
    use_padded_attention(model)
    return NotebookTrainer(
        model=model,
        args=build_arguments(folder, per_device_train_batch_size=TRAINED_AT_ONCE, seed=seed, **options),
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
) -> Turn:
    """A turn trains one epoch on a slice of the battles; the adapters go on from the turn before.

    Args:
        build: `build_trainer`, or another way's.
        base: Folder of a base.
        slices: The battles of each turn, data sets with labels.
        lora: Of `add_adapters`.
        options: Of TrainingArguments.
    """
    encoder = load_encoder(find_base(base), max_length, "balanced")
    encoded = [encode_dataset(battles, encoder, "ab") for battles in slices]
    model = build_model(base, lora, SEED, dtype)

    def run(turn: int) -> dict:
        """Seconds of the training alone, real tokens, battles, and the mean loss."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = build(model, encoded[turn], folder, SEED, options)
            start = time.perf_counter()
            loss = trainer.train().training_loss
            seconds = time.perf_counter() - start
        tokens = sum(encoded[turn]["length"])
        return {"seconds": seconds, "tokens": tokens, "battles": len(encoded[turn]), "loss": loss}

    return run
