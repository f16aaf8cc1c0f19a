"""The decision protocols, against transformers' own parser and OpenAI's own types, without a model."""

import json
import math
import re
import shlex
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations, permutations

import pytest
from openai.types import Decision as OpenAIResponse

from modeling.judging.ranking import list_pairs, score_answers
from modeling.serving.decisions import (
    MAX_DECISION_QUESTIONS,
    MAX_SYSTEMONE_QUESTIONS,
    InvalidRequest,
    compute_confidence,
    parse_decision,
    parse_systemone,
)
from modeling.serving.requests import PairLimits
from tests.helpers import HOSTILE_INPUTS, HOSTILE_TEXTS, REPOSITORY

LIMITS = PairLimits(max_characters=1000, max_pairs=100)
PARSERS = [parse_systemone, parse_decision]
PROMPT, ANSWERS = "What is 2 + 2?", {"one": "4", "two": "Five.", "three": "2 + 2 is 4."}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "2 + 2?"},
]


@pytest.fixture(scope="module")
def parse_questions() -> Callable:
    """transformers' own parser, with labels for 256 options; by default it has 26."""
    theirs = pytest.importorskip("transformers.decision", reason="this transformers has no decision models yet")
    config = theirs.DecisionConfig(labels={"choice": [str(number) for number in range(256)]})
    return lambda questions: theirs.parse_questions(questions, config)


def choice(options=ANSWERS, **more) -> dict:
    return {"type": "choice", "criteria": dict(options), **more}


def compared(responses=ANSWERS, prompt=PROMPT) -> dict:
    return {"prompt": prompt, "responses": dict(responses)}


def systemone(question=choice(), state=PROMPT, **more) -> dict:  # noqa: B008  (nothing changes it)
    return {"state": state, "questions": {"best": question}, **more}


def asked(options=ANSWERS, **more) -> dict:
    choices = [{"value": value, "description": text} for value, text in options.items()]
    return {"type": "choice", "instructions": "Which is best?", "choices": choices, **more}


def decision(*questions, input=PROMPT, **more) -> dict:
    return {"model": "any", "input": input, "questions": list(questions) or [asked()], **more}


def as_json(data) -> list[dict]:
    """The input that holds a prompt with its answers."""
    return [{"role": "user", "content": [{"type": "input_json", "data": data}]}]


def read(battle) -> float:
    """Stands for a judge that reads both orders: p(a, b) = 1 - p(b, a), different for each pair of texts."""
    score_a, score_b = (sum(map(ord, battle[name])) % 101 / 20 for name in ("response_a", "response_b"))
    return 1 / (1 + math.exp(score_b - score_a))


def answer(parse, body, tokens: int = 7) -> dict:
    found = parse(body, LIMITS, "the judge")
    return found.answer([read(battle) for battle in found.battles], tokens)


def refuse(parse, body, limits=LIMITS) -> dict[tuple, str]:
    """The messages of a refusal by their place, after a look at its shape."""
    with pytest.raises(InvalidRequest) as error:
        parse(body, limits, "the judge")
    for fault in json.loads(json.dumps(error.value.detail, ensure_ascii=False).encode()):  # as a server sends them
        assert set(fault) == {"loc", "msg", "type"} and fault["loc"][0] == "body" and fault["msg"] in str(error.value)
        assert len(fault["msg"]) < 700
    return {tuple(fault["loc"][1:]): fault["msg"] for fault in error.value.detail}


# --- System One -------------------------------------------------------------------------------------------------------


