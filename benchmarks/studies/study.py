"""Ablation study on real battles: head, orders, length, truncation, quantisation, labels, base and adapters.

    python -m benchmarks.studies.study --train battles_train.parquet --test battles_test.parquet \
        --soft soft_labels_en.parquet --work_dir outputs/study

configs/study/study.yaml defines the arms. Each base's features are computed once per battle and order and cached in
--work_dir, so that the same command resumes after an interruption. Heads are the project's own, trained with its loss;
adapters are trained by scripts/train.py and used by scripts/predict.py. Writes benchmarks/results/study.json and
docs/study.png, prints the tables, and leaves the judges' predictions in --work_dir for scripts/evaluate.py.
"""

import json
import time
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from benchmarks import REPOSITORY, RESULTS
from benchmarks.studies.frozen import load_features
from benchmarks.studies.heads import predict, predict_orders, train_head
from benchmarks.studies.real_battles import Study, name_settings, open_study, run
from benchmarks.studies.tables import draw_arms, format_judges, format_table
from modeling.data.battles import ORIENTATIONS
from modeling.data.folds import assign_folds
from modeling.evaluation.metrics import estimate_metrics
from modeling.evaluation.report import build_report
from modeling.judging.calibration import fit_temperature
from modeling.network.losses import soft_cross_entropy

FOLDS, DROPOUT, SHARES = 5, 0.1, (0.0, 0.2, 0.4, 0.6)
# Names of arms: keys of the result file and rows of the published tables.
TWO, BOTH, AB = "two members, each its own order", "one member of both orders", "ab alone"


def cross_validate(data: SimpleNamespace, folds: Tensor, recipe: dict, orders: tuple = ORIENTATIONS, seed=0) -> Tensor:
    """Returns each training battle's out-of-fold probabilities by label, from heads trained on `orders`."""
    out, features = torch.zeros_like(data.targets), data.features[:, : len(orders)]
    for fold in range(FOLDS):
        held = folds == fold
        head = train_head(features[~held], data.targets[~held], seed, recipe, orders=orders)
        out[held] = predict(head, features[held], orders)
    return out


def choose_recipe(study: Study, data: SimpleNamespace, kind: str, orders: tuple) -> list[dict]:
    """Returns all recipes of a kind of head with their cross-validated log loss, the best first."""
    grid = study.settings["recipes"][kind]
    folds = torch.tensor(assign_folds(study.train.select(data.rows), FOLDS))
    recipes = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    for recipe in tqdm(recipes, desc=f"Recipes of the {kind} head, {len(orders)} orders"):
        recipe |= {"head_dropout": DROPOUT} | ({"head_hidden_size": 0} if kind == "linear" else {})
        p = cross_validate(data, folds, recipe, orders)
        recipe["log_loss"] = round(soft_cross_entropy(p.log(), data.targets).item(), 4)
    return sorted(recipes, key=lambda recipe: recipe["log_loss"])


# --- the tables -------------------------------------------------------------------------------------------------------


def study_heads(study: Study, recipes: dict) -> dict:
    """Returns the arms on head, orders, labels and the share of second passes: SmolLM2, all training battles."""
    extraction, found = study.prepare_extraction("smollm2"), {}
    data, folder = study.load(extraction), study.arguments.work_dir / "features"
    pool, study.read["soft"] = load_features(study.soft, "pool", extraction, folder, study.arguments.processes)
    mean, scale = data.scaling
    pool, soft = (pool[study.added] - mean) / scale, torch.tensor(study.soft["label"][:])[study.added].float()
    hard = torch.nn.functional.one_hot(soft.argmax(1), 2).float()
    for seed in study.settings["seeds"]:
        arms = score_heads(data, seed, recipes)
        for name, labels in (("+ English battles, p of GPT-4", soft), ("+ English battles, its winner", hard)):
            features = torch.cat([data.features, pool])
            head = train_head(features, torch.cat([data.targets, labels]), seed, recipes["mlp, 2"][0])
            arms[name] = predict(head, data.test)
        for arm, p in arms.items():
            size = len(data.targets) + len(pool) * arm.startswith("+")
            found.setdefault(arm, (size, []))[1].append(p)
    own = {arm: BOTH for arm in found if arm.startswith(("+", BOTH)) and arm != BOTH}
    return study.measure(found, {arm: TWO for arm in found if arm != TWO} | own)


