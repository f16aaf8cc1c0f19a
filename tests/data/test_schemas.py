"""Laws of schemas.py: every schema of the README's table gives the same columns, and a bad row gets a clear error.

The rows have the shape of the public data sets, but were written for this test.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from modeling.data.battles import load_battles
from modeling.data.cells import RowError
from modeling.data.conversations import check_messages, is_prompt_of, join_messages, join_turns, split_transcript
from modeling.data.schemas import SCHEMAS, is_chosen_first
from tests.helpers import REPOSITORY, write_rows

TWO_TURNS = {"prompt": "[Turn 1] Hi\n\n[Turn 2] And?", "response_a": "[Turn 1] a1\n\n[Turn 2] a2"}
TWO_TURNS["response_b"] = "[Turn 1] b1\n\n[Turn 2] b2"
TWO_QUESTIONS = "[User] Hi\n\n[Assistant] Hello\n\n[User] And?"
PLAIN = {"id": "x", "prompt": "Hi", "response_a": "a1", "response_b": "b1"}
A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def talk(*texts: str, parts: bool = False) -> list[dict]:
    """Returns messages of user and assistant in turn, with `parts` as text parts like lmarena 140k's."""
    contents = [[{"type": "text", "text": text, "image": None}] if parts else text for text in texts]
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def build_lmsys(**fields) -> dict:
    turns = {"prompt": ["Hi", "And?"], "response_a": ["a1", "a2"], "response_b": ["b1", "b2"]}
    texts = {name: json.dumps(fields.get(name, value)) for name, value in turns.items()}
    outcome = {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
    return {"id": 30192, "model_a": "m1", "model_b": "m2", **outcome, **fields, **texts}


def build_arena(**fields) -> dict:
    sides = {f"conversation_{side}": talk("Hi", f"{side}1", "And?", f"{side}2") for side in "ab"}
    return {"id": "x", "model_a": "m1", "winner": "model_b", **sides, "language": "en", **fields}


def build_pair(**fields) -> dict:
    return {"prompt": "Hi", "chosen": "good", "rejected": "bad", **fields}


def load_rows(folder: Path, *rows: dict, suffix: str = ".jsonl", **policy) -> list[dict]:
    return load_battles(write_rows(folder / f"battles{suffix}", list(rows)), **policy).to_list()


def strip(battle: dict) -> dict:
    return {name: battle[name] for name in ("prompt", "response_a", "response_b", "label") if name in battle}


# --- each schema of the table -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(("winner", "label"), [("model_a", A), ("model_b", B), ("tie", TIE)])
def test_wsdm(tmp_path, suffix, winner, label):
    (battle,) = load_rows(tmp_path, {**PLAIN, "winner": winner, "language": "Korean"}, suffix=suffix)
    assert battle == {**PLAIN, "label": label, "language": "Korean"}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(("column", "label"), [("winner", [0.25, 0.75]), ("label", [0.25, 0.75]), ("p_a", 0.25)])
def test_soft_labels(tmp_path, suffix, column, label):
    assert load_rows(tmp_path, {**PLAIN, column: label}, suffix=suffix) == [{**PLAIN, "label": [0.25, 0.75]}]


def test_a_winner_takes_precedence_over_p_a_unless_the_schema_is_forced(tmp_path):
    row = {**PLAIN, "winner": "model_a", "p_a": 0.8}
    assert load_rows(tmp_path, row) == [{**PLAIN, "label": A, "p_a": 0.8}]
    assert load_rows(tmp_path, row, schema="p_a") == [{**PLAIN, "label": [0.8, pytest.approx(0.2)]}]
    both = {**PLAIN, "winner": "model_a", "label": [0.0, 1.0]}
    with pytest.raises(ValueError, match=r"found both winner and label.*--schema winner or --schema label"):
        load_rows(tmp_path, both)
    assert load_rows(tmp_path, both, schema="label") == [{**PLAIN, "label": B}]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize(("column", "label"), [("winner_model_a", A), ("winner_model_b", B), ("winner_tie", TIE)])
def test_lmsys_55k(tmp_path, suffix, column, label):
    flags = {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 0, column: 1}
    (battle,) = load_rows(tmp_path, build_lmsys(**flags), suffix=suffix)
    assert strip(battle) == {**TWO_TURNS, "label": label}
    assert set(battle) == {"id", *TWO_TURNS, "label", "model_a", "model_b"}


def test_lmsys_turns_that_are_null_are_empty_and_one_turn_is_plain_text(tmp_path):
    """The data set has both. Its lone surrogates are inside the JSON inside the csv."""
    row = build_lmsys(prompt=["Hi", "x\ud83d"], response_a=[None, "a2"], response_b=["b1", None])
    (battle,) = load_rows(tmp_path, row, suffix=".csv")
    assert battle["response_a"] == "[Turn 1] \n\n[Turn 2] a2" and battle["prompt"] == "[Turn 1] Hi\n\n[Turn 2] x\ufffd"
    row = build_lmsys(prompt=["Hi"], response_a=["[1, 2]"], response_b=["b1"])
    assert strip(load_rows(tmp_path, row)[0]) == {**strip(PLAIN), "response_a": "[1, 2]", "label": A}
    with pytest.raises(ValueError, match="battle 30192: prompt, response_a and response_b must not be null or blank"):
        load_rows(tmp_path, build_lmsys(response_a=[None, " "]))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_lmsys_without_winners_is_recognised_by_its_texts(tmp_path, caplog, suffix):
    """As in its test.csv, and as lists in a parquet file."""
    row = {name: value for name, value in build_lmsys().items() if not name.startswith("winner")}
    (battle,) = load_rows(tmp_path, row, suffix=suffix)
    assert strip(battle) == TWO_TURNS
    assert "lists of turns, so it is read as lmsys without outcomes; pass --schema unlabelled" in caplog.text
    assert load_rows(tmp_path, row, suffix=suffix, schema="unlabelled")[0]["prompt"] == '["Hi", "And?"]'
    if suffix != ".csv":
        row |= {name: json.loads(row[name]) for name in TWO_TURNS}
        assert strip(load_rows(tmp_path, row, suffix=suffix)[0]) == TWO_TURNS


@pytest.mark.parametrize(
    "odd",
    [{"prompt": "Hi"}, {"response_b": "[b"}, {"response_a": "[1, 2]"}, {"response_a": '["a1"]'}, {"prompt": "[]"}],
)
def test_plain_texts_are_not_taken_for_turns_because_some_look_like_lists(tmp_path, odd):
    row = {name: value for name, value in build_lmsys().items() if not name.startswith("winner")}
    first, second = load_rows(tmp_path, row, {**row, "id": 2, **odd})
    assert first["prompt"] == '["Hi", "And?"]' and strip(second) == {**strip(row), **odd}
    with pytest.raises(ValueError, match=r"found lists in 2 of its first 3 rows\. Pass --schema lmsys to"):
        load_rows(tmp_path, row, {**row, "id": 2, **odd}, {**row, "id": 3})


@pytest.mark.parametrize("column", ["winner_model_a", "winner_model_b", "winner_tie"])
def test_lmsys_without_one_of_its_winner_columns_does_not_lose_its_labels(tmp_path, column):
    row = {name: value for name, value in build_lmsys().items() if name != column}
    with pytest.raises(ValueError, match=f"missing column {column}; found id"):
        load_rows(tmp_path, row)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("winner", "label"), [("model_a", A), ("model_b", B), ("tie", TIE), ("tie (bothbad)", TIE), ("both_bad", TIE)]
)
def test_lmarena_100k(tmp_path, suffix, winner, label):
    row = build_arena(winner=winner)
    row["question_id"] = row.pop("id")
    (battle,) = load_rows(tmp_path, row, suffix=suffix)
    both_bad = winner in ("tie (bothbad)", "both_bad")
    assert battle == {"id": "x", **TWO_TURNS, "label": label, "both_bad": both_bad, "model_a": "m1", "language": "en"}


