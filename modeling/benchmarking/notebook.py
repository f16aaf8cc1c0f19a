"""The notebook's way, re-created: training with random batches of 8 padded to the longest, prediction sorted by length
in fixed batches of 2, both orders in full, adapters unmerged. It has our network, kernels and encoded battles, so that
what is timed is the way alone.
"""

import tempfile
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.data import RandomSampler, Sampler
from transformers import Trainer, TrainingArguments

from modeling.adapters import add_adapters
from modeling.attention import list_kernels
from modeling.bases import find_base, load_base, load_tokenizer
from modeling.battles import orient_label
from modeling.benchmarking.turns import Turn
from modeling.collation import BattleCollator, encode_dataset
from modeling.encoding import BattleEncoder, build_encoding
from modeling.judge import Judge

PREDICTED_AT_ONCE, TRAINED_AT_ONCE = 2, 8  # battles of a batch


def build_predictor(judge: Sequence[str], slices: Sequence[list[dict]], readings: str | None, batch: int) -> Turn:
    """A turn reads a slice of the battles with each member in its order, unmerged.

    Args:
        judge: Names of its members, or of a judge.
        slices: The battles of each turn.
        batch: Battles of a batch.
    """
    loaded = Judge.from_pretrained(judge, merge="never", skip_probes=True)
    plan = loaded.plan_readings(readings)
    for member in loaded.members:
        use_padded_attention(member.model)
    encoded = [
        [member.encoder.encode(member.encoder.clean_battles(rows), order) for member, order in plan] for rows in slices
    ]

    def run(turn: int) -> dict:
        start = time.perf_counter()
        p = []
        for (member, order), reading in zip(plan, encoded[turn], strict=True):
            model, collate = member.activate(), BattleCollator(member.encoder.encoding.pad_token_id, "left")
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


class NotebookTrainer(Trainer):
    """Random batches, in the data set's order where that is random already."""

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return RandomSampler(self.train_dataset, generator=torch.Generator().manual_seed(self.args.seed))


def build_model(base: str, lora: dict, seed: int) -> nn.Module:
    """A base with fresh adapters, the same for each way of one seed."""
    torch.manual_seed(seed)
    return add_adapters(load_base(find_base(base), dtype="bfloat16"), **lora)


def build_encoder(base: str, max_length: int) -> BattleEncoder:
    """What encodes battles for that base."""
    tokenizer = load_tokenizer(find_base(base).folder)
    return BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, "balanced"))


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


def build_trainer(base: str, slices: Sequence, lora: dict, max_length: int, seed: int, options: dict) -> Turn:
    """A turn trains one epoch on a slice of the battles, from the same fresh adapters each time.

    Args:
        base: Folder of a base.
        slices: The battles of each turn, data sets with labels.
        lora: Of `add_adapters`.
        options: Of TrainingArguments.
    """
    encoder = build_encoder(base, max_length)
    encoded = [encode_dataset(battles, encoder, "ab") for battles in slices]
    model = build_model(base, lora, seed)
    use_padded_attention(model)

    def run(turn: int) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            trainer = NotebookTrainer(
                model=model,
                args=build_arguments(folder, per_device_train_batch_size=TRAINED_AT_ONCE, seed=seed, **options),
                train_dataset=encoded[turn],
                data_collator=BattleCollator(encoder.encoding.pad_token_id, "left"),
            )
            start = time.perf_counter()
            loss = trainer.train().training_loss
            seconds = time.perf_counter() - start
        tokens = sum(encoded[turn]["length"])
        return {"seconds": seconds, "tokens": tokens, "battles": len(encoded[turn]), "loss": loss}

    return run