def score_heads(data: SimpleNamespace, seed: int, recipes: dict) -> dict[str, Tensor]:
    """Returns one seed's arms that share the same six heads."""
    orders = {"ab": ("ab",), "ba": ("ba",), "both": ORIENTATIONS}
    places = {"ab": [0], "ba": [1], "both": [0, 1]}
    p = {}
    for kind, name in product(("mlp", "linear"), orders):
        recipe, own = recipes[f"{kind}, {len(places[name])}"][0], {"orders": orders[name]}
        head = train_head(data.features[:, places[name]], data.targets, seed, recipe, **own)
        p[kind, name] = predict_orders(head, data.test)
    ab, ba = p["mlp", "ab"][:, 0], p["mlp", "ba"][:, 1]
    arms = {
        TWO: (ab + ba) / 2,
        AB: ab,
        "ba alone": ba,
        "ab, reading both orders": p["mlp", "ab"].mean(1),
        "two members, both orders (four readings)": (p["mlp", "ab"].mean(1) + p["mlp", "ba"].mean(1)) / 2,
        BOTH: p["mlp", "both"].mean(1),
        "two members, linear heads": (p["linear", "ab"][:, 0] + p["linear", "ba"][:, 1]) / 2,
        f"{BOTH}, linear head": p["linear", "both"].mean(1),
    }
    first, every = p["mlp", "both"][:, 0], arms[BOTH]
    by_uncertainty = (first[:, 0] - 0.5).abs().argsort()  # the most uncertain first
    for share in SHARES:
        again = by_uncertainty[: round(share * len(by_uncertainty))]
        arms[f"{BOTH}, second reading for {share:.0%}"] = first.index_put((again,), every[again])
    return arms


def study_lengths(study: Study, recipes: dict) -> dict:
    """Returns the arms on length, truncation and quantisation: one order, few battles."""
    few, recipe, orders = (study.settings["few"], study.settings["few_scored"]), recipes["mlp, 1"][0], ("ab",)
    found, pairs = {}, {}
    # By base, the latest extraction: battles that fit its length as well need no second forward pass.
    known = {"smollm2": study.prepare_extraction("smollm2")}
    for arm, settings in study.settings["lengths"].items():
        options = dict(settings)
        against, base = options.pop("against", None), options.pop("base")
        extraction = study.prepare_extraction(base, **options, orders=orders)
        data = study.load(extraction, *few, known.get(base))
        known[base] = extraction
        for seed in study.settings["seeds"]:
            head = train_head(data.features, data.targets, seed, recipe, orders=orders)
            found.setdefault(arm, (len(data.targets), []))[1].append(predict(head, data.test, orders))
        pairs |= {arm: against} if against else {}
    return study.measure(found, pairs)


def study_bases(study: Study, recipes: dict) -> dict:
    """Returns the arms on two bases, and their average."""
    found, names = {}, {"SmolLM2-135M": "smollm2", "Gemma-3-270M": "gemma3"}
    for arm, base in names.items():
        data = study.load(study.prepare_extraction(base), study.settings["some"])
        for seed in study.settings["seeds"]:
            head = train_head(data.features, data.targets, seed, recipes["mlp, 2"][0])
            found.setdefault(arm, (len(data.targets), []))[1].append(predict(head, data.test))
    size, first = found["SmolLM2-135M"]
    found["both, averaged"] = (size, [(p + q) / 2 for p, q in zip(first, found["Gemma-3-270M"][1], strict=True)])
    return study.measure(found, {arm: "SmolLM2-135M" for arm in found if arm != "SmolLM2-135M"})


def study_adapters(study: Study) -> dict:
    """Returns the arms on adapters at several learning rates, each beside a head alone with as many steps."""
    settings = study.settings["adapters"]
    data, found, pairs = study.load(study.prepare_extraction("smollm2")), {}, {}
    mean, scale = data.scaling
    # Not normalised, as train.py's head sees them.
    features, test = ((each * scale + mean)[:, :1] for each in (data.features, data.test))
    for rate, alpha in settings["ladder"]:
        arm, alone = f"adapters, rate {rate:.1e}, alpha {alpha}", f"head alone, rate {rate:.1e}"
        recipe = {"learning_rate": rate, "head_dropout": DROPOUT, "batch": 8}
        steps = settings["flags"]["max_steps"]
        for seed in study.settings["seeds"]:
            head = train_head(features, data.targets, seed, recipe, orders=("ab",), steps=steps)
            found.setdefault(alone, (8 * steps, []))[1].append(predict(head, test, ("ab",)))
        found[arm] = (8 * steps, [torch.tensor(train_adapter(study, rate, alpha))])
        pairs[arm] = alone
    return study.measure(found, pairs)


