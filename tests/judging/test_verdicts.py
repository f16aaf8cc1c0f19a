"""A verdict is too close to call where the answers are equal, the orders disagree, or p is near 1/2."""

import json

import pandas as pd
import pytest

from modeling.judging.verdicts import CLOSE_BAND, DISAGREE, EQUAL, WITHIN_BAND, average_by_order, explain_verdict

BATTLE = {"response_a": "yes", "response_b": "no"}


def build_row(**passes: float) -> pd.DataFrame:
    """One row of `Judge.predict` whose p_a is the mean of the passes."""
    p_a = sum(passes.values()) / len(passes)
    row = {"id": "x", "p_a": p_a, "p_b": 1 - p_a, "winner": "model_a" if p_a >= 0.5 else "model_b"}
    row |= {f"p_a_{name}": p for name, p in passes.items()} | {"tokens": 9}
    return pd.DataFrame([row | {"cut_prompt": 0, "cut_response_a": 3, "cut_response_b": 0}])


def test_the_orders_are_means_over_the_members():
    """Members may be called anything: the order is what a column ends in."""
    row = build_row(x_ab=0.2, x_ba=0.4, y_ba_ab=0.6, y_ba_ba=0.9)
    assert {order: p_a[0] for order, p_a in average_by_order(row).items()} == {"ab": 0.4, "ba": pytest.approx(0.65)}
    verdict = explain_verdict(row, BATTLE)
    assert verdict.readings["ab"] == 0.4 and verdict.order_mattered and verdict.close == DISAGREE
    assert verdict.cut == {"prompt": 0, "response_a": 3, "response_b": 0} and verdict.tokens == 9
    assert json.loads(json.dumps(verdict.to_dict()))["margin"] == pytest.approx(2 * 0.525 - 1)


@pytest.mark.parametrize(
    ("p_ab", "p_ba", "close"),
    [
        (0.6, 0.7, None),
        (0.3, 0.2, None),
        (0.5 + CLOSE_BAND, 0.5 + CLOSE_BAND, None),
        (0.5 + CLOSE_BAND / 2, 0.5 + CLOSE_BAND, WITHIN_BAND),
        (0.5 - CLOSE_BAND / 2, 0.5 - CLOSE_BAND, WITHIN_BAND),
        (0.1, 0.8, DISAGREE),
        (0.49, 0.51, DISAGREE),
    ],
)
def test_close_calls_say_why(p_ab, p_ba, close):
    verdict = explain_verdict(build_row(m_ab=p_ab, m_ba=p_ba), BATTLE)
    assert (verdict.close, verdict.order_mattered) == (close, (p_ab >= 0.5) != (p_ba >= 0.5))


def test_swapping_the_answers_does_not_change_closeness():
    for p_ab, p_ba in ((0.6, 0.7), (0.49, 0.52), (0.2, 0.9)):
        one = explain_verdict(build_row(m_ab=p_ab, m_ba=p_ba), BATTLE)
        other = explain_verdict(build_row(m_ab=1 - p_ba, m_ba=1 - p_ab), BATTLE)
        assert one.close == other.close and one.margin == pytest.approx(other.margin)


def test_equal_answers_are_close_whatever_the_passes_say():
    row = build_row(m_ab=0.9, m_ba=0.1)
    assert explain_verdict(row, {"response_a": "same", "response_b": "same"}).close == EQUAL


def test_a_judge_that_reads_one_order_has_one_reading():
    verdict = explain_verdict(build_row(m_ab=0.7), BATTLE)
    assert verdict.readings == {"ab": 0.7} and not verdict.order_mattered and verdict.close is None


@pytest.mark.parametrize(
    ("p_ab", "p_ba", "said"),
    [
        (0.6, 0.664, "model_a wins, 63.2%"),
        (0.3, 0.2, "model_b wins, 75.0%"),
        (0.49, 0.528, f"too close to call, model_a 50.9%. {DISAGREE}"),
        (0.49, 0.49, f"too close to call, model_b 51.0%. {WITHIN_BAND}"),
    ],
)
def test_a_verdict_is_one_line_of_text(p_ab, p_ba, said):
    verdict = explain_verdict(build_row(m_ab=p_ab, m_ba=p_ba), BATTLE)
    assert str(verdict) == said and repr(verdict) == f"Verdict({said})"