def test_a_choice_between_answers(parse_questions):
    """Three pairs; strengths by the judge's probabilities; the response as transformers' own `Question.answer`."""
    found = parse_systemone(systemone(), LIMITS, "the judge")
    assert {(battle["response_a"], battle["response_b"]) for battle in found.battles} == set(
        combinations(sorted(ANSWERS.values()), 2)
    )
    assert [battle["id"] for battle in found.battles] == [0, 1, 2]
    assert {battle["prompt"] for battle in found.battles} == {PROMPT}
    p_first = dict(zip(list_pairs(3), map(read, found.battles), strict=True))
    p = score_answers(list(ANSWERS.values()), p_first).p_best
    response = found.answer([read(battle) for battle in found.battles], 7)
    (theirs,) = parse_questions({"best": choice()})
    expected = theirs.answer(p)
    for name in ("probabilities", "confidence"):
        assert response["answers"]["best"].pop(name) == pytest.approx(expected.pop(name))
    assert response["answers"] == {"best": expected}
    assert (response["model"], response["usage"]) == ("the judge", {"input_tokens": 7, "output_tokens": 0})
    probabilities = answer(parse_systemone, systemone())["answers"]["best"]["probabilities"]
    assert list(probabilities) == list(ANSWERS) and sum(probabilities.values()) == pytest.approx(1)


def test_two_answers_have_exactly_the_pair_s_probability():
    found = parse_systemone(systemone(choice({"x": "B", "y": "A"})), LIMITS, "the judge")
    (battle,) = found.battles
    probabilities = found.answer([0.3], 1)["answers"]["best"]["probabilities"]
    assert (battle["response_a"], battle["response_b"]) == ("A", "B")
    assert probabilities == {"x": 0.7, "y": 0.3}


@pytest.mark.parametrize("num_answers", [2, 3])
def test_the_order_of_the_options_changes_no_probability(num_answers):
    """Not even in the last digit."""
    options = list(ANSWERS.items())[:num_answers]
    found = [answer(parse_systemone, systemone(choice(order)))["answers"]["best"] for order in permutations(options)]
    assert all(each == found[0] for each in found) and found[0]["confidence"] > 0.1


def test_answers_with_the_same_text_are_equally_probable():
    body = systemone(choice({"one": "4", "two": "Five.", "again": "4"}))
    assert len(parse_systemone(body, LIMITS, "").battles) == 1
    p = answer(parse_systemone, body)["answers"]["best"]["probabilities"]
    odds = answer(parse_systemone, systemone(choice({"one": "4", "two": "Five."})))["answers"]["best"]["probabilities"]
    assert p["one"] == p["again"] and sum(p.values()) == pytest.approx(1)
    assert p["one"] / p["two"] == pytest.approx(odds["one"] / odds["two"])
    equal = systemone(choice({"one": "4", "two": "4"}))
    assert parse_systemone(equal, LIMITS, "").battles == []
    assert answer(parse_systemone, equal)["answers"]["best"] == {
        "type": "choice", "choice": "one", "confidence": 0.0, "probabilities": {"one": 0.5, "two": 0.5},
    }  # fmt: skip


def test_answers_in_the_state_are_named_by_the_question():
    """A choice of all answers is that of the answers themselves; one of two has their pair alone."""
    named = systemone(choice(dict.fromkeys(ANSWERS)), compared())
    assert answer(parse_systemone, named) == answer(parse_systemone, systemone())
    pair = parse_systemone(systemone(choice(dict.fromkeys(("three", "one"))), compared()), LIMITS, "")
    assert [(battle["response_a"], battle["response_b"]) for battle in pair.battles] == [("2 + 2 is 4.", "4")]


def test_a_noul_is_the_probability_of_the_first_response():
    pair = {"one": "4", "two": "Five."}
    p = answer(parse_systemone, systemone(choice(pair)))["answers"]["best"]["probabilities"]
    for responses in (pair, dict(reversed(pair.items()))):
        body = systemone({"type": "noul", "instructions": "Is the first one better?"}, compared(responses))
        expected = {"type": "noul", "noul": p[next(iter(responses))]}
        assert answer(parse_systemone, body)["answers"]["best"] == expected