def test_lmarena_140k_has_its_texts_in_parts_and_a_system_message_goes_before_the_prompt(tmp_path):
    sides = {f"conversation_{side}": talk("Hi", f"{side}1", parts=True) for side in "ab"}
    assert strip(load_rows(tmp_path, build_arena(**sides))[0]) == {**strip(PLAIN), "label": B}
    system = {"role": "system", "content": "Be brief."}
    sides = {name: [system, *messages] for name, messages in sides.items()}
    assert load_rows(tmp_path, build_arena(**sides))[0]["prompt"] == "[System] Be brief.\n\nHi"


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_chosen_and_rejected_texts(tmp_path, suffix):
    rows = [build_pair(id=f"id{row}", source="s") for row in range(200)]
    battles = load_rows(tmp_path, *rows, suffix=suffix)
    for battle in battles:
        answers = [battle["response_a"], battle["response_b"]]
        assert answers[battle["label"].index(1.0)] == "good" and set(answers) == {"good", "bad"}
        assert set(battle) == {"id", "prompt", "response_a", "response_b", "label", "source"}
    first = sum(battle["label"] == A for battle in battles)
    assert 80 <= first <= 120  # 200 fair coins: 100 +- 7
    assert [battle["label"] == A for battle in battles] == [is_chosen_first(row["id"]) for row in rows]


