"""Study of pseudo-labels and a teacher: aligned with their battles or shuffled, hard or soft.

    python scripts/quantize.py --quantization none --output_dir outputs/demo/plain
    python -m benchmarks.studies.pseudolabels --train battles_train.parquet --test battles_test.parquet \
        --pool soft_labels_en.parquet --base outputs/demo/plain --work_dir outputs/pseudolabels --check

The base is frozen. Its pooled last token is computed once per battle and order and cached in --work_dir; the project's
head is trained on it with the project's loss, both orders of a battle in one step. The pool's own labels only measure
how good the pseudo-labels are. --check also labels some pool battles, in both orders, with the real
scripts/pseudolabel.py. Writes benchmarks/results/pseudolabels.json.
"""

import argparse
import json
import math
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm import tqdm

from benchmarks import RESULTS
from benchmarks.studies.arms import measure_arms
from benchmarks.studies.frozen import Extraction, check_pipeline, load_features
from benchmarks.studies.heads import BATCH, count_steps, predict, train_head
from modeling.data.battles import LABELS, load_battles
from modeling.data.folds import assign_folds
from modeling.data.near_duplicates import DuplicateIndex, group_texts
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.metrics import compute_accuracy, compute_baselines
from modeling.network.losses import Distillation, soft_cross_entropy

SEEDS, FOLDS, DRAWS = range(2), 5, 10_000
POOL, SMALL = 2048, 400  # battles drawn from the pool, and in each small labelled set
GRID = {"learning_rate": (3e-4,), "epochs": (2, 5), "head_dropout": (0.1,)}
# Names of arms: keys of the result file and rows of docs/pseudolabels.md.
ALONE, PANEL, JUDGE = "labelled alone", "panel's p_a for its winner", "the judge: mean of 2 heads on all labels"
SOFT, SHUFFLED, HARD, SURE = "+ pool, soft", "+ pool, soft, shuffled", "+ pool, hard", "+ pool, hard, surer half"
SAME_STEPS = "; steps as alone"
TEACHERS = {f"teacher, w {w}, T {t}": Distillation(w, t) for w, t in ((0.9, 5.0), (0.5, 2.0))}
PAIRS = ((SOFT, SHUFFLED), (SOFT + SAME_STEPS, SHUFFLED + SAME_STEPS), (HARD, SOFT), (SURE, HARD))


def load_data(arguments: argparse.Namespace) -> tuple[SimpleNamespace, SimpleNamespace, SimpleNamespace, dict]:
    """Returns training, pool and test battles with normalised features, and facts about them."""
    train, test = (load_battles(file, tie_policy="drop") for file in (arguments.train, arguments.test))
    # A pool must not hold prompts that are trained or tested on; the filter is that of pseudolabel.py --exclude.
    pool = load_battles(arguments.pool, blank_policy="keep").shuffle(seed=0).select(range(POOL))
    known = DuplicateIndex()
    known.add(train["prompt"][:])
    contaminated = sum(map(bool, known.find(test["prompt"][:])))
    known.add(test["prompt"][:])
    sets = {"train": train.shuffle(seed=0), "pool": pool, "test": test}
    extraction = Extraction(arguments.base, arguments.max_length)
    read = {
        name: load_features(battles, name, extraction, arguments.work_dir, arguments.processes)
        for name, battles in sets.items()
    }
    mean, scale = (compute(read["train"][0], dim=(0, 1)) for compute in (torch.mean, torch.std))
    facts = {
        "read": {name: cost for name, (_, cost) in read.items()},
        "test_battles_near_training_prompts": contaminated,
    }
    rows = {}
    for name, battles in sets.items():
        kept = [row for row, near in enumerate(known.find(battles["prompt"][:])) if name != "pool" or not near]
        features, targets = (read[name][0][kept] - mean) / scale, torch.tensor(battles["label"][:])[kept].float()
        rows[name] = SimpleNamespace(battles=battles.select(kept), features=features, targets=targets)
    train, pool, test = rows["train"], rows["pool"], rows["test"]
    train.folds = torch.tensor(assign_folds(train.battles, FOLDS))
    p = torch.tensor([math.nan if p is None else p for p in train.battles["p_a"]])[:, None]
    train.panel = torch.where(p.isnan(), train.targets, torch.cat([p, 1 - p], dim=1))
    test.groups = np.array(group_texts(test.battles["prompt"][:]))
    facts |= {
        "pool_kept": len(pool.targets),
        "panel_battles": int((~p.isnan()).sum()),
        "test_prompts": len(set(test.groups)),
    }
    return train, pool, test, {**facts, "scaling": (mean, scale)}