def test_a_pair_of_several_questions_is_read_once():
    """3 pairs of the first question, of which the second and the third have one each."""
    questions = {"all": choice(dict.fromkeys(ANSWERS))}
    questions |= {name: choice({first: None, "three": None}) for name, first in (("x", "one"), ("y", "two"))}
    body = {"state": compared(), "questions": questions}
    assert len(parse_systemone(body, LIMITS, "").battles) == 3
    assert list(answer(parse_systemone, body)["answers"]) == ["all", "x", "y"]


@pytest.mark.parametrize("state", [TALK, {"messages": TALK}])
def test_a_conversation_becomes_one_prompt_as_in_training(state):
    """As `join_messages` has it for chosen and rejected; content may be text parts. A single message is plain text."""
    expected = "[User] Hi\n\n[Assistant] Yes?\n\n[User] 2 + 2?"
    assert {battle["prompt"] for battle in parse_systemone(systemone(state=state), LIMITS, "").battles} == {expected}
    part = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    assert parse_systemone(systemone(state=part), LIMITS, "").battles[0]["prompt"] == PROMPT
    inside = systemone(choice(dict.fromkeys(ANSWERS)), compared(prompt=state))
    assert {battle["prompt"] for battle in parse_systemone(inside, LIMITS, "").battles} == {expected}


def test_the_model_is_the_request_s_own():
    assert answer(parse_systemone, systemone(model="mine"))["model"] == "mine"


ACCEPTED = [
    choice(),
    choice(instructions="Which one?"),
    choice(instructions=None),
    choice({"": "4", "ü": "5"}),
]
NOT_TRANSFORMERS = [
    {"type": "rank", "criteria": {"one": "4", "two": "5"}},
    {"criteria": {"one": "4", "two": "5"}},
    "choice",
    None,
    ["choice"],
    {"type": "choice"},
    {"type": "choice", "criteria": {}},
    {"type": "choice", "criteria": ["4", "5"]},
    {"type": "choice", "criteria": "4"},
    {"type": "choice", "criteria": {"one": 4, "two": 5}},
    choice(instructions=4),
    choice(criterion={}),
    {"type": "noul", "criteria": {"maybe": "x"}},
]
NOT_A_JUDGE = [
    {"type": "score", "criteria": ["bad", "good"]},
    {"type": "noul", "instructions": "Is it right?"},  # in a state without responses
    choice({"one": "4"}),
    choice({"one": "4", "two": None}),
    choice({"one": "4", "two": " \u200b\n"}),
    choice({"one": "4", "two": {"text": "5"}}),
    choice(instructions=[{"type": "text", "text": "Which?"}]),
]


@pytest.mark.parametrize("question", ACCEPTED)
def test_what_transformers_accepts_is_answered(question, parse_questions):
    assert parse_questions({"best": question})[0].type == "choice"
    assert set(answer(parse_systemone, systemone(question))["answers"]) == {"best"}


@pytest.mark.parametrize("question", NOT_TRANSFORMERS)
def test_what_transformers_refuses_is_refused(question, parse_questions):
    with pytest.raises(ValueError):
        parse_questions({"best": question})
    assert all(place[:2] == ("questions", "best") for place in refuse(parse_systemone, systemone(question)))


@pytest.mark.parametrize("question", NOT_A_JUDGE)
def test_what_only_a_decision_model_answers_is_refused_with_the_way_out(question, parse_questions):
    assert parse_questions({"best": question})
    messages = refuse(parse_systemone, systemone(question))
    assert all(place[:2] == ("questions", "best") for place in messages)
    assert all("expected" in message and "found" in message for message in messages.values())


def test_a_question_for_a_decision_model_is_told_what_a_judge_can_be_asked():
    score = refuse(parse_systemone, systemone({"type": "score", "criteria": ["bad", "good"]}))
    assert "which answer to a prompt people prefer" in score["questions", "best", "type"]
    assert '"criteria": {"one": <answer>' in score["questions", "best", "type"]
    noul = refuse(parse_systemone, systemone({"type": "noul"}))["questions", "best"]
    assert "two responses" in noul and '"responses": {"one"' in noul
    # transformers' own example
    state = {"message": "WIN a FREE iPhone, click here!"}
    message = refuse(parse_systemone, systemone(state=state))["state",]
    assert "Did you mean messages?" in message and '"criteria": {"one": <answer>' in message


