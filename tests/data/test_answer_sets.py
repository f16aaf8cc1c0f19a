"""Answer sets from files and from Python: what is read, and one clear error for each row that cannot be ranked."""

import json

import numpy as np
import pytest

from modeling.data.answer_sets import check_answer_sets, load_answer_sets
from modeling.data.battles import DEMO_FOLDER
from tests.helpers import write_rows

ROWS = [
    {"id": "x", "prompt": "Why?", "responses": ["Because.", "No idea."], "model": "m"},
    {"id": "y", "prompt": "How?", "responses": ["So.", "So.", "Thus."], "model": "n"},
]
PLAIN = [{name: row[name] for name in ("id", "prompt", "responses")} for row in ROWS]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_the_same_rows(ending, tmp_path):
    """A csv holds its lists as text."""
    rows = [row | {"responses": json.dumps(row["responses"])} for row in ROWS] if ending == ".csv" else ROWS
    assert load_answer_sets(write_rows(tmp_path / f"rows{ending}", rows)) == PLAIN


def test_the_demo_s_answer_sets_are_read():
    found = load_answer_sets(DEMO_FOLDER / "answers.jsonl")
    assert [len(row["responses"]) for row in found] == [6, 4, 3, 5, 8]
    assert len(set(found[0]["responses"])) == 5


def test_conversations_and_arrays_are_read():
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    row = {"prompt": talk, "responses": np.array(["a", "b"], object)}
    (found,) = check_answer_sets([row])
    assert found == {"id": 0, "prompt": "[User] Hi\n\n[Assistant] Yes?", "responses": ["a", "b"]}
    (found,) = check_answer_sets([{"prompt": "p", "responses": ["a", [{"role": "assistant", "content": "b"}]]}])
    assert found["responses"] == ["a", "b"]


def test_64_answers_are_ranked_and_65_are_not():
    assert check_answer_sets([{"prompt": "p", "responses": ["a"] * 64}])
    with pytest.raises(ValueError, match="row 0: responses must be 2 to 64 answers; found 65"):
        check_answer_sets([{"prompt": "p", "responses": ["a"] * 65}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"responses": []}, "row 'x': responses must be 2 to 64 answers; found 0. A single answer has no rank"),
        ({"responses": ["a"]}, "row 'x': responses must be 2 to 64 answers; found 1"),
        ({"responses": "a"}, "row 'x': responses must be a list of texts; found 'a'. Fix these rows"),
        ({"responses": None}, "row 'x': responses must be a list of texts; found None"),
        ({"responses": ["a", " \n"]}, "row 'x': prompt and each of the responses must be text, and not blank"),
        ({"responses": ["a", None]}, "row 'x': prompt and each of the responses must be text, and not blank"),
        ({"responses": ["a", 3]}, "row 'x': prompt and each of the responses must be text, and not blank; found 3"),
        ({"prompt": ""}, "row 'x': prompt and each of the responses must be text, and not blank; found ''"),
        ({"id": None}, "row None: ids must be all text or all whole numbers; found None"),
        ({"id": ["x"]}, r"row \['x'\]: ids must be all text or all whole numbers"),
        ({"id": "x\ud800"}, "ids must be non-blank, valid Unicode text"),
        ({"id": " "}, "row ' ': ids must be non-blank"),
        ({"id": True}, "row True: ids must be all text"),
        ({"id": 2**70}, "whole numbers of 64 bits"),
        ({"id": "y"}, "row 'y': each id must be on 1 row"),
        ({"id": 3}, "row 'y': ids must be all text or all whole numbers"),
    ],
)
def test_a_row_that_cannot_be_ranked_is_named(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        check_answer_sets([PLAIN[0] | changes, PLAIN[1]], "rows.jsonl")
    assert str(error.value).startswith("rows.jsonl: ") and "--bad_row_policy" not in str(error.value)


def test_ids_may_be_numpys_and_rows_must_be_dicts():
    rows = [{"id": np.int64(number), "prompt": "p", "responses": ["a", "b"]} for number in (4, 5)]
    assert [row["id"] for row in check_answer_sets(rows)] == [4, 5]
    with pytest.raises(ValueError, match="row 0: an answer set must be a dict"):
        check_answer_sets([("p", ["a", "b"])])


def test_many_faulty_rows_are_counted():
    rows = [{"id": f"r{number}", "prompt": "p", "responses": ["a"]} for number in range(7)]
    with pytest.raises(ValueError, match="rows 'r0', 'r1', 'r2', 'r3', 'r4' and 2 more: responses must be 2 to 64"):
        check_answer_sets(rows)


def test_a_missing_column_is_named(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"id": 1, "prompt": "p", "response_a": "a"}])
    with pytest.raises(ValueError, match="expected the columns id, prompt, responses; found no responses, only id"):
        load_answer_sets(path)
