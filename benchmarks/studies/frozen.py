"""A frozen base's features, computed once for each battle and order, and a head on them as a member of its own.

For benchmarks/pseudolabels.py and benchmarks/study.py; it must not know what is studied.
"""

import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from tqdm import tqdm

from modeling.data.battles import LABELS, ORIENTATIONS, TEXTS, list_orders, swap_responses
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.encoding.packing import pack_sequences
from modeling.judging.canaries import record_canaries
from modeling.judging.member import MemberFacts, save_member
from modeling.judging.predictor import build_batches
from modeling.network.base import find_base, fingerprint_base, load_base, load_tokenizer
from modeling.network.classifier import PreferenceHead, PreferenceMixin
from modeling.network.lora import add_adapters, collect_trained_weights

REPOSITORY = Path(__file__).resolve().parent.parent
PART, TOKENS_PER_BATCH = 128, 1024  # battles of a file of features; small batches are what one thread reads fastest
CHECKED = 60  # battles
# Of a probability in bf16. More than the 0.02 of modeling/judging/predictor.py, as these heads divide by the features' spread;
# 0.027 was measured, and 0.42 against the next row's.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Reading:
    """How a frozen base reads battles, and the folder that keeps what it gave."""

    base: str
    max_length: int
    truncation: str = "balanced"
    orders: tuple[str, ...] = ORIENTATIONS

    def find_folder(self, work_dir: Path) -> Path:
        """Where its features are kept."""
        parts = [fingerprint_base(find_base(self.base)), str(self.max_length)]
        parts += [self.truncation] * (self.truncation != "balanced")
        parts += ["+".join(self.orders)] * (self.orders != ORIENTATIONS)
        return work_dir / "-".join(parts)


def load_features(
    battles: Dataset, name: str, reading: Reading, work_dir: Path, processes: int = 2, known: Reading | None = None
) -> tuple[Tensor, dict]:
    """Features of shape (battles, orders, hidden), computed where work_dir lacks them, and what they had cost.

    Args:
        name: Of the battles' set; names its files.
        known: Another reading of the same base, whose features are taken where both see the same tokens.
    """
    folder = reading.find_folder(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(battles.select_columns(["id", *TEXTS]))
    parts = {f"{name}-{n // PART:03d}.npz": texts[n : n + PART] for n in range(0, len(texts), PART)}
    others = known.find_folder(work_dir) if known else None
    tasks = [
        (folder / part, rows, reading, others / part if others else None, known)
        for part, rows in parts.items()
        if len(load_ids(folder / part)) < len(rows)
    ]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(tqdm(pool.map(extract_part, tasks), total=len(tasks), desc=f"Reading {name}"))
    read = [dict(np.load(folder / part)) for part in parts]
    if np.concatenate([part["ids"] for part in read])[: len(texts)].tolist() != battles["id"][:]:
        raise SystemExit(f"{folder}: expected the features of {name}'s battles; found others. Delete the folder.")
    cost = {key: round(sum(float(part[key]) for part in read)) for key in ("tokens", "seconds")}
    features = np.concatenate([part["features"] for part in read])[: len(texts)]
    return torch.from_numpy(features), {"battles": len(texts), **cost}


def load_ids(path: Path) -> list[str]:
    """Ids of the battles whose features a file has; none where there is no file."""
    return np.load(path)["ids"].tolist() if path.exists() else []


@cache
def load_reader(base: str) -> PreferenceMixin:
    """The base, answering with what its head would be given; one thread, because processes share out the cores."""
    torch.set_num_threads(1)
    model = load_base(find_base(base), dtype="bfloat16").eval()
    model.score = nn.Identity()
    return model


@cache
def load_encoder(base: str, max_length: int, truncation: str) -> BattleEncoder:
    """What turns battles into that base's ids."""
    tokenizer = load_tokenizer(find_base(base).folder)
    return BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, truncation))


def encode(rows: list[dict], reading: Reading) -> dict[str, list[dict]]:
    """Encoded battles by order."""
    encoder = load_encoder(reading.base, reading.max_length, reading.truncation)
    return encoder.encode_orders(encoder.clean_battles(rows), reading.orders)