def test_names_in_the_question_must_be_those_of_the_state():
    body = systemone(choice({"one": None, "tow": None, "three": "2 + 2 is 4."}), compared())
    messages = refuse(parse_systemone, body)
    assert set(messages) == {("questions", "best", "criteria", name) for name in ("tow", "three")}
    assert "Did you mean two?" in messages["questions", "best", "criteria", "tow"]
    assert "(one, two, three)" in messages["questions", "best", "criteria", "tow"]
    misspelt = refuse(parse_systemone, systemone({"type": "noul"}, {"prompt": PROMPT, "response": ANSWERS}))
    assert set(misspelt) == {("state", "response"), ("state", "responses")}
    first = refuse(parse_systemone, systemone({"type": "noul"}, compared()))  # of three
    assert "found 3" in first["questions", "best"]
    described = {"type": "noul", "criteria": {"true": "The second one is better", "false": None}}
    assert ("questions", "best", "criteria") in refuse(parse_systemone, systemone(described, compared()))


def test_all_faults_are_in_one_answer():
    body = {
        "sate": PROMPT,
        "questions": {"x": choice({"one": "", "two": 2}, instruction="?"), "y": {"type": "score"}},
        "assets": {"img-1": {}},
    }
    messages = refuse(parse_systemone, body)
    assert set(messages) == {
        ("sate",), ("state",), ("assets",), ("questions", "x", "instruction"), ("questions", "x", "criteria", "one"),
        ("questions", "x", "criteria", "two"), ("questions", "y", "type"),
    }  # fmt: skip
    assert messages["sate",].endswith("Did you mean state?")
    assert messages["questions", "x", "instruction"].endswith("Did you mean instructions?")


# --- OpenAI's Decisions -----------------------------------------------------------------------------------------------


def validate(response: dict) -> OpenAIResponse:
    """The response as the openai package reads it, with every type checked, and nothing that it would not know."""
    found = OpenAIResponse.model_validate(json.loads(json.dumps(response)), strict=True)
    assert found.model_dump() == response
    return found


def test_the_response_is_openai_s():
    """The same probabilities as System One's for the same answers."""
    body = decision(asked(name="first"), asked({"one": "4", "two": "Five."}))
    found = validate(answer(parse_decision, body))
    first, second = found.answers
    assert (first.name, second.name, found.model) == ("first", None, "the judge")
    theirs = answer(parse_systemone, systemone())["answers"]["best"]
    assert {each.value: each.probability for each in first.probabilities} == theirs["probabilities"]
    assert (first.choice, first.confidence) == (theirs["choice"], theirs["confidence"])
    assert [each.value for each in second.probabilities] == ["one", "two"]
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens) == (7, 0, 7)


def test_a_value_without_description_is_the_answer():
    body = decision({"type": "choice", "instructions": "?", "choices": [{"value": text} for text in ANSWERS.values()]})
    (found,) = validate(answer(parse_decision, body)).answers
    described = answer(parse_decision, decision())["answers"][0]
    assert [each.probability for each in found.probabilities] == [
        each["probability"] for each in described["probabilities"]
    ]
    assert found.choice in ANSWERS.values()


def test_values_may_be_booleans():
    """The text "true" is another value."""
    body = decision(asked({True: "4", "true": "Five.", False: "2 + 2 is 4."}))
    (found,) = validate(answer(parse_decision, body)).answers
    assert [each.value for each in found.probabilities] == [True, "true", False]
    bare = decision({"type": "choice", "choices": [{"value": True}, {"value": False}]})
    assert set(refuse(parse_decision, bare)) == {("questions", 0, "choices", place, "description") for place in (0, 1)}


