"""Extracts a frozen base's features once per battle and order, and saves a head trained on them as a member.

It must not know what is studied.
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

from benchmarks import REPOSITORY
from modeling.data.battles import LABELS, ORIENTATIONS, TEXTS, list_orders, swap_responses
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.encoding.packing import pack_sequences
from modeling.judging.canaries import record_canaries
from modeling.judging.member import MemberFacts, save_member
from modeling.judging.predictor import build_batches
from modeling.network.base import find_base, fingerprint_base, load_base, load_tokenizer
from modeling.network.classifier import PreferenceHead, PreferenceMixin
from modeling.network.lora import add_adapters, collect_trained_weights
from modeling.runtime.files import replace_file

PART = 128  # battles per file of features
TOKENS_PER_BATCH = 1024  # small batches are fastest on one thread
CHECKED = 60  # battles of check_pipeline
# Of a probability in bf16. Larger than elsewhere, because these heads divide by the features' spread: 0.027 was
# measured. Labels on the wrong rows would be off by 0.42.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Extraction:
    """What decides a battle's features: the base, and how battles are encoded for it."""

    base: str
    max_length: int
    truncation: str = "balanced"
    orders: tuple[str, ...] = ORIENTATIONS
    dtype: str = "bfloat16"

    def find_folder(self, work_dir: Path) -> Path:
        """Returns the folder of its features. Default settings leave the name as it was before they existed."""
        parts = [fingerprint_base(find_base(self.base)), str(self.max_length)]
        parts += [self.truncation] * (self.truncation != "balanced")
        parts += ["+".join(self.orders)] * (self.orders != ORIENTATIONS)
        parts += [self.dtype] * (self.dtype != "bfloat16")
        return work_dir / "-".join(parts)


def load_features(
    battles: Dataset,
    name: str,
    extraction: Extraction,
    work_dir: Path,
    processes: int = 2,
    known: Extraction | None = None,
) -> tuple[Tensor, dict]:
    """Returns features, shape (battles, orders, hidden), and what they cost: battles, tokens, seconds.

    Args:
        name: Name of the set of battles, and of its files.
        extraction: How to compute the features.
        work_dir: Folder that caches features; only missing ones are computed.
        processes: Processes that compute them.
        known: Another extraction from the same base. Its features are reused where the tokens are the same.

    Raises:
        SystemExit: If the cache holds the features of other battles.
    """
    folder = extraction.find_folder(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(battles.select_columns(["id", *TEXTS]))
    parts = {f"{name}-{n // PART:03d}.npz": texts[n : n + PART] for n in range(0, len(texts), PART)}
    others = known.find_folder(work_dir) if known else None
    tasks = [
        (folder / part, rows, extraction, others / part if others else None, known)
        for part, rows in parts.items()
        if len(load_ids(folder / part)) < len(rows)
    ]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(tqdm(pool.map(extract_part, tasks), total=len(tasks), desc=f"Features of {name}"))
    read = [dict(np.load(folder / part)) for part in parts]
    if np.concatenate([part["ids"] for part in read])[: len(texts)].tolist() != battles["id"][:]:
        raise SystemExit(f"{folder}: expected the features of {name}'s battles; found others. Delete the folder.")
    cost = {key: round(sum(float(part[key]) for part in read)) for key in ("tokens", "seconds")}
    features = np.concatenate([part["features"] for part in read])[: len(texts)]
    return torch.from_numpy(features), {"battles": len(texts), **cost}


def load_ids(path: Path) -> list[str]:
    """Returns the ids of the battles in a file of features; an empty list if there is no file."""
    return np.load(path)["ids"].tolist() if path.exists() else []


@cache
def load_feature_model(base: str, dtype: str) -> PreferenceMixin:
    """Returns the base with an identity for a head, so that its logits are the pooled features."""
    torch.set_num_threads(1)  # one process per core
    model = load_base(find_base(base), dtype=dtype).eval()
    model.score = nn.Identity()
    return model


@cache
def load_encoder(base: str, max_length: int, truncation: str) -> BattleEncoder:
    """Returns the base's encoder."""
    tokenizer = load_tokenizer(find_base(base).folder)
    return BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, truncation))


def encode(rows: list[dict], extraction: Extraction) -> dict[str, list[dict]]:
    """Returns the encoded battles by order."""
    encoder = load_encoder(extraction.base, extraction.max_length, extraction.truncation)
    return encoder.encode_orders(encoder.clean_battles(rows), extraction.orders)