def cross_validate(rows: SimpleNamespace, recipe: dict, seeds: range) -> Tensor:
    """Returns each battle's out-of-fold probabilities, averaged over the seeds."""
    out = torch.zeros_like(rows.targets)
    for fold, seed in product(range(FOLDS), seeds):
        held = rows.folds == fold
        head = train_head(rows.features[~held], rows.targets[~held], seed, recipe)
        out[held] += predict(head, rows.features[held]) / len(seeds)
    return out


def choose_recipe(samples: list[SimpleNamespace]) -> list[dict]:
    """Returns all recipes with their cross-validated log loss, averaged over the samples, the best first."""
    recipes = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    for recipe in tqdm(recipes, desc="Recipes"):
        outputs = [(cross_validate(rows, recipe, SEEDS[:1]), rows.targets) for rows in samples]
        recipe["log_loss"] = round(np.mean([soft_cross_entropy(p.log(), y) for p, y in outputs]).item(), 4)
    return sorted(recipes, key=lambda recipe: recipe["log_loss"])


def draw_small(train: SimpleNamespace, seed: int) -> SimpleNamespace:
    """Returns a small labelled set: all battles of one random prompt after another, cut at SMALL."""
    _, prompts = np.unique(train.battles["prompt"][:], return_inverse=True)
    rows = np.argsort(np.random.default_rng(seed).permutation(prompts.max() + 1)[prompts], kind="stable")[:SMALL]
    return SimpleNamespace(**{name: values[rows] for name, values in vars(train).items() if name != "battles"})


def build_arms(own: SimpleNamespace, pool: SimpleNamespace, recipe: dict, seed: int) -> dict[str, dict]:
    """Returns the arguments of `train_head` in each arm."""
    # The original's fault, on purpose: labels that belong to other battles.
    shuffled = pool.soft[torch.randperm(len(pool.soft), generator=torch.Generator().manual_seed(seed))]
    hard, every = one_hot(pool.soft.argmax(1), len(LABELS)).float(), torch.full_like(pool.sure, True)
    added = {SOFT: (pool.soft, every), SHUFFLED: (shuffled, every), HARD: (hard, every), SURE: (hard, pool.sure)}
    arms = {ALONE: {"features": own.features, "targets": own.targets}}
    for name, (labels, kept) in added.items():
        features = torch.cat([own.features, pool.features[kept]])
        arms[name] = {"features": features, "targets": torch.cat([own.targets, labels[kept]])}
        arms[name + SAME_STEPS] = {**arms[name], "steps": count_steps(own.features, recipe)}
    taught = {**arms[ALONE], "teacher": own.teacher}
    arms |= {name: {**taught, "distillation": distillation} for name, distillation in TEACHERS.items()}
    return {**arms, PANEL: {**arms[ALONE], "targets": own.panel}}


def run_arms(samples: list[SimpleNamespace], pool: SimpleNamespace, recipe: dict, test: SimpleNamespace) -> dict:
    """Returns each arm's number of battles and test probabilities, shape (seeds, battles, labels)."""
    sizes, outputs = {}, {}
    for seed, own in zip(tqdm(SEEDS, desc="Seeds"), samples, strict=True):
        for arm, given in build_arms(own, pool, recipe, seed).items():
            sizes[arm] = len(given["features"])
            outputs.setdefault(arm, []).append(predict(train_head(seed=seed, recipe=recipe, **given), test.features))
    return {arm: (sizes[arm], torch.stack(outputs[arm]).numpy()) for arm in outputs}


def describe_labels(pool: SimpleNamespace) -> dict:
    """Returns how often the pseudo-labels agree with the pool's own labels, and how confident they are."""
    p, truth, confidence = pool.soft.numpy(), pool.targets.numpy(), pool.soft.max(1).values
    sure = pool.sure.numpy()
    return {
        "agreement": str(compute_accuracy(p, truth)),
        "agreement_of_surer_half": str(compute_accuracy(p[sure], truth[sure])),
        "surer_half": {"battles": int(sure.sum()), "least_confidence": round(confidence[pool.sure].min().item(), 4)},
        "battles_at_0.95": int((confidence >= 0.95).sum()),
        **compute_baselines_text(pool),
    }


