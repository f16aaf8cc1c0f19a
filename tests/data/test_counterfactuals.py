"""Counterfactual pairs: made of other battles, and kept in one batch."""

from collections import Counter

import pytest
from datasets import Dataset

from modeling.data.battles import load_battles
from modeling.data.counterfactuals import make_counterfactuals, number_units
from tests.helpers import SAMPLES


@pytest.fixture(scope="module")
def battles() -> Dataset:
    return load_battles(SAMPLES / "train.jsonl")


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
    with pytest.raises(ValueError, match=r"--counterfactual_pairs 3: expected so many pairs .* found 0"):
        make_counterfactuals(Dataset.from_dict(rows), 3)
    with pytest.raises(ValueError, match="found 0"):
        make_counterfactuals(Dataset.from_dict(rows | {"label": [[0.5, 0.5]] * 2}), 1)


def test_similar_prompts_meet_once_each():
    """Of six prompts on two subjects, only those on one subject meet."""
    numbers, kinds = ("two", "ten", "six"), ("long", "deep", "wide")
    rows = [(f"How do I boil {what} eggs?", f"Boil the {what} eggs well.", "No.", 1.0) for what in numbers]
    rows += [(f"Which river is {how}?", "No.", f"The {how} river is there.", 0.0) for how in kinds]
    battles = build(rows)
    made = make_counterfactuals(battles, 6, similar=2)
    met = [frozenset(made["prompt"][place : place + 2]) for place in range(0, 12, 2)]
    assert len(set(met)) == 6
    assert all(len({prompt.split()[0] for prompt in pair}) == 1 for pair in met)
    with pytest.raises(ValueError, match="found 6"):
        make_counterfactuals(battles, 7, similar=2)


def build(rows: list[tuple]) -> Dataset:
    """Battles from (prompt, response_a, response_b, probability of a)."""
    prompts, a, b, p = (list(values) for values in zip(*rows, strict=True))
    labels = [[value, 1 - value] for value in p]
    return Dataset.from_dict({"prompt": prompts, "response_a": a, "response_b": b, "label": labels})


def test_a_pair_shares_a_number():
    """Not repeated votes on one prompt, nor ties, nor answers in other places."""
    rows = [
        ("p", "1", "2", 1.0),
        ("q", "3", "4", 1.0),
        ("r", "1", "2", 0.2),
        ("q", "3", "4", 0.0),
        ("s", "2", "1", 0.0),
    ]
    numbers = number_units(build([*rows, ("t", "1", "2", 0.5)]))
    assert numbers[0] == numbers[2] and len(set(numbers)) == 5


def test_many_battles_with_the_same_answers_are_paired_two_by_two():
    """With one winner they are no pairs at all: a batch of them would hold one label only."""
    same = [(f"p{n}", "yes", "no", 1.0) for n in range(20)]
    assert len(set(number_units(build(same)))) == 20
    other = [(f"q{n}", "yes", "no", 0.0) for n in range(6)]
    units = Counter(number_units(build([*same, *other])))
    assert sorted(units.values()) == [1] * 14 + [2] * 6