@torch.inference_mode()
def extract_part(task: tuple[Path, list[dict], Extraction, Path | None, Extraction | None]) -> None:
    """Writes one part's features, with the ids of their battles."""
    path, rows, extraction, known_path, known = task
    start, tokens = time.perf_counter(), 0
    model, encoded = load_feature_model(extraction.base, extraction.dtype), encode(rows, extraction)
    features = np.full((len(rows), len(extraction.orders), model.config.hidden_size), np.nan, dtype=np.float32)
    ids = [row["id"] for row in rows]
    if known and load_ids(known_path)[: len(ids)] == ids:
        found, others = np.load(known_path)["features"], encode(rows, known)
        for place, order in enumerate(extraction.orders):
            for row, battle in enumerate(encoded[order]):
                if battle["input_ids"] == others[order][row]["input_ids"]:
                    features[row, place] = found[row, known.orders.index(order)]
    for place, order in enumerate(extraction.orders):
        todo = np.flatnonzero(np.isnan(features[:, place, 0]))
        sequences = [encoded[order][row]["input_ids"] for row in todo]
        tokens += sum(map(len, sequences))
        for batch in build_batches(sequences, TOKENS_PER_BATCH):
            inputs = pack_sequences([sequences[row] for row in batch]).to_batch()
            features[todo[batch], place] = model(**inputs).logits.float()
    facts = {"tokens": tokens, "seconds": time.perf_counter() - start}
    with replace_file(path) as beside:
        np.savez(beside, ids=ids, features=features, **facts)


def save_frozen_member(
    folder: Path,
    head: PreferenceHead,
    scaling: tuple[Tensor, Tensor],
    base: str,
    orientation: str,
    max_length: int,
    **lora,
) -> None:
    """Saves a head on a frozen base as a member whose fresh adapter changes nothing.

    Args:
        scaling: Mean and scale that the training features were normalised with; folded into the head's first layer.
        lora: Keyword arguments of `add_adapters`; rank 4 on only the last layer if left out.
    """
    files, (mean, scale) = find_base(base), scaling
    shape = {"head_dropout": 0.0, "head_hidden_size": head.dense.out_features}
    model = load_base(files, dtype="bfloat16", **shape)
    lora = lora or {"r": 4, "alpha": 4, "freeze_layers": model.config.num_hidden_layers - 1}
    model = add_adapters(model, dropout=0.0, **lora)
    first = head.dense.weight / scale  # takes features that are not normalised
    weights = {"dense.weight": first, "dense.bias": head.dense.bias - first @ mean}
    model.score.modules_to_save["default"].load_state_dict({**head.state_dict(), **weights})
    tokenizer = load_tokenizer(files.folder)
    encoding = build_encoding(tokenizer, max_length, "balanced")
    described = {"encoding": encoding.to_dict(), "head": shape, "base_fingerprint": fingerprint_base(files)}
    facts = MemberFacts(orientation, list(LABELS), "bfloat16", **described, training={})
    canaries = record_canaries(model, BattleEncoder(tokenizer, encoding), list_orders(orientation), facts.dtype)
    save_member(folder, model, collect_trained_weights(model), tokenizer, files, facts, canaries)


def check_pipeline(head: PreferenceHead, data: SimpleNamespace, scaling: tuple, arguments: Namespace) -> dict:
    """Returns how much the labels of the real scripts/pseudolabel.py differ from the head's own probabilities.

    The head becomes a member "ab"; the file holds the battles in both orders, shuffled, so that labels on wrong rows
    show.

    Raises:
        SystemExit: If they differ by more than TOLERANCE.
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
    labelled = np.array([[labels[id][0], labels[f"{id} swapped"][0]] for id in battles["id"]])
    # Against the next row's probabilities too: what a shift by one row would look like.
    off = {
        name: float(np.abs(labelled - np.roll(expected, by, 0)).max()) for name, by in (("largest", 0), ("next_row", 1))
    }
    if off["largest"] > TOLERANCE:
        raise SystemExit(
            f"scripts/pseudolabel.py: expected the features' probabilities within {TOLERANCE}; found {off}."
        )
    return {"readings": labelled.size, "tolerance": TOLERANCE, **off}