def test_the_side_of_a_pair_never_changes():
    """Another hash would swap the sides of every data set that was ever trained on."""
    assert [is_chosen_first(id) for id in ("a", "b", "c", "d", 1, "1")] == [True, True, True, True, False, False]


def test_orpo_dpo_mix_has_message_lists_and_no_id(tmp_path):
    """The same pair twice is two battles: ids are hashes of the texts, and repeats are numbered."""
    row = {"chosen": talk("Hi", "good"), "rejected": talk("Hi", "bad"), "prompt": "Hi", "question": "Hi"}
    once, twice = load_rows(tmp_path, row, row, suffix=".parquet")
    assert {once["response_a"], once["response_b"]} == {"good", "bad"} and once["prompt"] == "Hi"
    assert len(once["id"]) == 16 and twice["id"] == f"{once['id']}-2"


def test_ultrafeedback_has_prompt_ids_and_several_turns_become_the_prompt(tmp_path):
    context = ("Hi", "Hello", "And?")
    row = {"chosen": talk(*context, "good"), "rejected": talk(*context, "bad"), "prompt": "Hi", "prompt_id": "77"}
    (battle,) = load_rows(tmp_path, {**row, "score_chosen": 8.0})
    assert battle["prompt"] == TWO_QUESTIONS
    assert battle["id"] == "77" and battle["score_chosen"] == 8.0


def test_a_prompt_of_messages_and_answers_of_one_message_each(tmp_path):
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    (battle,) = load_rows(tmp_path, {"id": "x", "prompt": talk("Hi"), **answers})
    assert battle["prompt"] == "Hi" and {battle["response_a"], battle["response_b"]} == {"chosen", "rejected"}


def test_an_answer_that_looks_like_a_list_is_a_text(tmp_path):
    (battle,) = load_rows(tmp_path, build_pair(id="x", chosen="[1, 2]", rejected="[]"))
    assert {battle["response_a"], battle["response_b"]} == {"[1, 2]", "[]"}


def test_hh_rlhf_holds_the_prompt_in_its_transcripts(tmp_path):
    said = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:"
    (battle,) = load_rows(tmp_path, {"chosen": f"{said} good", "rejected": f"{said} bad\n\nreally"})
    assert battle["prompt"] == TWO_QUESTIONS
    assert {battle["response_a"], battle["response_b"]} == {"good", "bad\n\nreally"}


def test_transcripts_are_split_beside_a_prompt_too(tmp_path, caplog):
    said = "\n\nHuman: Hi\n\nAssistant:"
    for prompt in (said, "Hi", "", None):
        (battle,) = load_rows(tmp_path, build_pair(chosen=f"{said} good", rejected=f"{said} bad", prompt=prompt))
        assert battle["prompt"] == "Hi" and {battle["response_a"], battle["response_b"]} == {"good", "bad"}
    assert not caplog.records


def test_a_prompt_that_is_not_in_the_messages_is_counted_and_the_messages_are_used(tmp_path, caplog):
    sides = {name: talk("Hi", "Hello", "And?", name) for name in ("chosen", "rejected")}
    rows = [{"id": id, "prompt": prompt, **sides} for id, prompt in (("x", "And?"), ("y", "Ho"), ("z", None))]
    assert {battle["prompt"] for battle in load_rows(tmp_path, *rows)} == {TWO_QUESTIONS}
    assert "battle 'y': the prompt is not in the messages; the messages were used" in caplog.text


