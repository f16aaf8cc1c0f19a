"""What pseudo-labels and a teacher do for a judge: aligned with their battles, shuffled across them, hard and soft.

    python scripts/quantize.py --quantization none --output_dir outputs/demo/plain
    python benchmarks/pseudolabels.py --train battles_train.parquet --test battles_test.parquet \
        --pool soft_labels_en.parquet --base outputs/demo/plain --work_dir outputs/pseudolabels --check

The base stays frozen: its pooled last token is computed once for each battle and order (kept in --work_dir, so that the
command can be given again), and the project's head is trained on it with the project's loss, both orders of a battle in
one step. Writes benchmarks/pseudolabels.json. The pool's own labels only say how good the pseudo-labels are. --check
labels 60 pool battles, and the same with their answers exchanged, with the real scripts/pseudolabel.py as well.
"""

import argparse
import itertools
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from tqdm import tqdm
from transformers import __version__ as transformers_version
from transformers import get_linear_schedule_with_warmup

from modeling.adapters import add_adapters, collect_trained_weights
from modeling.bases import find_base, fingerprint_base, load_base, load_tokenizer
from modeling.battles import LABELS, ORIENTATIONS, TEXTS, load_battles, swap_responses
from modeling.classifier import PreferenceHead, PreferenceMixin
from modeling.collation import BattleCollator
from modeling.duplicates import DuplicateIndex, group_texts
from modeling.encoding import BattleEncoder, build_encoding
from modeling.folds import assign_folds
from modeling.inference import build_batches
from modeling.loading import MemberFacts, save_member
from modeling.losses import Distillation, compute_preference_loss, soft_cross_entropy
from modeling.metrics import compute_accuracy, compute_baselines, compute_log_loss

REPOSITORY = Path(__file__).resolve().parent.parent
SEEDS = range(5)
FOLDS, DRAWS, BATCH = 5, 10_000, 32
POOL, SMALL, CHECKED = 2048, 400, 60
PART, TOKENS_PER_BATCH = 128, 1024  # battles of a file of features; small batches, which one thread reads fastest
RATES, EPOCHS, DROPOUTS = (1e-4, 3e-4, 1e-3), (2, 5, 10, 20), (0.1, 0.5)
ALONE, SOFT, SHUFFLED, HARD, SURE = (
    "labelled battles alone",
    "+ pool, soft pseudo-labels",
    "+ pool, the same shuffled across rows",
    "+ pool, hard pseudo-labels",
    "+ pool, hard, the surer half",
)
PAIRS = ((SOFT, SHUFFLED), (HARD, SOFT), (SURE, HARD))


@dataclass(frozen=True)
class Recipe:
    """How a head is trained; chosen by cross-validation on labelled battles alone."""

    learning_rate: float
    epochs: int
    head_dropout: float


@dataclass(frozen=True)
class Rows:
    """Battles with features of shape (battles, orders, hidden) and targets of shape (battles, labels)."""

    battles: Dataset
    features: Tensor
    targets: Tensor

    def take(self, rows: Tensor) -> "Rows":
        return Rows(self.battles.select(rows), self.features[rows], self.targets[rows])


# --- features ---------------------------------------------------------------------------------------------------------


def load_rows(battles: Dataset, name: str, arguments: argparse.Namespace) -> tuple[Rows, dict]:
    """The battles with their features, from work_dir where they are, and what computing these had cost."""
    folder = arguments.work_dir / f"{fingerprint_base(find_base(arguments.base))}-{arguments.max_length}"
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(battles.select_columns(["id", *TEXTS]))
    parts = [texts[start : start + PART] for start in range(0, len(texts), PART)]
    paths = [[folder / f"{name}-{order}-{n:03d}.npz" for n in range(len(parts))] for order in ORIENTATIONS]
    tasks = [
        (path, part, order, arguments.base, arguments.max_length)
        for order, of_order in zip(ORIENTATIONS, paths, strict=True)
        for path, part in zip(of_order, parts, strict=True)
        if not path.exists()
    ]
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool, tqdm(desc=name, unit="tok") as bar:
        for tokens in pool.map(extract_part, tasks):
            bar.update(tokens)
    read = [[dict(np.load(path)) for path in of_order] for of_order in paths]
    for of_order in read:
        if [str(id) for part in of_order for id in part["ids"]] != battles["id"][:]:
            raise SystemExit(f"{folder}: expected the features of {name}'s battles; found others. Delete the folder.")
    features = [np.concatenate([part["features"] for part in of_order]) for of_order in read]
    costs = {key: sum(float(part[key]) for of_order in read for part in of_order) for key in ("tokens", "seconds")}
    targets = torch.tensor(battles["label"][:], dtype=torch.float32)
    return Rows(battles, torch.from_numpy(np.stack(features, axis=1)), targets), costs


