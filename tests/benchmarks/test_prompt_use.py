"""The battles that the answers alone do not decide: their balance, and that this is so."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from benchmarks import REPOSITORY
from modeling.data.battles import load_battles
from modeling.data.near_duplicates import DuplicateIndex, normalize_text
from modeling.evaluation.baselines import predict_tfidf
from modeling.evaluation.metrics import find_hits

FOLDER = REPOSITORY / "benchmarks" / "studies"
FOLDS = 5


@pytest.fixture(scope="module")
def battles() -> Dataset:
    return load_battles(FOLDER / "prompt_use.jsonl")


@pytest.fixture(scope="module")
def training() -> Dataset:
    return load_battles(FOLDER / "prompt_training.jsonl")


@pytest.mark.parametrize(("part", "count"), [("battles", 180), ("training", 720)])
def test_a_pair_has_the_same_answers_and_opposite_winners(part, count, request):
    pairs: dict[str, list[dict]] = {}
    for battle in request.getfixturevalue(part):
        if battle["counterfactual_pair"]:
            pairs.setdefault(battle["counterfactual_pair"], []).append(battle)
    assert len(pairs) == count
    for first, second in pairs.values():
        assert [first[name] == second[name] for name in ("response_a", "response_b", "prompt")] == [True, True, False]
        assert first["label"] == second["label"][::-1]


def test_each_language_is_balanced(battles):
    """Neither "always a" nor "longer wins" is right more often than half of the time, in any language."""
    rows = battles.to_pandas()
    assert len(rows) == 720 and len({normalize_text(prompt) for prompt in rows["prompt"]}) == 720
    for _, part in rows.groupby("language"):
        single = part[part["counterfactual_pair"].isna()]
        a_wins = np.array([label[0] == 1 for label in single["label"]])
        lengths = single[["response_a", "response_b"]].map(len).to_numpy()
        longer_wins = np.where(a_wins, lengths[:, 0] > lengths[:, 1], lengths[:, 1] > lengths[:, 0])
        assert len(part) == 40 and len(single) == 20 and a_wins.sum() == 10
        assert longer_wins.sum() == 10
        assert Counter(part["reason"]) == {"on_topic": 13, "correct": 13, "instruction": 12, "complete": 2}


def test_the_training_battles_are_balanced_and_ask_what_no_measured_battle_asks(battles, training):
    rows = training.to_pandas()
    for _, part in rows.groupby("language"):
        single = part[part["counterfactual_pair"].isna()]
        a_wins = np.array([label[0] == 1 for label in single["label"]])
        lengths = single[["response_a", "response_b"]].map(len).to_numpy()
        longer_wins = np.where(a_wins, lengths[:, 0] > lengths[:, 1], lengths[:, 1] > lengths[:, 0])
        assert len(part) == 100 and len(single) == 20 and abs(a_wins.sum() - 10) <= 2
        assert abs(longer_wins.sum() - 10) <= 2
    index = DuplicateIndex()
    index.add(battles["prompt"][:])
    assert not [prompt for prompt in training["prompt"] if prompt in index]


@pytest.mark.parametrize("part", ["battles", "training"])
def test_answers_alone_are_at_chance_on_pairs_and_little_better_elsewhere(part, request):
    """A function of the two answers predicts the same in both battles of a pair: it is right on exactly one of them."""
    battles = request.getfixturevalue(part)
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
