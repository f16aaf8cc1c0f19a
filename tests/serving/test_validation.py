"""Faults of a body: each with its place, as short as they are, and no more of them than a response should hold."""

import pytest

from modeling.serving.validation import MAX_FAULTS, BodyReader, InvalidRequest, describe, find_nearest, shorten


def test_all_faults_are_raised_at_once_and_none_without_a_fault():
    reader = BodyReader(5)
    assert reader.read_text("12345", ("a",)) == "12345"
    assert reader.read_object({"x": 1}, (), ["x"], ["y"]) == {"x": 1}
    reader.finish()
    assert reader.read_text("123456", ("a", 0)) is None
    assert reader.read_text(" \u200b", ("b",)) is None
    assert reader.read_list([], ("c",)) == []
    assert reader.read_object({"xx": 1}, (), ["x"]) == {}
    with pytest.raises(InvalidRequest) as error:
        reader.finish()
    found = [(fault["loc"], fault["type"]) for fault in error.value.detail]
    assert found == [
        (["body", "a", 0], "string_too_long"),
        (["body", "b"], "string_too_short"),
        (["body", "c"], "too_short"),
        (["body", "xx"], "extra_forbidden"),
        (["body", "x"], "missing"),
    ]
    assert str(error.value).count("\n") == len(found) - 1


def test_a_million_unknown_keys_are_answered_briefly():
    reader = BodyReader(5)
    reader.read_object(dict.fromkeys(map(str, range(1_000_000))), (), ["x"])
    assert len(reader.faults) == MAX_FAULTS


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("intructions", "instructions"), ("Criteria", "criteria"), ("temperature", None), ("", None), ("x" * 10**6, None)],
    ids=range(5),
)
def test_the_nearest_name(name, nearest):
    assert find_nearest(name, ["criteria", "instructions"]) == nearest
    reader = BodyReader(5)
    reader.read_object({name: 1}, (), [], ["criteria", "instructions"])
    (fault,) = reader.faults
    assert fault["msg"].endswith(f"Did you mean {nearest}?" if nearest else "Leave it out.")


def test_what_was_sent_is_described_briefly():
    values = (None, True, 1, float("nan"), {}, [], "text")
    assert [describe(value) for value in values] == [
        "null", "true or false", "a number", "a number", "an object", "a list", "'text'",
    ]  # fmt: skip
    assert len(describe("x" * 1_000_000)) < 100
    assert shorten("\ud800") == "\ufffd" and shorten("x" * 60) == "x" * 60
