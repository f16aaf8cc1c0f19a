"""Baselines on battles that follow a known rule."""

import numpy as np
import pytest
from datasets import Dataset

from modeling.data.battles import swap_responses
from modeling.evaluation.baselines import estimate_baselines, predict_majority, predict_tfidf
from modeling.evaluation.bootstrap import Resampler

A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def build(rows: list[tuple]) -> Dataset:
    """Battles from (response_a, response_b, label, language)."""
    columns = zip(("response_a", "response_b", "label", "language"), zip(*rows, strict=True), strict=True)
    return Dataset.from_dict({name: list(values) for name, values in columns} | {"id": list(range(len(rows)))})


POLITE = [("please do", "no", A, "en"), ("never", "please wait", B, "en"), ("please", "go away", A, "ko")] * 8
TEST = build(
    [("please sit", "leave", A, "ko"), ("shut up", "please", B, "en"), ("xx", "yyy", TIE, "en"), ("q", "r", A, "fr")]
)
P = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.4, 0.6]])  # a judge's probabilities: right, right, tie, wrong


def test_slot_and_length_rules_by_hand():
    """Rows 1, 2 and 4 are decided. Always a: 2 of 3. Longer: right, wrong, and equal lengths count as a. Shorter:
    wrong, right, and again a."""
    table = estimate_baselines(Resampler(range(4), 100), TEST, P)
    assert {name: row["accuracy"]["value"] for name, row in table.items()} == pytest.approx(
        {"always a": 2 / 3, "longer wins": 2 / 3, "shorter wins": 2 / 3}
    )
    assert table["always a"]["accuracy"]["count"] == 3


def test_each_baseline_has_the_judges_lead_over_it():
    """The judge is right in 2 of 3, always a too. Without the prompts it is right in none."""
    wrong = np.array([[0, 1], [1, 0], [0, 1], [0, 1]], float)
    table = estimate_baselines(Resampler(range(4), 100), TEST, P, answers_alone=wrong)
    assert table["always a"]["difference"]["value"] == 0
    alone = table["answers alone"]
    assert alone["accuracy"]["value"] == 0 and alone["difference"]["value"] == pytest.approx(2 / 3)
    assert alone["log_loss"]["count"] == 4


def test_the_majority_is_the_languages_or_the_overall_one():
    """Korean gives b, English a. French is not in training, so it gets b, which won 3 of 5 battles overall. In POLITE
    English is balanced, so it gets a, which won 16 of 24."""
    train = build([("x", "y", B, "ko")] * 3 + [("x", "y", A, "en")] * 2)
    assert predict_majority(train, TEST).argmax(axis=1).tolist() == [1, 0, 0, 1]
    assert predict_majority(build(POLITE), TEST).argmax(axis=1).tolist() == [0, 0, 0, 0]


def test_tfidf_learns_words_and_swapped_answers_swap_its_probabilities():
    train = build(POLITE)
    p, swapped = predict_tfidf(train, TEST), predict_tfidf(train, swap_responses(TEST))
    assert p[0, 0] > 0.6 and p[1, 1] > 0.6
    assert p[:, ::-1] == pytest.approx(swapped) and p.sum(axis=1) == pytest.approx(1)
    # Swapping the training battles changes nothing.
    assert predict_tfidf(swap_responses(train), TEST) == pytest.approx(p, abs=1e-3)


def test_tfidf_is_fitted_again_for_other_training_battles():
    """The last fit is kept, for reports of many parts."""
    train = build(POLITE)
    first = predict_tfidf(train, TEST)
    reversed_votes = train.map(lambda row: {"label": row["label"][::-1]})
    assert predict_tfidf(reversed_votes, TEST) == pytest.approx(first[:, ::-1], abs=1e-3)
    assert predict_tfidf(train, TEST).tolist() == first.tolist()


def test_learned_baselines_need_training_battles_and_tfidf_has_a_log_loss():
    table = estimate_baselines(Resampler(range(4), 100), TEST, P, build(POLITE))
    assert set(table) == {"always a", "longer wins", "shorter wins", "majority per language", "tf-idf"}
    assert table["tf-idf"]["log_loss"]["count"] == 4 and "log_loss" not in table["longer wins"]
    nothing = estimate_baselines(Resampler(range(4), 100), TEST, P, build([("a", "b", TIE, "en")]))
    assert set(nothing) == {"always a", "longer wins", "shorter wins", "majority per language"}
    assert set(estimate_baselines(Resampler(range(4), 100), TEST, P, build(POLITE).remove_columns("language"))) == {
        *("always a", "longer wins", "shorter wins", "tf-idf")
    }


def test_training_battles_of_one_class_are_enough_because_both_orders_are_used():
    p = predict_tfidf(build([("please do", "no", A, "en")] * 5), TEST)
    assert np.isfinite(p).all() and p[0, 0] > 0.5
