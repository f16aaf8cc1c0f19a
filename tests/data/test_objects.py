"""Whatever holds the battles, their columns are the same."""

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset

from modeling.data.objects import list_columns
from modeling.data.schemas import TEXTS

COLUMNS = {"prompt": ["p", "q"], "response_a": ["a", "c"], "response_b": ["b", "d"]}
ROWS = [{name: values[row] for name, values in COLUMNS.items()} for row in (0, 1)]
TUPLES = [tuple(row.values()) for row in ROWS]


@pytest.mark.parametrize(
    "battles",
    [
        pd.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS, dtype="string", index=[7, 7]),
        Dataset.from_dict(COLUMNS),
        Dataset.from_dict(COLUMNS).with_format("numpy"),
        pa.table(COLUMNS),
        ROWS,
        tuple(ROWS),
        iter(ROWS),
        TUPLES,
        tuple(TUPLES),
        [list(row) for row in TUPLES],
        [ROWS[0], TUPLES[1]],
    ],
)
def test_tables_and_lists_of_the_same_battles_have_the_same_columns(battles):
    assert list_columns(battles) == COLUMNS


@pytest.mark.parametrize("battle", [ROWS[0], TUPLES[0], ([{"role": "user", "content": "p"}], "a", "b")])
def test_one_battle_is_one_row(battle):
    assert list_columns(battle) == list_columns([battle]) and len(list_columns(battle)["prompt"]) == 1


def test_no_battles_have_the_three_columns():
    assert list_columns([]) == {name: [] for name in TEXTS}


def test_a_key_that_some_rows_lack_is_none_in_them():
    assert list_columns([ROWS[0], {**ROWS[1], "id": 3}])["id"] == [None, 3]


def test_cells_of_numpy_and_pandas_become_python_s():
    day = datetime.date(2026, 1, 1)
    (found,) = list_columns([{"i": np.int64(3), "f": np.float32(0.5), "l": np.array(["x"], object), "n": pd.NA}])["l"]
    assert found == ["x"] and type(found) is list
    columns = list_columns(pd.DataFrame({"i": np.array([3]), "n": pd.array([pd.NA], "string"), "d": [day]}))
    assert columns == {"i": [3], "n": [None], "d": [day]} and type(columns["i"][0]) is int


def test_ids_in_the_index_are_a_column():
    assert list_columns(pd.DataFrame(COLUMNS, index=pd.Index(["x", "y"], name="id")))["id"] == ["x", "y"]


@pytest.mark.parametrize(
    ("battles", "message"),
    [
        ("battles.csv", r"found str 'battles\.csv'\. Read a file with load_battles\."),
        (None, "expected a table .* found NoneType None"),
        (TUPLES[0][0:2], r"row 0: expected a dict, or a tuple \(prompt, response_a, response_b\); found tuple"),
        (list(TUPLES[0]), "row 0: .* found str 'p'. Give one battle as a tuple or dict"),
        ([ROWS[0], None], "row 1: .* found NoneType"),
        (pd.DataFrame([["p", "q"]], columns=["prompt", "prompt"]), "distinct column names; found prompt, prompt"),
    ],
)
def test_what_holds_no_battles_is_refused(battles, message):
    with pytest.raises(ValueError, match=message):
        list_columns(battles)