def test_mt_bench_verdicts_on_the_first_turn_are_on_the_first_turn_alone(tmp_path, caplog):
    """Its question_id names the prompt: several battles have it. lmarena's turn is the number of all turns."""
    rows = [build_arena(question_id=81, turn=turn) for turn in (1, 2, None, 5)]
    for row in rows:
        del row["id"]
    battles = load_rows(tmp_path, *rows)
    one = {"prompt": "Hi", "response_a": "a1", "response_b": "b1"}
    assert [strip(battle) for battle in battles] == [{**texts, "label": B} for texts in (one, *[TWO_TURNS] * 3)]
    assert [battle["id"] for battle in battles] == ["81", "81-1", "81-2", "81-3"]
    assert "question_id is the same on several rows, so 3 ids got a number, as 81-1 after 81" in caplog.text
    assert strip(load_rows(tmp_path, {**rows[0], "turn": "1"})[0])["prompt"] == "Hi"  # as csv files hold it
    assert load_rows(tmp_path, {**rows[1], "winner": "tie (inconsistent)"})[0]["label"] == TIE


def test_what_follows_the_judged_turn_may_differ(tmp_path):
    sides = {"conversation_a": talk("Hi", "a1", "And?", "a2"), "conversation_b": talk("Hi", "b1", "Or?", "b2")}
    assert load_rows(tmp_path, build_arena(turn=1, **sides))[0]["prompt"] == "Hi"
    with pytest.raises(ValueError, match="must have the same user turns"):
        load_rows(tmp_path, build_arena(turn=2, **sides))


def build_vote(**fields) -> dict:
    vote = {"model_a_name": "m1", "model_b_name": "m2", "chosen_model_name": "m2", "both_equal": False}
    row = build_arena(**{"conversation_pair_id": "x", **vote, **fields})
    return {name: value for name, value in row.items() if name not in ("id", "winner", "model_a")}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(("chosen", "is_equal", "label"), [("m1", False, A), ("m2", False, B), (None, True, TIE)])
def test_comparia_votes(tmp_path, suffix, chosen, is_equal, label):
    row = build_vote(chosen_model_name=chosen, both_equal=is_equal)
    (battle,) = load_rows(tmp_path, row, suffix=suffix)
    carried = {"model_a_name": "m1", "model_b_name": "m2", "language": "en"}
    assert battle == {"id": "x", **TWO_TURNS, "label": label, **carried}


def build_helpsteer(**fields) -> dict:
    context = talk("Hi", "Hello", "And?")
    row = {"domain": "general", "context": context, "response1": "a1", "response2": "b1", "overall_preference": 0}
    return row | {"individual_preference": [{"score": 1, "reasoning": "r"}]} | fields


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_helpsteer3_preferences_are_soft_labels_and_0_is_a_tie(tmp_path, suffix, caplog):
    """Linear from -3 to 3: p_b = 1/2 + preference / 6."""
    rows = [build_helpsteer(overall_preference=preference) for preference in (-3, -1, 0, 2)]
    battles = load_rows(tmp_path, *rows, suffix=suffix)
    labels = [[1, 0], [2 / 3, 1 / 3], [1 / 2, 1 / 2], [1 / 6, 5 / 6]]
    assert [battle["label"] for battle in battles] == [pytest.approx(label) for label in labels]
    assert {battle["prompt"] for battle in battles} == {TWO_QUESTIONS} and battles[0]["response_b"] == "b1"
    assert len({battle["id"] for battle in battles}) == 4 and "domain" in battles[0]
    assert len(load_rows(tmp_path, *rows, suffix=suffix, tie_policy="drop")) == 3
    assert [record.getMessage() for record in caplog.records if "no column id" in record.getMessage()] == []


def build_shp(**fields) -> dict:
    row = {"post_id": "p", "history": "Hi", "human_ref_A": "a1", "human_ref_B": "b1", "domain": "d"}
    return row | {"score_A": 9, "score_B": 2} | fields


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(("scores", "label"), [((9, 2), A), ((2, 9), B), ((3, 3), TIE)])
def test_shp_prefers_the_comment_with_the_higher_score(tmp_path, suffix, scores, label):
    row = build_shp(**dict(zip(("score_A", "score_B"), scores, strict=True)))
    first, second = load_rows(tmp_path, row, row, suffix=suffix)
    assert first == {"id": "p", "prompt": "Hi", "response_a": "a1", "response_b": "b1", "label": label, "domain": "d"}
    assert second["id"] == "p-1"