@cache
def load_reader(base: str, max_length: int) -> tuple[PreferenceMixin, BattleEncoder]:
    """The base, answering with what its head would be given; one thread, because processes share out the cores."""
    torch.set_num_threads(1)
    files = find_base(base)
    model = load_base(files, dtype="bfloat16").eval()
    model.score = nn.Identity()
    tokenizer = load_tokenizer(files.folder)
    return model, BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, "balanced"))


@torch.inference_mode()
def extract_part(task: tuple) -> int:
    """Writes one part's features in one order, with their ids; returns the tokens read."""
    path, rows, order, base, max_length = task
    start = time.perf_counter()
    model, encoder = load_reader(base, max_length)
    encoded = encoder.encode(encoder.clean_battles(rows), order)
    collate = BattleCollator(encoder.encoding.pad_token_id)
    features = np.full((len(rows), model.config.hidden_size), np.nan, dtype=np.float32)
    for batch in build_batches([battle["length"] for battle in encoded], TOKENS_PER_BATCH):
        features[batch] = model(**collate([{"input_ids": encoded[row]["input_ids"]} for row in batch])).logits
    tokens = sum(battle["length"] for battle in encoded)
    facts = {"tokens": tokens, "seconds": time.perf_counter() - start}
    np.savez(beside := path.with_suffix(".new.npz"), ids=np.array([row["id"] for row in rows]), features=features, **facts)
    beside.rename(path)
    return tokens


# --- heads ------------------------------------------------------------------------------------------------------------


def build_head(hidden_size: int, head_dropout: float) -> PreferenceHead:
    """The project's head, initialised as the project does."""
    numbers = {"hidden_size": hidden_size, "head_hidden_size": hidden_size // 2, "head_dropout": head_dropout}
    head = PreferenceHead(SimpleNamespace(**numbers, num_labels=len(LABELS)))
    for layer in (head.dense, head.out):
        PreferenceMixin._init_weights(SimpleNamespace(score=head), layer)
    return head


def train_head(
    features: Tensor,
    targets: Tensor,
    recipe: Recipe,
    seed: int,
    *,
    teacher: Tensor | None = None,
    distillation: Distillation = Distillation(),
    steps: int | None = None,
) -> PreferenceHead:
    """A head trained for `recipe.epochs` over the battles, or for `steps`; seed: initialisation, order, dropout."""
    torch.manual_seed(seed)
    head = build_head(features.shape[-1], recipe.head_dropout)
    steps = steps or count_steps(len(features), recipe)
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    epochs = [torch.randperm(len(features)) for _ in range(math.ceil(steps * BATCH / len(features)))]
    for rows in torch.cat(epochs)[: steps * BATCH].split(BATCH):
        wanted = None if teacher is None else mirror(teacher[rows])
        logits = head(features[rows].flatten(0, 1))
        loss = compute_preference_loss(logits, mirror(targets[rows]), wanted, None, distillation)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return head.eval()


def count_steps(num_battles: int, recipe: Recipe) -> int:
    return math.ceil(recipe.epochs * num_battles / BATCH)


def mirror(labels: Tensor) -> Tensor:
    """Values by label, (battles, labels), as values by slot for each battle's two readings, (battles * 2, labels)."""
    return torch.stack([labels, labels.flip(-1)], dim=1).flatten(0, 1)


@torch.inference_mode()
def predict(head: PreferenceHead, features: Tensor) -> Tensor:
    """Probabilities by label, shape (battles, labels), the mean over both orders."""
    by_slot = torch.softmax(head(features), dim=-1)  # (battles, orders, labels)
    return (by_slot[:, 0] + by_slot[:, 1].flip(-1)) / 2


def cross_validate(rows: Rows, folds: Tensor, recipe: Recipe, seeds: range) -> Tensor:
    """Each battle's probabilities from heads that saw no battle of its fold, the mean over the seeds."""
    out = torch.zeros_like(rows.targets)
    for fold, seed in itertools.product(range(FOLDS), seeds):
        seen, held = folds != fold, folds == fold
        head = train_head(rows.features[seen], rows.targets[seen], recipe, seed)
        out[held] += predict(head, rows.features[held]) / len(seeds)
    return out


def choose_recipe(samples: list[tuple[Rows, Tensor]], name: str) -> tuple[Recipe, dict[str, float]]:
    """The recipe of the lowest cross-validated log loss over samples of rows and folds, and the losses of all."""
    losses = {}
    for recipe in tqdm([Recipe(*values) for values in itertools.product(RATES, EPOCHS, DROPOUTS)], desc=name):
        found = [(cross_validate(rows, folds, recipe, SEEDS[:1]), rows.targets) for rows, folds in samples]
        losses[recipe] = float(np.mean([soft_cross_entropy(p.log(), targets) for p, targets in found]))
    return min(losses, key=losses.get), {f"{asdict(recipe)}": loss for recipe, loss in losses.items()}