def test_a_predicate_is_the_probability_of_the_first_response():
    pair = {"one": "4", "two": "Five."}
    predicate = {"type": "predicate", "name": "first", "instructions": "Is the first response better?"}
    body = decision(
        predicate, {**asked(), "choices": [{"value": "two"}, {"value": "one"}]}, input=as_json(compared(pair))
    )
    assert len(parse_decision(body, LIMITS, "").battles) == 1
    found, chosen = validate(answer(parse_decision, body)).answers
    assert found.probability == chosen.probabilities[1].probability != chosen.probabilities[0].probability
    refused = refuse(parse_decision, decision(predicate))["questions", 0]
    assert "two responses" in refused and "input_json" in refused


def test_messages_are_read_as_system_one_reads_them():
    """Parts of one message are paragraphs; developer is OpenAI's newer name for system."""
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi."}, {"type": "input_text", "text": "There."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes?"}]},
        {"role": "user", "content": "2 + 2?"},
    ]
    plain = [
        {"role": role, "content": text}
        for role, text in (
            ("system", "Be brief."),
            ("user", "Hi.\n\nThere."),
            ("assistant", "Yes?"),
            ("user", "2 + 2?"),
        )
    ]
    ours = parse_decision(decision(input=parts), LIMITS, "").battles
    assert ours == parse_systemone(systemone(state=plain), LIMITS, "").battles


def user(*parts: dict, role="user") -> list[dict]:
    """An input of one message with parts."""
    return [{"role": role, "content": list(parts)}]


@pytest.mark.parametrize(
    ("input", "place"),
    [
        (user({"type": "input_image", "image_url": "data:,"}), (0, "content", 0, "type")),
        (
            user({"type": "input_json", "data": compared()}, {"type": "input_text", "text": "x"}),
            (0, "content", 0, "type"),
        ),
        (user({"type": "refusal", "refusal": "No."}, role="assistant"), (0, "content", 0, "type")),
        (user({"type": "input_text"}), (0, "content", 0, "text")),
        (user("x"), (0, "content", 0, "type")),
        ([{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}], (0, "type")),
        ([{"role": "tool", "content": "x"}], (0,)),
        ([{"role": "user", "content": 1}], (0,)),
        ([{"role": "user", "contents": "x"}], (0, "contents")),
        (["x"], (0,)),
        ([], ()),
        ({"messages": TALK}, ()),
        (as_json({"question": "x"}), (0, "content", 0, "data", "question")),
    ],
)
def test_other_inputs_are_refused_where_they_are(input, place):
    assert ("input", *place) in refuse(parse_decision, decision(input=input))


@pytest.mark.parametrize(
    ("question", "place"),
    [
        ({"type": "score", "instructions": "?", "levels": [{"label": "bad"}]}, ("type",)),
        (asked({"one": "4"}), ("choices",)),
        ({"type": "choice", "instructions": "?", "choices": [{"value": 1}, {"value": "x"}]}, ("choices", 0, "value")),
        ({"type": "choice", "instructions": "?", "choices": [{"value": "x"}] * 2}, ("choices", 1, "value")),
        ({"type": "choice", "instructions": "?", "choices": {"one": "4"}}, ("choices",)),
        ({"type": "choice", "instructions": "?", "choices": ["4", "5"]}, ("choices", 0)),
        ({**asked(), "instructions": 4}, ("instructions",)),
        ({**asked(), "name": 4}, ("name",)),
        ({**asked(), "lables": 4}, ("lables",)),
        ("choice", ("type",)),
    ],
)
def test_other_questions_are_refused_where_they_are(question, place):
    assert ("questions", 1, *place) in refuse(parse_decision, decision(asked(), question))


# --- whatever is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("body", [None, 1, math.nan, "x", [], [{}], True, {}])
def test_a_body_that_is_no_request(parse, body):
    assert refuse(parse, body)


