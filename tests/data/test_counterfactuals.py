"""Counterfactual pairs: made of other battles, and kept in one batch."""

from collections import Counter

import pytest
from datasets import Dataset

from modeling.data.battles import load_battles
from modeling.data.counterfactuals import make_counterfactuals, number_units
from tests.helpers import DEMO_DATA


@pytest.fixture(scope="module")
def battles() -> Dataset:
    return load_battles(DEMO_DATA / "train.jsonl")


def test_made_pairs_have_the_answers_that_won_and_each_is_right_once(battles):
    won = {
        (battle["language"], battle["prompt"]): battle["response_a" if battle["label"][0] > 0.5 else "response_b"]
        for battle in battles
        if battle["label"][0] != 0.5
    }
    made = make_counterfactuals(battles, 50)
    assert len(made) == 100 and len(set(made["id"])) == 100
    for first, second in zip(list(made)[::2], list(made)[1::2], strict=True):
        assert first["prompt"] != second["prompt"] and first["language"] == second["language"]
        assert [first[name] for name in ("response_a", "response_b")] == [
            second[name] for name in ("response_a", "response_b")
        ]
        for battle in (first, second):
            right = battle["response_a" if battle["label"] == [1.0, 0.0] else "response_b"]
            assert won[battle["language"], battle["prompt"]] == right
        assert first["label"] == second["label"][::-1]
    # Neither place is right more often, and every language takes part.
    assert 15 <= sum(label[0] == 1 for label in made["label"][::2]) <= 35
    assert len(Counter(made["language"])) > 12
    again, other = (make_counterfactuals(battles, 50, seed)["prompt"][:] for seed in (0, 1))
    assert again == made["prompt"][:] != other


def test_battles_that_cannot_be_paired_are_an_error():
    rows = {"prompt": ["x", "x"], "response_a": ["1", "2"], "response_b": ["3", "4"], "label": [[1.0, 0.0]] * 2}
    with pytest.raises(ValueError, match="--counterfactual_pairs 3: expected two decided battles of one language"):
        make_counterfactuals(Dataset.from_dict(rows), 3)
    with pytest.raises(ValueError, match="found too few"):
        make_counterfactuals(Dataset.from_dict(rows | {"label": [[0.5, 0.5]] * 2}), 1)


def test_a_pair_shares_a_number_and_repeated_votes_do_not():
    rows = [("p", "1", "2"), ("q", "3", "4"), ("r", "1", "2"), ("q", "3", "4"), ("s", "2", "1")]
    columns = zip(("prompt", "response_a", "response_b"), zip(*rows, strict=True), strict=True)
    numbers = number_units(Dataset.from_dict({name: list(values) for name, values in columns}))
    assert numbers[0] == numbers[2] and len(set(numbers)) == 4
