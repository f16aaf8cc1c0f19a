"""Writes the battles that the default judge is trained on, in the order in which it reads them.

    python -m benchmarks.default_judge.battles --votes battles_train.parquet --exclude battles_test.parquet \\
        --output_dir outputs/default

`train.py configs/gemma3-270m/train.yaml --train_sampling_strategy sequential` then trains on them. First come easy
counterfactual pairs, then hard ones, then everything else mixed, in one round or several: a model that begins with
subtle pairs does not learn to read the prompt at all. The flags of the packaged judge are in docs/results.md, "The
default judge". The votes are other people's and not in this repository; the judge's card names them and their licences.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from modeling.data.battles import DEMO_FOLDER, TEXTS, load_battles
from modeling.data.counterfactuals import make_counterfactuals, number_units
from modeling.data.near_duplicates import DuplicateIndex
from modeling.evaluation.report import group_prompts

COLUMNS = [*TEXTS, "label", "language"]


def build_curriculum(own: Dataset, votes: Dataset, sizes: dict[str, int], longest: int, seed: int) -> Dataset:
    """Returns the battles in reading order, with columns id, prompt, response_a, response_b, label and language.

    Args:
        own: The demo's training battles.
        votes: Other battles; all that people decided are taken, and so many that models decided.
        sizes: Numbers of easy and hard pairs before the mixture, of rounds of it, of further hard pairs in each round,
            and of votes by models. Every round holds the same votes and the demo's battles, in another order.
        longest: Characters of a battle whose prompt and answer go into made pairs; of longer ones much would be cut.
        seed: Decides which are drawn, and their order.
    """
    random = np.random.default_rng(seed)
    lengths = np.sum([[len(text) for text in votes[name][:]] for name in TEXTS], axis=0)
    sources = concatenate_datasets([take(own), take(votes.select(np.flatnonzero(lengths <= longest)))])
    easy = make_counterfactuals(sources, sizes["easy"], seed)
    hard = make_counterfactuals(sources, sizes["hard"] + sizes["mixed"] * sizes["rounds"], seed, similar=6)
    by_people = np.array(votes["verdict"][:]) == "human"
    by_models = random.permutation(np.flatnonzero(~by_people))[: sizes["by_models"]]
    people, models = votes.select(np.flatnonzero(by_people)), votes.select(by_models)
    parts = [easy, hard.select(range(2 * sizes["hard"]))]
    for number in range(sizes["rounds"]):
        first = 2 * (sizes["hard"] + number * sizes["mixed"])
        further = hard.select(range(first, first + 2 * sizes["mixed"]))
        mixed = concatenate_datasets([take(part) for part in (own, further, people, models)])
        parts.append(mixed.select(shuffle_units(number_units(mixed), random)))
    curriculum = concatenate_datasets([take(part) for part in parts])
    return curriculum.add_column("id", [f"battle-{number}" for number in range(len(curriculum))])


def take(battles: Dataset) -> Dataset:
    """Returns the columns that all sources have."""
    return battles.select_columns(COLUMNS)


def shuffle_units(units: list[int], random: np.random.Generator) -> list[int]:
    """Returns row numbers in random order, those of one unit one after the other."""
    places = random.permutation(max(units) + 1)
    return sorted(range(len(units)), key=lambda row: (places[units[row]], row))


def hold_out(votes: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """Returns the votes to train on, and so many votes of each kind on other prompts, to calibrate on."""
    random, prompts = np.random.default_rng(seed), np.array(group_prompts(votes["prompt"][:])[0])
    kinds, held_out = np.array(votes["verdict"][:]), np.zeros(len(votes), bool)
    for prompt in random.permutation(prompts.max() + 1):
        group = prompts == prompt
        if (np.isin(kinds, kinds[group]) & held_out).sum() + group.sum() <= count:
            held_out |= group
    return votes.select(np.flatnonzero(~held_out)), votes.select(np.flatnonzero(held_out))


def hold_out_units(own: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """Returns the battles to train on, and at least `count` held-out ones; pairs stay together."""
    shuffled = shuffle_units(units := number_units(own), np.random.default_rng(seed))
    while 0 < count < len(own) and units[shuffled[count - 1]] == units[shuffled[count]]:
        count += 1
    return own.select(sorted(shuffled[count:])), own.select(sorted(shuffled[:count]))


def take_share(battles: Dataset, share: float, seed: int) -> Dataset:
    """Returns that share of the battles, in their order; a smaller share is a part of a larger one."""
    shuffled = shuffle_units(number_units(battles), np.random.default_rng(seed))
    return battles.select(sorted(shuffled[: round(share * len(battles))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", required=True, help="Battles with a column verdict, human or llm.")
    parser.add_argument("--exclude", nargs="*", default=[], help="Battles to measure on: votes on their prompts go.")
    parser.add_argument("--output_dir", required=True, type=Path, help="For train.parquet and calibrate.parquet.")
    parser.add_argument("--calibrate", type=int, default=200, help="Votes of each kind to keep for the calibration.")
    parser.add_argument("--easy", type=int, default=300, help="Easy pairs at the beginning.")
    parser.add_argument("--hard", type=int, default=400, help="Hard pairs after them.")
    parser.add_argument("--mixed", type=int, default=300, help="Further hard pairs in each round of the mixture.")
    parser.add_argument("--rounds", type=int, default=1, help="Rounds of the mixture, with hard pairs of their own.")
    parser.add_argument("--by_models", type=int, default=100, help="Votes by models in the mixture.")
    parser.add_argument("--longest", type=int, default=900, help="Characters of votes that go into made pairs.")
    parser.add_argument("--validate", type=int, default=0, help="Own battles to keep, for the choice of settings.")
    parser.add_argument("--share", type=float, default=1.0, help="Share of the others to train on, and of these sizes.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    index = DuplicateIndex()
    for file in [str(DEMO_FOLDER / "test.jsonl"), *arguments.exclude]:
        index.add(load_battles(file)["prompt"][:])
    parts = {}
    for name, file in (("own", str(DEMO_FOLDER / "train.jsonl")), ("votes", arguments.votes)):
        battles = load_battles(file, require_labels=True)
        new = [row for row, found in enumerate(index.find(battles["prompt"][:])) if not found]
        print(f"{name}: {len(battles)} battles, {len(battles) - len(new)} of them on a prompt that is measured")
        parts[name] = battles.select(new)
    parts["votes"], calibration = hold_out(parts["votes"], arguments.calibrate, arguments.seed)
    parts["own"], validation = hold_out_units(parts["own"], arguments.validate, arguments.seed)
    parts = {name: take_share(battles, arguments.share, arguments.seed) for name, battles in parts.items()}
    sizes = {name: round(arguments.share * vars(arguments)[name]) for name in ("easy", "hard", "mixed", "by_models")}
    sizes["rounds"] = arguments.rounds
    curriculum = build_curriculum(**parts, sizes=sizes, longest=arguments.longest, seed=arguments.seed)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, battles in (("train", curriculum), ("calibrate", calibration), ("validate", validation)):
        if not len(battles):
            continue
        battles.to_parquet(path := arguments.output_dir / f"{name}.parquet")
        print(f"Written: {len(battles)} battles, {path}")


if __name__ == "__main__":
    main()
