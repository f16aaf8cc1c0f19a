"""OpenRLHF's protocol of rewards: what is compared, what is refused, and the example of docs/rewards.md."""

import json
import re
import shlex

import pytest

from modeling.data.text import is_blank
from modeling.judging.rewards import Comparisons
from modeling.serving.requests import PairLimits
from modeling.serving.reward_requests import parse_rewards
from modeling.serving.validation import InvalidRequest
from tests.helpers import HOSTILE_TEXTS, REPOSITORY
from tests.serving.test_api import send
from tests.serving.test_api import served as served  # a fixture

LIMITS = PairLimits(max_characters=100, max_pairs=3)


def ask(completions=("4", "Five."), prompt="2 + 2? ", **more) -> dict:
    return {
        "query": [prompt + text for text in completions],
        "prompts": [prompt] * len(completions),
        "labels": [""] * len(completions),
        **more,
    }


def refuse(body) -> str:
    with pytest.raises(InvalidRequest) as error:
        parse_rewards(body, LIMITS)
    return str(error.value)


@pytest.mark.parametrize("labels", [None, ["", ""], [None, None]])
def test_completions_are_compared_within_their_prompt(labels):
    expected = Comparisons([("2 + 2? ", "4", None), ("2 + 2? ", "Five.", None)])
    assert parse_rewards(ask(labels=labels), LIMITS).battles == expected.battles


def test_a_label_is_what_its_completion_is_compared_with():
    found = parse_rewards(ask(labels=["Four.", "Four."]), LIMITS)
    assert [{row["response_a"], row["response_b"]} for row in found.battles] == [{"4", "Four."}, {"Five.", "Four."}]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "expected an object"),
        ({}, "expected this key"),
        (ask(["4"]), "expected another completion of its prompt, or a label"),
        (ask(list("1234")), "expected at most 3 pairs; found 6"),
        (ask(list("1234567")), "expected at most 6; found 7"),
        (ask(prompts=["2 + 2? "]), "expected one for each of 2 queries; found 1"),
        (ask(labels=["4"]), "expected one for each of 2 queries; found 1"),
        (ask(prompts=["2 + 2? ", "Why?"]), "expected its prompt at the beginning"),
        (ask(["4", "x" * 100]), "at most 100 characters"),
        (ask(query=["2 + 2? 4", 5]), "expected text; found a number"),
        (ask(labels=[5, ""]), "expected text; found a number"),
        (ask(labels=[0, ""]), "expected text; found a number"),
        (ask(labels=[False, ""]), "expected text; found true or false"),
        (ask(query=[]), "expected at least one entry"),
        (ask(query=None), "expected a list; found null"),
    ],
)
def test_what_cannot_be_compared_is_refused(body, said):
    assert said in refuse(body)


def test_the_server_answers_with_the_judges_rewards(served, judge):
    (answer,) = send(served, ask(), path="/get_reward")
    p = judge.predict(parse_rewards(ask(), LIMITS).battles, readings="both")["p_a"][0]
    rewards = pytest.approx([p, 1 - p], abs=1e-6)
    assert answer.json() == {"rewards": rewards, "scores": rewards, "extra_logs": {}}


@pytest.mark.parametrize("text", [text for text in HOSTILE_TEXTS if not is_blank(text)])
def test_hostile_texts_are_compared(served, text):
    bodies = [ask([text, "4"]), ask(["4", "5"], prompt=f"{text} "), ask(["4"], labels=[text])]
    assert [answer.status_code for answer in send(served, bodies[0], path="/get_reward")] == [200]
    for body in bodies[1:]:
        (answer,) = send(served, body, path="/get_reward")
        assert answer.status_code == 200 and 0 < answer.json()["rewards"][0] < 1


def test_the_example_of_the_documentation_is_answered(served):
    page = (REPOSITORY / "docs" / "rewards.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^curl .*?(?=\n```)", page, re.M | re.S)
    words = shlex.split(command.replace("\\\n", " "))
    (answer,) = send(served, json.loads(words[words.index("-d") + 1]), path=f"/{words[2].partition('/')[2]}")
    assert answer.status_code == 200 and len(answer.json()["rewards"]) == 2
    shape = json.dumps({key: value and ["..."] for key, value in answer.json().items()}).replace('"..."', "...")
    assert shape in page
