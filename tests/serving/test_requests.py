"""What users send is checked against limits, and a refusal names the field or file and says what was expected."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling.data.battles import TEXTS
from modeling.serving.requests import (
    BattleRequest,
    InvalidRequestError,
    RequestLimits,
    check_battle,
    find_wrong_fields,
    load_upload,
)

LIMITS = RequestLimits(max_characters=1000, max_battles=100, max_bytes=100_000)
TEXT = {"prompt": "Which?", "response_a": "This one.", "response_b": "That one, because it is better."}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "Prompt: expected some text; found none"),
        ({"prompt": " \n\t"}, "Prompt: expected some text"),
        ({"response_a": None}, "Answer A: expected some text"),
        ({"response_b": 7}, "Answer B: expected text; found int"),
        ({"response_b": ["x"]}, "Answer B: expected text; found list"),
        ({"response_a": "x" * 1001}, "Answer A: expected at most 1,000 characters; found 1,001"),
        ({"id": "x" * 201}, "id: expected a text of at most 200"),
        ({"id": {"a": 1}}, "id: expected a text"),
    ],
)
def test_a_bad_battle_is_refused_with_the_fields_name(change, said):
    with pytest.raises(InvalidRequestError, match=said) as error:
        check_battle({**TEXT, **change}, LIMITS, change.get("id", ""))
    assert error.value.detail[0]["loc"] == ["body", next(iter(change))]


def test_missing_and_misspelt_fields_are_named():
    found = find_wrong_fields({"promt": "x" * 10**6, "response_a": "y", "other": 1}, BattleRequest)
    assert [(fault["type"], *fault["loc"]) for fault in found] == [
        ("missing", "body", "prompt"),
        ("missing", "body", "response_b"),
        ("extra_forbidden", "body", "promt"),
        ("extra_forbidden", "body", "other"),
    ]
    assert found[2]["msg"].endswith("Did you mean prompt?")
    assert found[3]["msg"].endswith("Known are prompt, response_a, response_b, id.")
    assert len(json.dumps(found)) < 1000  # what was sent is not repeated
    assert find_wrong_fields({**TEXT, "prompt": 7}, BattleRequest) == []  # wrong types are found elsewhere


def test_lone_surrogates_become_the_replacement_character():
    """JSON lets them in, but neither a tokenizer nor an answer can contain them."""
    sent = {**TEXT, "prompt": "a \ud800 b", "id": "\udfff"}
    assert BattleRequest.model_validate(sent).prompt == check_battle(sent, LIMITS)["prompt"] == "a \ufffd b"
    assert BattleRequest.model_validate(sent).id == check_battle(sent, LIMITS, sent["id"])["id"] == "\ufffd"


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