def test_score_margins_are_soft_labels_where_they_are_asked_for(tmp_path):
    """1 / (1 + exp(-ln 3)) is 3/4; a pair with equal scores is a tie. The sides are those of the hard labels."""
    margins = (math.log(3), 0, -math.log(3), 5000)
    rows = [build_pair(id=f"x{n}", score_chosen=margin, score_rejected=0.0) for n, margin in enumerate(margins)]
    hard, soft = load_rows(tmp_path, *rows), load_rows(tmp_path, *rows, schema="score_margin")
    for one, other, p in zip(hard, soft, (3 / 4, 1 / 2, 1 / 4, 1), strict=True):
        assert one["response_a"] == other["response_a"] and one["label"] in (A, B)
        assert other["label"][one["label"].index(1)] == pytest.approx(p)
    assert hard[0]["score_rejected"] == soft[0]["score_rejected"] == 0
    with pytest.raises(ValueError, match="missing columns score_chosen, score_rejected; found"):
        load_rows(tmp_path, build_pair(id="x"), schema="score_margin")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize(("column", "label"), [("winner_model_a", A), ("winner_model_b", B), ("winner_tie", TIE)])
def test_plain_texts_with_lmsys_s_winner_columns(tmp_path, suffix, column, label):
    flags = {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 0, column: 1}
    rows = [{**PLAIN, **flags}, {**PLAIN, **flags, "id": "y"}, {**PLAIN, **flags, "id": "z", "response_a": "[1, 2]"}]
    battles = load_rows(tmp_path, *rows, suffix=suffix)
    assert [battle["label"] for battle in battles] == [label] * 3 and battles[2]["response_a"] == "[1, 2]"
    assert battles[0] == {**PLAIN, "label": label}


# --- structure written as text ----------------------------------------------------------------------------------------


def spell(value: object, how: str) -> str:
    """Returns the text of a list as json, str or numpy write it."""
    if how == "json":
        return json.dumps(value)
    return str(value) if how == "python" else str(np.array(value, dtype=object))


@pytest.mark.parametrize("how", ["json", "python", "numpy"])
def test_pairs_in_a_csv_read_as_in_a_parquet_file(tmp_path, how):
    """What pandas writes for a list is Python's text, and for a parquet file's array numpy's, without commas."""
    said = "No, I'm [busy]\n\"now\", {'role': 'x'} \\d"
    sides = {"chosen": talk("Hi", "Hello", "And?", said), "rejected": talk("Hi", "Hello", "And?", "")}
    sides["rejected"][-1]["content"] = "None"
    rows = [{"id": f"p{n}", "prompt": "Hi", **sides} for n in range(4)]
    texts = [row | {name: spell(row[name], how) for name in sides} for row in rows]
    assert load_rows(tmp_path, *texts, suffix=".csv") == load_rows(tmp_path, *rows, suffix=".parquet")


@pytest.mark.parametrize("how", ["json", "python", "numpy"])
@pytest.mark.parametrize("outcome", [{}, {"winner": "model_a"}, {"label": [1.0, 0.0]}, {"p_a": 1.0}])
def test_texts_in_turns_are_joined_in_every_spelling_and_with_any_outcome(tmp_path, caplog, how, outcome):
    turns = {"prompt": ["Hi", "And?"], "response_a": ["a1", "a2"], "response_b": ["b1", None]}
    row = {"id": "1", **{name: spell(texts, how) for name, texts in turns.items()}, **outcome}
    (battle,) = load_rows(tmp_path, row, suffix=".csv")
    expected = {**TWO_TURNS, "response_b": "[Turn 1] b1\n\n[Turn 2] "} | ({"label": A} if outcome else {})
    assert strip(battle) == expected and "lists of turns, so it is read" in caplog.text
    schema = next(iter(outcome), "unlabelled")
    assert load_rows(tmp_path, row, suffix=".csv", schema=schema)[0]["prompt"] == row["prompt"]


def test_a_list_that_is_cut_off_is_an_error_and_not_an_answer(tmp_path):
    """As Excel cuts cells at 32,767 characters."""
    for text in (str(talk("Hi", "Hello"))[:-9], json.dumps(talk("Hi", "Hello"))[:-9], "[{'role': 'user', ... }]"):
        for name in ("chosen", "rejected", "prompt"):
            row = build_pair(id="x") | {name: text}
            with pytest.raises(
                ValueError, match=f"battle 'x': {name} must be text or a list .*; found .*role.*as jsonl"
            ):
                load_rows(tmp_path, row, suffix=".csv")


