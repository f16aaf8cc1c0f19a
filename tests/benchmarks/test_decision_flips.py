"""What the study of flips relies on: swapped requests, cut texts, and shares counted by hand."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers.decision", reason="this transformers has no decision models yet")

from benchmarks import RESULTS
from benchmarks.studies.decision_flips import (
    PLAIN_TEMPLATE,
    ask_judge,
    ask_pipeline,
    cut_battle,
    draw_battles,
    format_table,
    measure_flips,
    read_p_a,
    write_request,
)
from modeling.data.battles import DEMO_FOLDER, TEXTS
from tests.benchmarks import describe_default_judge
from tests.helpers import REPOSITORY


def test_flips_are_counted():
    """Four battles won by a. The first answer changes in the second and the third; p changes by 0, 0.3, 0.4, 0.1."""
    p_a = np.array([[0.9, 0.6, 0.3, 0.2], [0.9, 0.3, 0.7, 0.1]])
    found = measure_flips(p_a, np.array([[1.0, 0.0]] * 4))
    assert (found["flips"]["value"], found["flips"]["count"]) == (0.5, 4)
    assert found["flips"]["low"] < 0.5 < found["flips"]["high"]
    assert found["change"]["value"] == pytest.approx(0.2)
    assert (found["accuracy"]["value"], found["accuracy_swapped"]["value"]) == (0.5, 0.5)


def test_a_swapped_request_asks_about_the_same_answers(sample_battles):
    """A decider that always prefers the first option by 0.8 gives a 0.8 and, swapped, 0.2."""
    battle = sample_battles[0]
    for swapped, p_a in ((False, 0.8), (True, 0.2)):
        request = write_request(battle, swapped)
        (question,) = request["questions"].values()
        assert question["criteria"]["second" if swapped else "first"] == battle["response_a"]
        assert request["state"] == battle["prompt"]
        answers = {name: {"probabilities": {"first": 0.8, "second": 0.2}} for name in request["questions"]}
        assert read_p_a(answers, swapped) == p_a


def test_the_judge_s_verdicts_do_not_flip(judge, sample_battles):
    """Both orders are read; one order alone does change the probability."""
    both, one = ask_judge(judge, [{name: row[name] for name in TEXTS} for row in sample_battles.select(range(6))])
    assert both[0] == pytest.approx(both[1], abs=1e-5) and both[0] == pytest.approx(one.mean(0), abs=1e-6)
    assert np.abs(one[0] - one[1]).max() > 0.01


def test_a_pipeline_on_a_random_model_flips(plain_backbone, sample_battles):
    """It reads the letters A and B, whose logits hardly depend on which answer has which letter."""
    battles = [{name: row[name][:40] for name in TEXTS} for row in sample_battles.select(range(6))]
    p_a = ask_pipeline(plain_backbone, battles)
    assert p_a.shape == (2, 6) and ((p_a > 0) & (p_a < 1)).all()
    assert ((p_a[0] >= 0.5) != (p_a[1] >= 0.5)).any()
    assert len(np.unique(p_a)) == p_a.size  # each request was read


def test_texts_are_cut_to_the_room(tokenizer, sample_battles):
    """By half a room each for two long answers; a short battle stays as it is. Decoding may split a letter's bytes."""
    battle = {"prompt": "ab", "response_a": "cd" * 200, "response_b": "ef" * 200, "label": [1, 0]}
    cut = cut_battle(battle, tokenizer, 60)
    counts = [len(tokenizer(cut[name], add_special_tokens=False)["input_ids"]) for name in TEXTS]
    assert sum(counts) <= 60 and counts[1] == counts[2] > 20
    assert all(battle[name].startswith(cut[name]) for name in TEXTS) and cut["label"] == [1, 0]
    assert cut_battle(battle, tokenizer, 5000) == battle


def test_the_draw_depends_on_the_seed_alone():
    file = [str(DEMO_FOLDER / "test.jsonl")]
    first, same, other = ([battle["id"] for battle in draw_battles(file, 10, seed)] for seed in (0, 0, 1))
    assert first == same != other and len(set(first)) == 10


def test_a_base_without_chat_template_is_asked_in_plain_text(tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "A or B?"}],
        chat_template=PLAIN_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<bos>A or B?\n\nAnswer:\n"


def test_the_documented_table_is_the_measured_one():
    results = json.loads((RESULTS / "decision_flips.json").read_text())
    assert results["members"] == describe_default_judge()
    found = results["deciders"]
    assert format_table(found) in (REPOSITORY / "docs" / "decisions.md").read_text(encoding="utf-8")
    assert found["default judge"]["flips"]["value"] == 0