@torch.inference_mode()
def extract_part(task: tuple[Path, list[dict], Reading, Path | None, Reading | None]) -> None:
    """Writes one part's features, with the ids that they belong to."""
    path, rows, reading, known_path, known = task
    start, tokens = time.perf_counter(), 0
    model, encoded = load_reader(reading.base), encode(rows, reading)
    features = np.full((len(rows), len(reading.orders), model.config.hidden_size), np.nan, dtype=np.float32)
    ids = [row["id"] for row in rows]
    if known and load_ids(known_path)[: len(ids)] == ids:
        found, others = np.load(known_path)["features"], encode(rows, known)
        for place, order in enumerate(reading.orders):
            for row, battle in enumerate(encoded[order]):
                if battle["input_ids"] == others[order][row]["input_ids"]:
                    features[row, place] = found[row, known.orders.index(order)]
    for place, order in enumerate(reading.orders):
        todo = np.flatnonzero(np.isnan(features[:, place, 0]))
        readings = [encoded[order][row]["input_ids"] for row in todo]
        tokens += sum(map(len, readings))
        for batch in build_batches(readings, TOKENS_PER_BATCH):
            inputs = pack_sequences([readings[row] for row in batch]).to_batch()
            features[todo[batch], place] = model(**inputs).logits.float()
    facts = {"tokens": tokens, "seconds": time.perf_counter() - start}
    np.savez(beside := path.with_suffix(".new.npz"), ids=ids, features=features, **facts)
    beside.rename(path)


def save_frozen_member(
    folder: Path,
    head: PreferenceHead,
    scaling: tuple[Tensor, Tensor],
    base: str,
    orientation: str,
    max_length: int,
    **lora,
) -> None:
    """A head on a frozen base as a member, whose adapter changes nothing.

    Args:
        scaling: Mean and scale of the features that the head was trained on; its first layer takes them in.
        lora: Of `add_adapters`; the last layer alone and rank 4 if left out.
    """
    files, (mean, scale) = find_base(base), scaling
    shape = {"head_dropout": 0.0, "head_hidden_size": head.dense.out_features}
    model = load_base(files, dtype="bfloat16", **shape)
    lora = lora or {"r": 4, "alpha": 4, "freeze_layers": model.config.num_hidden_layers - 1}
    model = add_adapters(model, dropout=0.0, **lora)
    first = head.dense.weight / scale  # reads features as they are
    weights = {"dense.weight": first, "dense.bias": head.dense.bias - first @ mean}
    model.score.modules_to_save["default"].load_state_dict({**head.state_dict(), **weights})
    tokenizer = load_tokenizer(files.folder)
    encoding = build_encoding(tokenizer, max_length, "balanced")
    read = {"encoding": encoding.to_dict(), "head": shape, "base_fingerprint": fingerprint_base(files)}
    facts = MemberFacts(orientation, list(LABELS), "bfloat16", **read, training={})
    probes = record_canaries(model, BattleEncoder(tokenizer, encoding), list_orders(orientation), facts.dtype)
    save_member(folder, model, collect_trained_weights(model), tokenizer, files, facts, probes)


def check_pipeline(head: PreferenceHead, data: SimpleNamespace, scaling: tuple, arguments: Namespace) -> dict:
    """How far labels that scripts/pseudolabel.py wrote lie from the features' probabilities.

    The head becomes a member "ab"; the file holds the battles in both orders, shuffled.
    """
    battles = data.battles.select(range(CHECKED))
    swapped = swap_responses(battles).map(lambda battle: {"id": f"{battle['id']} swapped"})
    with tempfile.TemporaryDirectory() as name:
        pool, member, output = (Path(name) / part for part in ("pool.parquet", "ab", "labelled.parquet"))
        concatenate_datasets([battles, swapped]).shuffle(seed=1).to_parquet(pool)
        save_frozen_member(member, head, scaling, arguments.base, "ab", arguments.max_length)
        command = ["scripts/pseudolabel.py", "--battles", pool, "--judge", member, "--output", output]
        subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, check=True)
        labels = pd.read_parquet(output).set_index("id")["label"]
    with torch.inference_mode():
        expected = torch.softmax(head(data.features[:CHECKED]), dim=-1)[..., 0].numpy()  # first slot: (battles, orders)
    read = np.array([[labels[id][0], labels[f"{id} swapped"][0]] for id in battles["id"]])
    off = {name: float(np.abs(read - np.roll(expected, by, 0)).max()) for name, by in (("largest", 0), ("next_row", 1))}
    if off["largest"] > TOLERANCE:
        raise SystemExit(
            f"scripts/pseudolabel.py: expected the features' probabilities within {TOLERANCE}; found {off}."
        )
    return {"readings": read.size, "tolerance": TOLERANCE, **off}