@pytest.mark.parametrize("how", ["json", "python", "numpy"])
@pytest.mark.parametrize("name", ["prompt", "response_a", "response_b"])
def test_messages_in_a_plain_text_s_place_are_an_error_unless_the_schema_is_named(tmp_path, how, name):
    row = {**PLAIN, "winner": "tie", name: spell(talk("Hi", "Hello"), how)}
    with pytest.raises(ValueError, match=f"battle 'x': {name} must be a text, and no list of mess.*--schema winner to"):
        load_rows(tmp_path, row, suffix=".csv")
    assert load_rows(tmp_path, row, suffix=".csv", schema="winner")[0][name] == row[name]


def test_an_answer_that_is_somebody_s_list_stays_a_text(tmp_path):
    """Dicts without roles, or code that goes on after the list."""
    for text in ("[{'name': 'x'}]", '[{"a": 1}]', "['a', 'b']", "[x for x in y]", "[{'role': 'user'}][0] is a dict"):
        texts = {**PLAIN, "response_a": text, "winner": "tie"}
        assert load_rows(tmp_path, texts)[0]["response_a"] == text
    for text in ("[{'name': 'x'}]", '[{"a": 1}]', "['a' 'b']"):
        (battle,) = load_rows(tmp_path, build_pair(id="x", chosen=text))
        assert text in (battle["response_a"], battle["response_b"])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_prompt_that_is_a_list_of_texts_is_the_user_s_messages(tmp_path, caplog, suffix):
    sides = {name: talk("Hi", "Hello", "And?", name) for name in ("chosen", "rejected")}
    (battle,) = load_rows(tmp_path, {"id": "x", "prompt": ["Hi", "And?"], **sides}, suffix=suffix)
    assert battle["prompt"] == TWO_QUESTIONS and "not in the messages" not in caplog.text
    load_rows(tmp_path, {"id": "x", "prompt": ["Ho"], **sides}, suffix=suffix)
    assert "battle 'x': the prompt is not in the messages" in caplog.text
    assert load_rows(tmp_path, build_pair(id="x", prompt=["Hi"]), suffix=suffix)[0]["prompt"] == "Hi"
    with pytest.raises(ValueError, match=r"battle 'x': prompt must be a list of messages, .*; found 'Hi'"):
        load_rows(tmp_path, build_pair(id="x", prompt=["Hi", "And?"]), suffix=suffix)


def test_the_table_of_schemas_has_a_row_for_each():
    page = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    for name in SCHEMAS:
        assert f"\n| `{name}` |" in page


# --- rows that are not battles ----------------------------------------------------------------------------------------