def put(value) -> list[tuple]:
    """Requests with a value at each place where there may be one."""
    first = next(iter(asked()["choices"]))
    return [
        *((parse_systemone, body) for body in (
            systemone(value), systemone(state=value), systemone(assets={"x": value}), systemone(model=value),
            {"state": PROMPT, "questions": value}, systemone(choice({"one": value, "two": "5"})),
            systemone({**choice(), "criteria": value}), systemone(choice(instructions=value)),
            systemone({**choice(), "type": value}), systemone(state=compared({"one": value, "two": "5"})),
            systemone(state={"prompt": value, "responses": ANSWERS}), systemone(state={"messages": value}),
            systemone(state={"prompt": PROMPT, "responses": value}), systemone(state=[{"role": value, "content": "x"}]),
            systemone(state=[{"role": "user", "content": value}]), systemone({"type": "noul", "criteria": value}),
        )),
        *((parse_decision, body) for body in (
            decision(value), decision(input=value), decision(model=value), decision(input=[value]),
            {"model": "x", "input": PROMPT, "questions": value}, decision({**asked(), "choices": value}),
            decision({**asked(), "choices": [value, first]}), decision(asked({"one": value, "two": "5"})),
            decision(asked(name=value)), decision({**asked(), "choices": [{"value": value}, first]}),
            decision(input=as_json(value)), decision(input=[{"role": "user", "content": [value]}]),
            decision(input=[{"role": "user", "content": [{"type": "input_text", "text": value}]}]),
        )),
    ]  # fmt: skip


DEEP = {"x": "y"}
for _ in range(50_000):  # no parser would let it through, but nothing here may recurse either
    DEEP = {"x": [DEEP]}
VALUES = [math.nan, math.inf, -1, 10**400, True, DEEP, [DEEP], {"": None}, [None], "x" * 1_000_000, "\ud800", "\x00"]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_any_value_anywhere_is_answered_or_refused(value):
    """The rest of the body is sound. Both can be sent as JSON in UTF-8, and a refusal is short, whatever was sent."""
    for parse, body in put(value):
        try:
            found = parse(body, LIMITS, "the judge")
        except InvalidRequest as error:
            sent = json.dumps(error.detail, ensure_ascii=False, allow_nan=False).encode()
            assert 0 < len(sent) < 10_000
        else:
            response = found.answer([read(battle) for battle in found.battles], 1)
            sent = json.dumps(response, ensure_ascii=False, allow_nan=False).encode()
            assert len(sent) < 5000


@pytest.mark.parametrize("text", [*HOSTILE_TEXTS, *HOSTILE_INPUTS])
def test_hostile_texts_reach_the_judge_unchanged(text):
    if not text.strip():
        assert refuse(parse_systemone, systemone(choice({"one": text, "two": "5"})))
        return
    for body in (systemone(choice({text: text, "two": "5"}), state=text), systemone(state=text, model=text)):
        found = parse_systemone(body, LIMITS, "the judge")
        assert {battle["prompt"] for battle in found.battles} == {text}
    body = decision({"type": "choice", "choices": [{"value": text}, {"value": "5"}]}, input=text)
    assert set(parse_decision(body, LIMITS, "").battles[0].values()) == {0, text, "5"}
    assert validate(answer(parse_decision, body)).answers[0].probabilities[0].value == text


def test_lone_surrogates_are_replaced_in_texts_and_refused_in_names():
    """Two names might else become one, and no response can hold them."""
    (battle,) = parse_systemone(systemone(choice({"x": "\ud800 4", "y": "5"}), "\udfff?"), LIMITS, "").battles
    assert battle == {"id": 0, "prompt": "\ufffd?", "response_a": "5", "response_b": "\ufffd 4"}
    messages = refuse(parse_systemone, {"state": PROMPT, "questions": {"\ud800": choice({"\udc00": "4", "y": "5"})}})
    assert set(messages) == {("questions", "\ufffd"), ("questions", "\ufffd", "criteria", "\ufffd")}
    assert refuse(parse_decision, decision({"type": "choice", "choices": [{"value": "\ud800"}, {"value": "5"}]}))