def compute_baselines_text(rows: SimpleNamespace) -> dict[str, str]:
    """Returns the baselines of some battles as text."""
    battles = rows.battles
    found = compute_baselines(battles["response_a"], battles["response_b"], rows.targets.numpy())
    return {name: str(estimate) for name, estimate in found.items()}


def write_results(results: dict) -> None:
    """Writes the JSON file and prints the tables in Markdown."""
    text = json.dumps(results, indent=1)
    (RESULTS / "pseudolabels.json").write_text(text + "\n", encoding="utf-8")
    for setting, arms in results["arms"].items():
        print(
            f"\n| {setting} | battles | accuracy | against alone [95%] | log loss | against alone [95%] |"
            "\n|---|---|---|---|---|---|"
        )
        for arm, found in arms.items():
            cells = [f"{found['battles']:,}"]
            for metric in ("accuracy", "log_loss"):
                against = found.get("against", {}).get(ALONE, {}).get(metric)
                cells += [
                    f"{found[metric][0]:.3f}",
                    "" if against is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*against),
                ]
            print(f"| {arm} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Labelled battles to train on.")
    parser.add_argument("--test", required=True, help="Battles to score.")
    parser.add_argument("--pool", required=True, help="Battles to pseudo-label.")
    parser.add_argument("--base", required=True, help="Folder of a base that is not quantised.")
    parser.add_argument("--work_dir", required=True, type=Path, help="Folder that caches features.")
    parser.add_argument("--max_length", type=int, default=256, help="Maximum tokens of a battle.")
    parser.add_argument("--processes", type=int, default=2, help="Processes that extract features.")
    parser.add_argument("--check", action="store_true", help="Compare with labels of the real scripts/pseudolabel.py.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the heads are too small for more
    start = time.perf_counter()
    train, pool, test, facts = load_data(arguments)
    scaling = facts.pop("scaling")
    recipes = {"all labels": choose_recipe([train])}
    best = recipes["all labels"][0]
    judge = [train_head(train.features, train.targets, seed, best) for seed in SEEDS]
    checked = check_pipeline(judge[0], pool, scaling, arguments) if arguments.check else None
    pool.soft, judged = (torch.stack([predict(head, rows.features) for head in judge]).mean(0) for rows in (pool, test))
    pool.sure = pool.soft.max(1).values >= pool.soft.max(1).values.median()
    train.teacher = cross_validate(train, best, SEEDS)
    samples = {"all labels": [train] * len(SEEDS), f"{SMALL} labels": [draw_small(train, seed) for seed in SEEDS]}
    recipes[f"{SMALL} labels"] = choose_recipe(samples[f"{SMALL} labels"])
    arms, resampler = {}, Resampler(test.groups, DRAWS)
    for name, drawn in samples.items():
        found = run_arms(drawn, pool, recipes[name][0], test) | {JUDGE: (len(train.targets), judged[None].numpy())}
        pairs = [*((arm, ALONE) for arm in found if arm != ALONE), *PAIRS]
        arms[name] = measure_arms(found, pairs, test.targets.argmax(1).numpy(), resampler)
    losses = [soft_cross_entropy(predict(judge[0], train.features).log(), train.targets).item()]
    sanity = {
        "test": compute_baselines_text(test),
        "judge_training_log_loss": losses,
        "scripts/pseudolabel.py": checked,
        "teacher_out_of_fold": str(compute_accuracy(train.teacher.numpy(), train.targets.numpy())),
    }
    settings = {
        "seeds": [*SEEDS],
        "folds": FOLDS,
        "bootstrap_draws": DRAWS,
        "batch": BATCH,
        "max_length": arguments.max_length,
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_results(
        {
            "settings": settings,
            "versions": versions,
            "data": facts,
            "recipes": recipes,
            "pseudo_labels": describe_labels(pool),
            "sanity": sanity,
            "arms": arms,
            "seconds": round(time.perf_counter() - start),
        }
    )


if __name__ == "__main__":
    main()