BAD_ROWS = [
    (build_lmsys(winner_model_b=1), "one of winner_model_a, winner_model_b, winner_tie must be 1", "[1, 1, 0]"),
    (build_lmsys(winner_model_a=0), "must be 1 and the others 0", "[0, 0, 0]"),
    (build_lmsys(winner_tie="?"), "must be 1 and the others 0", "[1, 0, '?']"),
    (build_lmsys(response_a=["a1"]), "must have equally many turns", "'2 in prompt, 1 in response_a, 2 in resp"),
    (build_lmsys(prompt=[]), "prompt must be a JSON list of at least one text per turn", "'[]'"),
    (build_lmsys(prompt=[1, 2]), "prompt must be a JSON list", "'[1, 2]'"),
    ({**build_lmsys(), "prompt": '["Hi", "And'}, "prompt must be a JSON list", "And"),
    ({**build_lmsys(), "response_b": "b1"}, "response_b must be a JSON list", "'b1'"),
    (
        build_arena(winner="model_c"),
        "winner must be one of model_a, model_b, tie, tie (bothbad), both_bad",
        "'model_c'",
    ),
    (build_arena(winner=None), "winner must be one of", "None"),
    (build_arena(conversation_a=[]), "conversation_a must be a list of messages", "[]"),
    (build_arena(conversation_a=None), "conversation_a must be a list of messages", "None"),
    (build_arena(conversation_b=talk("Hi")), "conversation_b must be a list of messages", "['user']"),
    (build_arena(conversation_a=talk("Hi", "a1")), "must have the same user turns", "1 turns in conversation_a and 2"),
    (build_arena(conversation_a=talk("Ho", "a1", "And?", "a2")), "must have the same user turns", "2 turns"),
    (build_arena(conversation_a=[{"role": "user"}]), "conversation_a must be a list of messages", "{'role': 'user'}"),
    (build_arena(conversation_a=[{"role": "tool", "content": "x"}]), "alternating between user and", "'tool'"),
    (build_arena(conversation_b=talk("Hi", 3)), "conversation_b must be a list of messages", "3"),
    (build_pair(id="x", chosen=talk("Hi")), "chosen must end with the assistant's message", "'user'"),
    (build_pair(id="x", rejected=[]), "rejected must be a list of messages", "[]"),
    (build_pair(id="x", rejected=7), "response_", "7"),
    (
        build_pair(id="x", chosen=talk("Hi", "1"), rejected=talk("Ho", "2")),
        "must have the same messages before",
        "[1, 1]",
    ),
    (
        {"id": "x", "chosen": "text", "rejected": "text"},
        "chosen must be a transcript of Human: and Assistant:",
        "'text'",
    ),
    (build_arena(turn="first"), "turn must be a whole number from 1", "'first'"),
    (build_arena(turn=0), "turn must be a whole number from 1", "0"),
    (build_arena(turn=1.5), "turn must be a whole number from 1", "1.5"),
    (build_vote(chosen_model_name="m3"), "chosen_model_name must be model_a_name or model_b_name", "'m3'"),
    (build_vote(chosen_model_name=None), "chosen_model_name must be", "None"),
    (build_vote(both_equal=True), "chosen_model_name must be", "'m2'"),
    (build_vote(model_a_name="m2"), "chosen_model_name must be", "'m2'"),  # a model against itself
    (build_helpsteer(overall_preference=4), "overall_preference must be a whole number from -3 to 3", "4"),
    (build_helpsteer(overall_preference=0.5), "overall_preference must be", "0.5"),
    (build_helpsteer(overall_preference=None), "overall_preference must be", "None"),
    (build_helpsteer(context="Hi"), "context must be a list of messages", "'Hi'"),
    (build_shp(score_B=None), "score_A and score_B must be numbers", "[9, None]"),
    ({**PLAIN, "p_a": 1.5}, "p_a must be a probability", "1.5"),
    ({**PLAIN, "p_a": -0.1}, "p_a must be a probability", "-0.1"),
    ({**PLAIN, "p_a": None}, "p_a must be a probability", "None"),
    ({**PLAIN, "p_a": math.nan}, "p_a must be a probability", "nan"),
    ({**PLAIN, "p_a": True}, "p_a must be a probability", "True"),
    ({**PLAIN, "p_a": "half"}, "p_a must be a probability", "'half'"),
    (
        {**PLAIN, "winner": [0.5, 0.6]},
        "winner must be 2 probabilities (of a, b) or 3 (of a, b, tie)",
        "[0.5, 0.6]",
    ),
    ({**PLAIN, "winner": "model_c"}, "winner must be one of model_a, model_b, tie;", "'model_c'"),
    ({**PLAIN, "label": [2, -1]}, "label must be 2 probabilities", "[2, -1]"),
    ({**PLAIN, "prompt": 3}, "prompt must be text", "3"),
]


@pytest.mark.parametrize(("row", "expected", "found"), BAD_ROWS, ids=[bad[1][:40] for bad in BAD_ROWS])
def test_a_bad_row_is_an_error_with_its_id_or_dropped_and_counted(tmp_path, caplog, row, expected, found):
    path = write_rows(tmp_path / "battles.jsonl", [row])
    with pytest.raises(ValueError) as caught:
        load_battles(path)
    message, id = str(caught.value), next((row[name] for name in ("id", "conversation_pair_id") if name in row), None)
    assert message.startswith(f"{path}: battle {id!r}: ") or id is None
    assert expected in message and found in message.partition("; found ")[2] and "--bad_row_policy drop" in message
    assert len(load_battles(path, bad_row_policy="drop")) == 0
    assert f"{path}: dropped 1 of 1 battles with a fault, " in caplog.text and expected.rstrip(";") in caplog.text


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (PLAIN | {"winner": "tie"}, "prompt"),
        (build_lmsys(), "response_b"),
        (build_lmsys(), "winner_tie"),
        (build_arena(), "conversation_b"),
        (build_pair(id="x"), "rejected"),
    ],
)
def test_a_missing_column_is_named_and_an_extra_one_is_carried(tmp_path, row, column):
    kept = {name: value for name, value in row.items() if name != column}
    schema = next(name for name, schema in SCHEMAS.items() if set(schema.signs) <= set(row))
    with pytest.raises(ValueError, match=f"missing column {column}; found .* columns. Rename them to .* docs/data.md"):
        load_rows(tmp_path, kept, schema=schema)
    assert load_rows(tmp_path, row | {"note": 7})[0]["note"] == 7


