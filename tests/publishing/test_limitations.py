"""The sentences about a judge's limitations follow from its metrics and their intervals."""

import json

import pandas as pd
import pytest

from modeling.evaluation.report import build_report as build_real_report
from modeling.publishing.cards import write_card
from modeling.publishing.limitations import count_languages, describe_cuts, describe_languages, describe_limitations


def estimate(value: float | None, half: float = 0.05, count: int = 65) -> dict:
    ends = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1], "count": count}


def build_report(accuracy=None, first=None, length=None, languages=(), **baselines: float) -> dict:
    """A report of a good judge without biases, except for what is given."""
    return {
        "accuracy": accuracy or estimate(0.7, 0.02),
        "baselines": {name.replace("_", " "): {"accuracy": estimate(share)} for name, share in baselines.items()},
        "position_bias": {"mean_p_first": first or estimate(0.5)},
        "length_bias": {"correlation": length or estimate(0.0)},
        "tables": {"language": [{"name": str(at), "battles": number} for at, number in enumerate(languages)]},
    }


def list_limitations(**changes) -> list[str]:
    """The sentences about a report, except the one about its size."""
    return [sentence for sentence in describe_limitations(build_report(**changes)) if "evaluated on" not in sentence]


@pytest.mark.parametrize(
    "share, half, said",
    [
        (0.55, 0.06, "The interval of its accuracy, 0.490 to 0.610, includes 0.5"),
        (0.50, 0.05, "The interval of its accuracy, 0.450 to 0.550, includes 0.5"),
        (0.40, 0.05, "Its accuracy is below 0.5, at most 0.450"),
        (0.40, 0.11, "The interval of its accuracy, 0.290 to 0.510, includes 0.5"),
    ],
)
def test_an_accuracy_that_may_be_chance_is_called_so(share, half, said):
    (sentence,) = list_limitations(accuracy=estimate(share, half))
    assert sentence.startswith(said)


@pytest.mark.parametrize(
    "half, baseline, relation, doubted",
    [
        (0.01, 0.7, "is below", False),
        (0.06, 0.7, "is below", True),
        (0.06, 0.62, "is above", True),
        (0.06, 0.65, "equals", True),
    ],
)
def test_a_baseline_that_is_not_beaten_is_named(half, baseline, relation, doubted):
    (sentence,) = list_limitations(accuracy=estimate(0.65, half), longer_wins=baseline)
    assert sentence == (
        f'Its accuracy, 0.650, {relation} that of the baseline "longer wins", {baseline:.3f}'
        f"{', but the interval includes that value: no difference is shown' if doubted else ''}."
    )


def test_a_judge_that_beats_every_baseline_and_has_no_bias_has_no_such_limitation():
    """0.7 plus or minus 0.02 is above 0.5 and 0.6."""
    assert list_limitations(always_a=0.5, longer_wins=0.6, languages=(30, 400)) == []


def test_the_size_of_the_evaluation_is_said_in_points():
    """An interval from 0.68 to 0.72 is 2 points either way."""
    (sentence,) = describe_limitations(build_report())
    assert "on 65 battles without ties" in sentence and "2.0 points either way" in sentence


@pytest.mark.parametrize("first, side", [(0.6, "first"), (0.4, "second"), (0.51, None), (None, None)])
def test_position_bias_is_named_where_its_interval_leaves_one_half_out(first, side):
    limitations = list_limitations(first=estimate(first, 0.02))
    assert limitations == (
        [f"It favours the answer shown {side}: mean probability of the first answer {first:.3f}."] if side else []
    )


@pytest.mark.parametrize("length, side", [(0.3, "longer"), (-0.3, "shorter"), (0.01, None), (None, None)])
def test_length_bias_is_named_where_its_interval_leaves_zero_out(length, side):
    limitations = list_limitations(length=estimate(length, 0.05))
    assert limitations == (
        [f"It favours the {side} answer: correlation with the relative length {length:.3f}."] if side else []
    )


def test_rows_of_few_battles_are_called_uncertain():
    (sentence,) = list_limitations(languages=(30, 29, 4))
    assert sentence.startswith("2 of the 3 languages have fewer than 30 evaluation battles")


def test_an_evaluation_of_ties_alone_has_no_accuracy():
    assert list_limitations(accuracy=estimate(None, count=0), longer_wins=0.6) == [
        "No evaluation battle had a winner, so there is no accuracy."
    ]


def test_without_a_report_nothing_is_claimed():
    (sentence,) = describe_limitations(None)
    assert "not known" in sentence


def test_languages_are_counted_over_sources():
    data = [{"languages": {"en": 3}}, {"languages": {"en": 1, "ko": 2}}, {"languages": None}, {}]
    assert count_languages(data) == {"en": 4, "ko": 2}
    assert next(describe_languages(count_languages(data))).startswith("It was trained on 2 languages (en 4, ko 2).")
    assert next(describe_languages({"en": 4})).startswith("It was trained on one language, en.")
    assert "not recorded" in next(describe_languages({}))


def test_cuts_are_said_from_the_encodings_and_counted_from_the_report():
    report = {"tables": {"cut": [{"name": "whole", "battles": 61}, {"name": "cut", "battles": 11}]}}
    (sentence,) = describe_cuts([{"max_length": 384}, {"max_length": 512}, {"max_length": 384}], report)
    assert "longer than 384 or 512 tokens" in sentence and sentence.endswith("Evaluation battles: whole 61, cut 11.")
    assert "Evaluation" not in next(describe_cuts([{"max_length": 384}], None)) and [*describe_cuts([{}], None)] == []


@pytest.mark.parametrize("count", [1, 3, 5, 6])
def test_an_evaluation_of_a_few_prompts_makes_a_card(count, tmp_path, sample_battles):
    """Below six prompts there are no intervals; the end of a training is no time to stumble over that."""
    battles = sample_battles.select(range(count))
    verdicts = pd.DataFrame({"id": battles["id"][:], "p_a": [0.6] * count, "p_a_ab_ab": [0.6] * count})
    (tmp_path / "member.json").write_text(json.dumps({"orientation": "ab", "labels": ["a", "b"], "training": {}}))
    write_card(tmp_path, build_real_report(verdicts, battles, draws=20))
    accuracy = json.loads((tmp_path / "evaluation.json").read_text())["accuracy"]
    said = "with too few prompts for an accuracy interval" in (tmp_path / "README.md").read_text()
    assert said == (accuracy["low"] is None)