def train_adapter(study: Study, rate: float, alpha: int) -> np.ndarray:
    """Returns a member's probabilities by label, shape (battles, labels), from the real scripts."""
    arguments, settings = study.arguments, study.settings["adapters"]
    chosen = {**settings["flags"], "learning_rate": rate, "lora_alpha": alpha}
    folder = arguments.work_dir / "adapters" / name_settings(f"rate{rate:.1e}-alpha{alpha}", chosen)
    verdicts = folder / "predictions" / "predictions.parquet"
    if not verdicts.is_file():
        flags = [
            *(f"--{name}={value}" for name, value in chosen.items()),
            "--base",
            study.prepare_extraction("smollm2").base,
        ]
        # A finished member stays; an interrupted prediction resumes by itself.
        if not (folder / "member").is_dir():
            battles = arguments.work_dir / "train.parquet"
            study.train.select(study.fit).to_parquet(battles)
            run(
                "scripts/train.py",
                "configs/demo/train.yaml",
                *flags,
                "--train_file",
                battles,
                "--output_dir",
                folder / "member",
            )
        output = ["--output_dir", folder / "predictions", "--tie_policy", "drop"]
        run("scripts/predict.py", "--battles", arguments.test, "--judge", folder / "member", *output)
    found = pd.read_parquet(verdicts).set_index("id").loc[study.test["id"][:]]
    return found[["p_a", "p_b"]].to_numpy()


def study_judges(study: Study, recipes: dict) -> dict:
    """Returns judges of one base and of two, before and after a temperature fitted on out-of-fold predictions."""
    settings, judges = study.settings, {}
    sizes = {"SmolLM2-135M, all battles": {"smollm2": None}}
    sizes["SmolLM2-135M and Gemma-3-270M"] = {"smollm2": settings["some"], "gemma3": settings["some"]}
    for name, bases in sizes.items():
        passes, held_out = {}, []
        for base, most in bases.items():
            data = study.load(study.prepare_extraction(base), most)
            folds = torch.tensor(assign_folds(study.train.select(data.rows), FOLDS))
            recipe, seeds = recipes["mlp, 2"][0], settings["seeds"]
            held_out += [cross_validate(data, folds, recipe, seed=seed) for seed in seeds]
            heads = [train_head(data.features, data.targets, seed, recipe) for seed in seeds]
            by_order = torch.stack([predict_orders(head, data.test) for head in heads]).mean(0).double().numpy()
            passes |= {f"p_a_{base}_{order}": by_order[:, place, 0] for place, order in enumerate(ORIENTATIONS)}
        raw = np.mean(list(passes.values()), axis=0)
        calibration = fit_temperature(torch.stack(held_out).mean(0)[:, 0].numpy(), data.targets.numpy())
        p_a = calibration.apply(raw)
        verdicts = {"id": study.test["id"][:], "p_a": p_a, "p_b": 1 - p_a, "raw_p_a": raw, **passes}
        path = study.arguments.work_dir / f"judge-{'+'.join(bases)}.parquet"
        pd.DataFrame(verdicts).to_parquet(path, index=False)
        report = build_report(pd.DataFrame(verdicts), study.test)
        labels = np.eye(2)[study.truth]
        judges[name] = {"battles": len(data.targets), "calibration": calibration.to_dict(), "predictions": path.name}
        for when, each in (("before", raw), ("after", p_a)):
            found = estimate_metrics(study.resampler, np.column_stack([each, 1 - each]), labels)
            judges[name][when] = {key: estimate.to_dict() for key, estimate in found.items()}
        judges[name]["report"] = {
            part: report[part] for part in ("tables", "selective", "position_bias", "length_bias")
        }
    return judges


def main() -> None:
    torch.set_num_threads(1)  # the heads are too small for more
    start, study = time.perf_counter(), open_study(__doc__)
    first = study.load(study.prepare_extraction("smollm2"))
    recipes = {
        f"{kind}, {len(orders)}": choose_recipe(study, first, kind, orders)
        for kind, orders in product(study.settings["recipes"], (("ab",), ORIENTATIONS))
    }
    tables = {
        "heads and orders": study_heads(study, recipes),
        "length and quantisation": study_lengths(study, recipes),
        "bases": study_bases(study, recipes),
        "adapters": study_adapters(study),
    }
    results = {
        "settings": study.settings,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "data": {"training": len(study.fit), "scored": len(study.truth), "prompts": len(set(study.groups))},
        "read": study.read,
        "recipes": recipes,
        "baselines": study.measure_baselines(),
        "tables": tables,
        "judges": study_judges(study, recipes),
        "seconds": round(time.perf_counter() - start),
    }
    text = json.dumps(results, indent=1)
    (RESULTS / "study.json").write_text(text + "\n", encoding="utf-8")
    print("\n\n".join([format_judges(results), *(format_table(title, arms) for title, arms in tables.items())]))
    draw_arms(tables, results["baselines"], REPOSITORY / "docs" / "study.png")


if __name__ == "__main__":
    main()
