"""Laws of cells.py: a list reads the same from JSON, Python's text and numpy's; other text stays what it is."""

import json

import numpy as np
import pytest

from modeling.data.cells import begins_like_messages, parse_list

LISTS = [
    ["a", "b"],
    ["it's", 'say "so"', "back\\slash", "new\nline", "[1, 2]", "", "null", "\ud55c 🙂"],
    [{"role": "user", "content": "No, I'm busy"}, {"role": "assistant", "content": None}],
    [["a"], ["b", "c"]],
    [0.25, 0.75],
    [1, -2, 30],
]


@pytest.mark.parametrize("value", LISTS)
def test_every_spelling_gives_the_same_list(value):
    texts = [
        json.dumps(value),
        json.dumps(value, indent=1),
        str(value),
        repr(tuple(value)).replace("(", "[", 1)[:-1] + "]",
    ]
    assert [parse_list(text) for text in texts] == [value] * len(texts)


@pytest.mark.parametrize("value", [*LISTS[:3], *LISTS[4:]])
def test_numpy_s_spelling_gives_the_same_list(value):
    """Without commas. Python would take 'a' 'b' for one text."""
    for array in (np.array(value), np.array(value, dtype=object)):
        assert parse_list(str(array)) == value
        if array.dtype == object:
            assert parse_list(repr(array)) == value
    assert parse_list(str(list(np.array(LISTS[4])))) == LISTS[4]  # [np.float64(0.25), ...] in numpy 2


def test_arrays_in_arrays_and_missing_values_are_read():
    """As pandas writes what it read from a parquet file: arrays of dicts that hold arrays."""
    part = np.empty(1, dtype=object)
    part[0] = {"type": "text", "text": "Hi"}
    message = np.empty(1, dtype=object)
    message[0] = {"role": "user", "content": part}
    assert parse_list(str(message)) == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert parse_list(str([1.5, float("nan"), None])) == [1.5, None, None]
    assert parse_list("[ 1.5 -0.5\n  nan]") == [1.5, -0.5, None]


@pytest.mark.parametrize(
    "text",
    [
        "[b",
        "[x]",
        "[x for x in y]",
        "['a', 'b' 'c']",  # somebody's code: Python joins the last two
        "['a' 'b', 'c']",
        "['a' ... 'b']",  # numpy leaves out the middle of a long array
        "['a', ...]",
        "[1] + [2]",
        "[open('x')]",
        "[f'{x}']",
        "[b'a']",
        "['a'",
        "['a\n']",
        "[Turn 1] Hi",
        "[" * 5000,
        "array(1)",
        "",
        "a",
        None,
        7,
    ],
)
def test_what_is_no_list_of_values_stays_as_it_is(text):
    assert parse_list(text) == text


def test_a_real_list_stays_as_it_is():
    assert parse_list(value := [object]) is value


def test_messages_are_recognised_by_how_they_begin():
    for text in ("[{'role': 'us", ' [ {"content": "', "array([{'role': 'user'"):
        assert begins_like_messages(text)
    for text in ("[{'name': 1}]", "{'role': 'user'}", "[['role']]", "Hi [{'role': ", None, [{"role": "user"}]):
        assert not begins_like_messages(text)
