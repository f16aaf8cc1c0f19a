"""The Python door: one pair, many battles in any form, what a judge says about itself, and nothing else is printed."""

import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from modeling.data.battles import load_battles
from modeling.judging.calibration import Calibration
from modeling.judging.judge import Judge
from tests.helpers import REPOSITORY, SAMPLES

PAIR = ("Why is the sky blue?", "Because blue light scatters most.", "No idea.")
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]


def drop_ids(verdicts: pd.DataFrame) -> pd.DataFrame:
    return verdicts.drop(columns="id")


def test_every_form_of_the_same_battles_gets_the_same_verdicts(judge, sample_battles):
    """With an outcome or without, since no judge reads it."""
    battles = sample_battles.select(range(6))
    expected = judge.predict(battles)
    assert list(expected["id"]) == battles["id"][:]
    for form in (battles.to_pandas(), battles.data.table, battles.to_list()):
        pd.testing.assert_frame_equal(judge.predict(form), expected)
    tuples = [(row["prompt"], row["response_a"], row["response_b"]) for row in battles]
    found = judge.predict(tuples)
    assert list(found["id"]) == list(range(6))
    pd.testing.assert_frame_equal(drop_ids(found), drop_ids(expected))
    pd.testing.assert_frame_equal(judge.predict(tuples[0]), judge.predict(tuples[:1]))


def test_a_row_that_a_file_may_not_have_is_refused(judge):
    with pytest.raises(ValueError, match=r"Battles: battle 1: prompt, response_a and response_b must not be null"):
        judge.predict([PAIR, (*PAIR[:2], None)])


def test_blank_texts_that_were_kept_are_read(judge, tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_text('{"prompt": "p", "response_a": "a", "response_b": " "}\n', encoding="utf-8")
    assert len(judge.predict(load_battles(path, blank_policy="keep"))) == 1


def test_comparing_is_predicting_one_battle(judge):
    row = judge.predict(PAIR).iloc[0]
    verdict = judge.compare(*PAIR)
    assert (verdict.winner, verdict.p_a, verdict.p_b) == (row["winner"], row["p_a"], row["p_b"])
    mirrored = judge.compare(PAIR[0], PAIR[2], PAIR[1])
    assert (mirrored.p_a, mirrored.margin) == (pytest.approx(verdict.p_b), pytest.approx(verdict.margin))


def test_a_conversation_is_compared_as_its_joined_text(judge):
    joined = "[User] Hi\n\n[Assistant] Yes?\n\n[User] Why?"
    assert judge.compare(TALK, *PAIR[1:]) == judge.compare(joined, *PAIR[1:])


def test_texts_that_look_like_lists_of_turns_are_compared_as_they_are(judge):
    """In a file whose rows are all like this they would be turns."""
    lists = ('["x", "y"]', '["1", "2"]', '["3", "4"]')
    assert judge.compare(*lists).tokens != judge.compare("x y", "1 2", "3 4").tokens
    assert judge.compare(*lists).tokens == judge.predict([lists, PAIR])["tokens"][0]


def test_options_of_a_comparison_are_those_of_a_prediction(judge):
    row = judge.predict(PAIR, readings="own").iloc[0]
    assert judge.compare(*PAIR, readings="own").p_a == row["p_a"] != judge.compare(*PAIR).p_a
    with pytest.raises(ValueError, match="must not be null or blank"):
        judge.compare(PAIR[0], " ", "b")


def test_a_judge_says_what_it_is(judge):
    lines = repr(judge).splitlines()
    assert lines[0] == "Judge of 2 members, not calibrated" and len(lines) == 3
    for line, member in zip(lines[1:], judge.members, strict=True):
        prints = f"{member.name} {member.fingerprint}: .* on gemma2_preference \\({member.facts.base_fingerprint}\\)"
        assert re.search(prints, line) and "reads ab and ba in float32" in line
    calibrated = repr(Judge(judge.members[:1], "own", Calibration("temperature", 80, 1.5))).splitlines()
    assert calibrated[0] == "Judge of 1 member, calibrated by temperature, fitted on 80 battles"
    assert "reads ab in float32" in calibrated[1]


def test_nothing_is_written_beside_the_answer(members):
    """Neither bars, as it is quick, nor warnings; TQDM_DELAY only allows for a slow machine."""
    folders, file = [str(folder) for folder in members.values()], str(SAMPLES / "test.jsonl")
    program = f"""
from modeling import Judge, load_battles
judge = Judge.from_pretrained({folders})
print(judge.compare(*{PAIR}))
assert len(judge.predict(load_battles({file!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=os.environ | {"TQDM_DELAY": "60"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr == "" and re.fullmatch(
        r"(model_[ab] wins, |too close to call, model_[ab] )\d\d\.\d%.*\n", done.stdout
    )
