"""The demo's battles: the answers alone do not decide them, and nothing is trained on what is measured."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, concatenate_datasets

from modeling.data.battles import DEMO_FOLDER, load_battles
from modeling.data.near_duplicates import DuplicateIndex, normalize_text
from modeling.evaluation.baselines import predict_tfidf
from modeling.evaluation.metrics import find_hits

FOLDS = 5


@pytest.fixture(scope="module")
def train() -> Dataset:
    return load_battles(DEMO_FOLDER / "train.jsonl", require_labels=True)


@pytest.fixture(scope="module")
def test() -> Dataset:
    return load_battles(DEMO_FOLDER / "test.jsonl", require_labels=True)


@pytest.mark.parametrize(("part", "pairs", "singles"), [("test", 72, 108), ("train", 828, 612)])
def test_a_pair_has_the_same_answers_and_opposite_winners(part, pairs, singles, request):
    found: dict[str, list[dict]] = {}
    battles = request.getfixturevalue(part)
    for battle in battles:
        if battle["counterfactual_pair"]:
            found.setdefault(battle["counterfactual_pair"], []).append(battle)
    assert len(found) == pairs and len(battles) == 2 * pairs + singles
    for first, second in found.values():
        assert [first[name] == second[name] for name in ("response_a", "response_b", "prompt")] == [True, True, False]
        assert first["label"] == second["label"][::-1]


def count_wins(rows: pd.DataFrame) -> tuple[int, float]:
    """In how many battles answer a wins, and in how many the longer answer; equally long ones count half."""
    a_wins = np.array([label[0] == 1 for label in rows["label"]])
    lengths = rows[["response_a", "response_b"]].map(len).to_numpy()
    longer = np.sign(lengths[:, 0] - lengths[:, 1]) * np.where(a_wins, 1, -1)
    return a_wins.sum(), (1 + longer).sum() / 2


def test_each_language_of_the_test_part_is_balanced(test):
    """Neither "always a" nor "longer wins" is right more often than half of the time, in any language."""
    rows = test.to_pandas()
    assert len(rows) == 252 and rows["language"].nunique() == 18
    assert abs(count_wins(rows[rows["counterfactual_pair"].isna()])[1] - 54) <= 2
    for _, part in rows.groupby("language"):
        single = part[part["counterfactual_pair"].isna()]
        a_wins, longer_wins = count_wins(single)
        assert (len(part), len(single), a_wins) == (14, 6, 3) and abs(longer_wins - 3) <= 1
        assert set(part["reason"]) >= {"on_topic", "correct", "instruction"}


def test_each_language_of_the_training_part_is_balanced(train):
    rows = train.to_pandas()
    for _, part in rows.groupby("language"):
        single = part[part["counterfactual_pair"].isna()]
        assert (len(part), len(single)) == (126, 34)
        assert all(abs(count - 17) <= 3 for count in count_wins(single))


def test_no_training_battle_asks_what_a_test_battle_asks(train, test):
    index = DuplicateIndex()
    index.add(test["prompt"][:])
    assert not [prompt for prompt in train["prompt"] if prompt in index]
    for part in (train, test):
        assert set(part["source"]) == {"written for bothways"}
        # The unit of a battle is its prompt: no two ask the same.
        assert len({normalize_text(prompt) for prompt in part["prompt"]}) == len(part)
    assert not set(train["id"]) & set(test["id"])


def test_answers_alone_are_at_chance_on_pairs_and_little_better_elsewhere(train, test):
    """A function of the two answers predicts the same in both battles of a pair: it is right on exactly one of them."""
    battles = concatenate_datasets([train, test])
    paired = np.array(battles["kind"][:]) == "pair"
    assert paired.tolist() == [pair is not None for pair in battles["counterfactual_pair"]]
    names = [pair or id for pair, id in zip(battles["counterfactual_pair"], battles["id"], strict=True)]
    groups = np.unique(names, return_inverse=True)[1]  # the two of a pair are held out together
    folds = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % FOLDS
    p = np.empty((len(battles), 2))
    for fold in range(FOLDS):
        held_out = np.flatnonzero(folds == fold)
        p[held_out] = predict_tfidf(battles.select(np.flatnonzero(folds != fold)), battles.select(held_out))
    hits = find_hits(p, np.array(battles["label"][:]))
    assert hits[paired].mean() == 0.5
    assert hits[~paired].mean() < 0.62
    assert Counter(battles["kind"][:])["pair"] >= len(battles) / 2
