"""What users send is checked against limits, and a refusal names the field or file and says what was expected."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling.data.battles import TEXTS
from modeling.serving.requests import RequestLimits, check_battle, load_upload, name_faults
from modeling.serving.validation import InvalidRequest

LIMITS = RequestLimits(max_characters=1000, max_battles=100, max_bytes=100_000)
TEXT = {"prompt": "Which?", "response_a": "This one.", "response_b": "That one, because it is better."}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "Prompt: expected some text; found none"),
        ({"prompt": " \n\t"}, "Prompt: expected some text"),
        ({"response_a": None}, "Answer A: expected text; found null"),
        ({"response_b": 7}, "Answer B: expected text; found a number"),
        ({"response_b": ["x"]}, "Answer B: expected text; found a list"),
        ({"response_a": "x" * 1001}, "Answer A: expected at most 1,000 characters; found 1,001"),
        ({"id": "x" * 201}, "id: expected a text of at most 200"),
        ({"id": {"a": 1}}, "id: expected a text"),
        ({"id": True}, "id: expected a text"),
        ({"idd": 1}, "idd: expected prompt, response_a, response_b, id. Did you mean id?"),
    ],
)
def test_a_bad_battle_is_refused_with_the_fields_name(change, said):
    with pytest.raises(InvalidRequest) as error:
        check_battle({**TEXT, **change}, LIMITS)
    assert error.value.detail[0]["loc"] == ["body", next(iter(change))] and name_faults(error.value).startswith(said)


def test_all_faults_are_told_at_once_and_what_was_sent_is_not_repeated():
    with pytest.raises(InvalidRequest) as error:
        check_battle({"promt": "x" * 10**6, "response_a": " ", "id": 1.5}, LIMITS)
    assert [(fault["type"], *fault["loc"]) for fault in error.value.detail] == [
        ("extra_forbidden", "body", "promt"),
        ("missing", "body", "prompt"),
        ("missing", "body", "response_b"),
        ("value_error", "body", "id"),
        ("string_too_short", "body", "response_a"),
    ]
    assert "Did you mean prompt?" in error.value.detail[0]["msg"] and len(json.dumps(error.value.detail)) < 1000


def test_lone_surrogates_become_the_replacement_character():
    """JSON lets them in, but neither a tokenizer nor an answer can contain them."""
    found = check_battle({**TEXT, "prompt": "a \ud800 b", "id": "\udfff"}, LIMITS)
    assert (found["id"], found["prompt"]) == ("\ufffd", "a \ufffd b")


def write_rows(path, rows: int, text: str = "word"):
    path.write_text("".join(json.dumps({**TEXT, "id": row, "prompt": text}) + "\n" for row in range(rows)))
    return path


def test_a_file_beyond_a_limit_is_refused(tmp_path):
    assert len(load_upload(write_rows(tmp_path / "fits.jsonl", 100), LIMITS)) == 100
    for name, rows, text, said in (
        ("rows", 101, "word", "at most 100 battles; found"),
        ("bytes", 90, "word " * 250, "at most 100,000 bytes; found"),
        ("text", 3, "x" * 1001, "row 1, prompt: expected at most 1,000 characters; found 1,001"),
        ("none", 0, "", "missing columns|at least one battle"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            load_upload(write_rows(tmp_path / f"{name}.jsonl", rows, text), LIMITS)
        assert str(tmp_path) not in str(error.value) and f"{name}.jsonl" in str(error.value)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_unread(tmp_path):
    """A few kB of zstd hold 15 MB of one letter; the file's own metadata give it away."""
    table = pa.table({"id": [1], **{name: ["x" * 5_000_000] for name in TEXTS}})
    pq.write_table(table, tmp_path / "bomb.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < LIMITS.max_bytes
    with pytest.raises(ValueError, match=r"expected at most 800,000 bytes once unpacked; found 15,"):
        load_upload(tmp_path / "bomb.parquet", LIMITS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", b"hello", "expected a file ending in .parquet, .csv, .tsv, .jsonl; found '.txt'"),
        ("x.csv.gz", b"", "expected a file ending in .parquet, .csv, .tsv, .jsonl; found '.gz'. Unpack"),
        ("x.parquet", b"PAR1 no", "expected a parquet file"),
        ("x.csv", b"id,prompt\n1,2\n", "missing columns response_a, response_b"),
        ("x.jsonl", b"{\n", "line 1: expected JSON"),
        ("x.jsonl", b"\xff\xfa", "expected UTF-8"),
        ("<img src=x>.csv", b"a\n<script>\n", "missing columns"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_without_its_folder(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        load_upload(tmp_path / name, LIMITS)
    assert str(error.value).startswith(name) and "\n" not in str(error.value) and str(tmp_path) not in str(error.value)