def test_a_large_file_names_five_bad_rows_of_all_its_parts_and_counts_them(tmp_path):
    rows = [{**PLAIN, "id": f"x{row}", "p_a": 0.5 if row % 500 else 7} for row in range(5000)]
    with pytest.raises(ValueError, match=r"battles 'x0', 'x500', 'x1000', 'x1500', 'x2000' and 5 more: p_a must"):
        load_rows(tmp_path, *rows)
    rows = [{**PLAIN, "id": f"x{row % 2047}", "p_a": 0.5} for row in range(2050)]
    with pytest.raises(ValueError, match=r"battles 'x0', 'x1', 'x2': each id must be on 1 row, .* found 2. Make"):
        load_rows(tmp_path, *rows)
    assert len(load_rows(tmp_path, *rows, bad_row_policy="drop")) == 2047


def test_columns_that_change_between_parts_are_an_error_or_promoted(tmp_path):
    """Rows 0 to 2047 are one part. In the next, an integer column may become a float, but never a text."""
    rows = [{**PLAIN, "id": f"x{row}", "winner": "tie", "score": 1 if row < 2048 else 0.5} for row in range(2050)]
    assert load_rows(tmp_path, *rows)[-1]["score"] == 0.5
    with pytest.raises(ValueError, match="column score: expected values of one storable type in all rows"):
        load_rows(tmp_path, *(mixed := [row | {"score": "much" if row["score"] < 1 else 1} for row in rows]))
    assert "score" not in load_rows(tmp_path, *mixed, bad_row_policy="drop")[0]
    unlabelled = [{name: value for name, value in row.items() if name != "winner"} for row in rows[2048:]]
    with pytest.raises(ValueError, match=r"expected the columns .*winner throughout; found .* after row 2,048"):
        load_rows(tmp_path, *rows[:2048], *unlabelled)


# --- conversations as text --------------------------------------------------------------------------------------------

SAID = [("user", "Hi"), ("assistant", "Hello"), ("user", "And?")]
MESSAGES = [{"role": role, "content": text} for role, text in SAID]
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?"


def test_turns_and_messages_are_joined_in_one_way():
    assert (join_turns(["Hi"]), join_turns(["Hi", None])) == ("Hi", "[Turn 1] Hi\n\n[Turn 2] ")
    assert join_messages([("system", "S"), ("user", "Hi")]) == "[System] S\n\n[User] Hi"


def test_messages_read_the_same_from_lists_from_json_and_from_transcripts():
    assert check_messages(MESSAGES, "chosen") == check_messages(json.dumps(MESSAGES), "chosen") == SAID
    assert check_messages(split_transcript(TRANSCRIPT, "chosen"), "chosen") == SAID
    for read, found in ((check_messages, "Hi"), (check_messages, []), (split_transcript, "Hi")):
        with pytest.raises(RowError, match="chosen must be a"):
            read(found, "chosen")


@pytest.mark.parametrize(
    "beside",
    ["Hi", " And?\n", join_messages(SAID), MESSAGES, json.dumps(MESSAGES), str(MESSAGES), ["Hi", "And?"], "", None],
)
def test_a_prompt_beside_messages_is_one_of_them_or_all_or_nothing(beside):
    assert is_prompt_of(beside, SAID)
    assert is_prompt_of(f"{TRANSCRIPT}\n\nAssistant:", SAID)


@pytest.mark.parametrize("beside", ["Ho", MESSAGES[:1], "\n\nHuman: Ho\n\nAssistant:", 7])
def test_a_prompt_that_no_message_has_is_another(beside):
    assert not is_prompt_of(beside, SAID)