def test_limits():
    """The longest text and the most pairs pass: 14 options make 91 pairs, 15 make 105; 14 and 5 make 91 + 10."""
    long = "x" * LIMITS.max_characters
    assert answer(parse_systemone, systemone(choice({"one": long, "two": "5"}), long))
    messages = refuse(parse_systemone, systemone(choice({"one": long + "x", "two": "5"}), long + "x"))
    assert set(messages) == {("state",), ("questions", "best", "criteria", "one")}
    talk = [{"role": "user", "content": long}, {"role": "assistant", "content": "x"}]
    assert set(refuse(parse_systemone, systemone(state=talk))) == {("state",)}

    def options(count):
        return {str(number): f"Answer {number}" for number in range(count)}

    assert len(parse_systemone(systemone(choice(options(14))), LIMITS, "").battles) == 91
    for found, questions in ((105, [options(15)]), (101, [options(14), options(5)]), (32_640, [options(256)])):
        message = refuse(parse_decision, decision(*map(asked, questions)))["questions",]
        assert "at most 100 pairs" in message and f"found {found:,}" in message
    assert ("questions",) in refuse(parse_systemone, systemone(choice(options(256))))


def test_the_protocols_own_numbers_of_questions():
    def repeat(count: int, parse) -> dict:
        if parse is parse_decision:
            return decision(*[asked({"x": "4", "y": "5"})] * count)
        return {"state": PROMPT, "questions": dict.fromkeys(map(str, range(count)), choice({"x": "4", "y": "5"}))}

    for parse, most in zip(PARSERS, (MAX_SYSTEMONE_QUESTIONS, MAX_DECISION_QUESTIONS), strict=True):
        limits = PairLimits(max_characters=1000, max_pairs=most)
        assert len(parse(repeat(most, parse), limits, "").battles) == 1
        assert set(refuse(parse, repeat(most + 1, parse), limits)) == {("questions",)}


@pytest.mark.parametrize("num_options", [2, 3, 256])
def test_confidence_is_transformers(num_options, parse_questions):
    for exponent in (0, 1, 3):
        p = [(number + 1) ** exponent for number in range(num_options)]
        p = [each / sum(p) for each in p]
        (theirs,) = parse_questions({"best": choice(dict.fromkeys(map(str, range(num_options))))})
        assert compute_confidence(p) == pytest.approx(theirs.answer(p)["confidence"])
    assert compute_confidence([1.0, 0.0]) == 1 and compute_confidence([0.5, 0.5]) == 0


# --- docs/decisions.md ------------------------------------------------------------------------------------------------


class Endpoints(BaseHTTPRequestHandler):
    """Both protocols over HTTP, as far as clients need it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        parse = {"/v1/systemone": parse_systemone, "/v1/decisions": parse_decision}[self.path]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        sent = json.dumps(answer(parse, body)).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture(scope="module")
def url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoints) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def list_examples(language: str) -> list[str]:
    text = (REPOSITORY / "docs" / "decisions.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_python_examples_run(url):
    found: dict = {}
    for code in list_examples("python"):
        assert "http://127.0.0.1:7860" in code
        exec(code.replace("http://127.0.0.1:7860", url), found)
    p = {text: read({"response_a": "4", "response_b": text}) for text in ("Five.", "I do not know.")}
    assert found["best"]["choice"] in ("one", "two", "three") and len(found["best"]["probabilities"]) == 3
    assert found["p_first"] == found["probability"] == pytest.approx(p["Five."])
    assert [each.value for each in found["chosen"].probabilities] == ["one", "two"]
    assert found["chosen"].probabilities[0].probability == pytest.approx(p["Five."])


def test_the_curl_examples_run(url):
    commands = [code for code in list_examples("bash") if code.startswith("curl")]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace("\\\n", " ").replace("$URL", url))
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        assert len(json.loads(done.stdout)["answers"]) == 1
