"""Laws of battles.py and reader.py: errors name the bad rows, nothing is dropped silently, sides mirror exactly."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from modeling.data.battles import (
    hide_prompts,
    load_battles,
    name_winners,
    order_responses,
    orient_label,
    read_battles,
    swap_responses,
)
from modeling.data.conversations import join_messages
from modeling.data.reader import is_checked


def build_row(id="x0", **fields) -> dict:
    """Returns a battle with a winner, or with the given label instead."""
    outcome = {} if "label" in fields else {"winner": "model_a"}
    return {"id": id, "prompt": "p", "response_a": "one", "response_b": "two", **outcome, **fields}


def write_rows(folder: Path, rows: list[dict]) -> Path:
    path = folder / "battles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def catch_error(path: Path, **options) -> str:
    """Returns the message of the ValueError that loading raises, which must begin with the file."""
    with pytest.raises(ValueError) as caught:
        load_battles(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


# --- one error, naming file, rows, expected, found, way out (law 10) --------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected", "found", "way_out"),
    [
        ({"winner": "model_c"}, "winner must be one of model_a, model_b, tie", "'model_c'", "Fix these rows"),
        ({"winner": "Model_A"}, "winner must be one of", "'Model_A'", "leave them out"),
        ({"winner": None}, "winner must be one of", "None", "Fix these rows"),
        ({"winner": math.nan}, "winner must be one of", "nan", "Fix these rows"),
        ({"winner": ["model_a"]}, "winner must be 2 probabilities", "['model_a']", "Fix these rows"),
        ({"prompt": None}, "must not be null or blank", "{'prompt': None}", "--blank_policy drop"),
        ({"prompt": math.nan}, "must not be null or blank", "{'prompt': nan}", "keep (reads them as empty texts)"),
        ({"response_a": ""}, "must not be null or blank", "{'response_a': ''}", "--blank_policy drop"),
        ({"response_b": " \n\u3000"}, "must not be null or blank", r"{'response_b': ' \n\u3000'}", "--blank_policy"),
        ({"prompt": "\u200b\ufeff"}, "must not be null or blank", r"{'prompt': '\u200b\ufeff'}", "--blank_policy"),
        ({"response_a": "\u3164"}, "must not be null or blank", "{'response_a': '\u3164'}", "--blank_policy"),
        ({"prompt": 3}, "prompt must be text", "3", "Convert these rows to text"),
        ({"response_a": ["one"]}, "response_a must be text", "['one']", "Convert these rows to text"),
    ],
)
def test_an_unusable_row_is_an_error_that_names_it(tmp_path, fields, expected, found, way_out):
    message = catch_error(write_rows(tmp_path, [build_row("good"), build_row("bad", **fields)]))
    assert "battle 'bad': " in message and "'good'" not in message
    assert expected in message and f"; found {found}. " in message and way_out in message


@pytest.mark.parametrize(
    "label",
    ([0.5, 0.4], [0.6, 0.6], [1], [0, 0, 0], [1.5, -0.5], [math.nan, 1], ["1", "0"], [True, False], None, 1.0, "ab"),
)
def test_a_label_that_is_no_distribution_is_an_error(tmp_path, label):
    rows = [build_row("good", label=[0.25, 0.75]), build_row("bad", label=label)]
    wanted = "label must be 2 probabilities (of a, b) or 3 (of a, b, tie) that sum to 1"
    expected = f"battle 'bad': {wanted}; found {label!r}. Fix these rows"
    assert expected in catch_error(write_rows(tmp_path, rows))


@pytest.mark.parametrize("column", ["prompt", "response_a", "response_b"])
def test_a_missing_column_is_an_error_that_names_it(tmp_path, column):
    row = {name: value for name, value in build_row().items() if name != column}
    message = catch_error(write_rows(tmp_path, [row]))
    assert re.search(f"missing column {column}; found .*winner columns. Rename", message)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["x", "y", "x", "x"], "battle 'x': each id must be on 1 row, .*; found 3. Make the ids unique"),
        ([7, 8, 7], "battle 7: each id must be on 1 row"),
        (["x", None], "battle 'row 1': ids must be all text or all whole numbers; found None. Give every row an id"),
        (["x", 1, "y", 2], "battles 'row 1', 'row 3': ids must be all text or all whole numbers; found 1, 2"),
        ([1.0, 2.0], "battles 'row 0', 'row 1': ids must be .*; found 1.0, 2.0"),
        ([1, math.nan], "battle 'row 1': ids must be .*; found nan"),
        ([True, False], "battles 'row 0', 'row 1': ids must be .*; found True, False"),
        ([None] * 7, "battles 'row 0', .*, 'row 4' and 2 more: ids must be .*--columns row_id=id"),
        (["x", " "], "battle ' ': ids must be non-blank"),
        (["x", "\ud800"], "ids must be non-blank, valid Unicode text"),
        ([1, 2**70], "column id: expected values of one storable type in all rows"),
    ],
)
def test_ids_that_cannot_key_predictions_are_an_error(tmp_path, ids, message):
    assert re.search(message, catch_error(write_rows(tmp_path, [build_row(id) for id in ids])))


def test_no_error_about_ids_advises_to_leave_rows_out(tmp_path):
    """The rows are sound, and often it is the id that names something else."""
    for ids in (["x", "x"], [None, "x"], ["x", 1], ["x", " "]):
        message = catch_error(path := write_rows(tmp_path, [build_row(id) for id in ids]))
        assert "drop" not in message and (ids == ["x", 1]) is not ("pass --columns" in message)
        if "pass --columns" in message:
            assert len(load_battles(path, columns={"other": "id"})) == 2


def test_rows_without_ids_get_some_and_the_log_says_so(tmp_path, caplog):
    """A hash of the texts, so that the order of the rows does not matter. Equal rows are two battles."""
    rows = [{name: text for name, text in build_row(prompt=prompt).items() if name != "id"} for prompt in "ppq"]
    path = write_rows(tmp_path, rows)
    first, second, third = load_battles(path)["id"][:]
    assert f"{path}: no column id, so each battle's id is a hash of its texts; pass --columns id=" in caplog.text
    assert len(first) == 16 and second == f"{first}-2" and third not in (first, second)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert load_battles(path)["id"][:] == [third, first, second]


def test_repeats_of_another_id_column_are_numbered_past_ids_that_are_taken(tmp_path):
    """A number behind it makes an id text, so all of them are."""
    pair = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    for given, ids in (
        (["x", "x-1", "x", "x"], ["x", "x-1", "x-2", "x-3"]),
        (["x", "x", "x-1"], ["x", "x-1", "x-1-1"]),
        ([7, 7, 8], ["7", "7-1", "8"]),
    ):
        path = write_rows(tmp_path, [{"prompt_id": id, **pair} for id in given])
        assert load_battles(path)["id"][:] == ids
    path = write_rows(tmp_path, [{"prompt_id": None, **pair}])
    assert "battle 'row 0': ids must be all text or all whole numbers; found None" in catch_error(path)


def test_rows_without_an_id_of_the_first_kind_are_dropped_and_counted(tmp_path, caplog):
    path = write_rows(tmp_path, [build_row(id) for id in (None, "x", 7, "y", None)])
    assert load_battles(path, bad_row_policy="drop")["id"][:] == ["x", "y"]
    said = "dropped 3 of 5 battles with a fault, ids must be all text or all whole numbers (--bad_row_policy drop)"
    assert f"{path}: {said}: battles 'row 0', 'row 2', 'row 4'" in caplog.text


def test_an_error_names_five_rows_and_counts_the_rest(tmp_path):
    path = write_rows(tmp_path, [build_row(f"x{row}", winner="draw" if row else "tie") for row in range(13)])
    assert "battles 'x1', 'x2', 'x3', 'x4', 'x5' and 7 more: winner" in catch_error(path)


@pytest.mark.parametrize("values", [[1, "one"], [[1], 1], [{"k": 1}, "one"], [2**70, 1]])
def test_an_extra_column_without_a_common_type_is_an_error(tmp_path, values):
    path = write_rows(tmp_path, [build_row(f"x{row}", turn=value) for row, value in enumerate(values)])
    assert re.search("column turn: expected .*; found others .*. Give it one type or remove", catch_error(path))


@pytest.mark.parametrize("values", [[1, "one"], [{"k": 1}, "one"], [2**70, 1]])
def test_an_extra_column_without_a_common_type_is_left_out_where_asked(tmp_path, values, caplog):
    path = write_rows(tmp_path, [build_row(f"x{row}", turn=value, note="n") for row, value in enumerate(values)])
    assert load_battles(path, bad_row_policy="drop").column_names[4:] == ["label", "note"]
    assert f"{path}: left out column turn, whose values have no common type (--bad_row_policy drop)" in caplog.text


def test_two_outcome_columns_are_an_error(tmp_path):
    assert "found both winner and label" in catch_error(write_rows(tmp_path, [build_row(label=[1, 0], winner="tie")]))


def test_outcomes_are_optional_unless_required(tmp_path):
    path = write_rows(tmp_path, [{name: text for name, text in build_row().items() if name != "winner"}])
    assert load_battles(path).column_names == ["id", "prompt", "response_a", "response_b"]
    assert "expected a winner (or label) column" in catch_error(path, require_labels=True)


@pytest.mark.parametrize("option", ["tie_policy", "blank_policy"])
def test_an_unknown_policy_is_an_error(tmp_path, option):
    with pytest.raises(ValueError, match=rf"--{option}: expected one of .*; found 'ignore'"):
        load_battles(write_rows(tmp_path, [build_row()]), **{option: "ignore"})


# --- labels, ties, blanks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("previous", ["model_a", "model_b"])
def test_no_row_takes_the_label_of_the_row_before(tmp_path, previous):
    """Seed fault 4: a tie, or any unknown winner, silently reused the previous row's label."""
    rows = [build_row("x0", winner=previous), build_row("x1", winner="tie")]
    assert load_battles(write_rows(tmp_path, rows))["label"][1] == [0.5, 0.5]
    for unknown in ("tie (bothbad)", "", None):
        rows[1]["winner"] = unknown
        assert "battle 'x1': winner must be" in catch_error(write_rows(tmp_path, rows))


def test_ties_are_kept_as_halves_or_dropped_and_counted(tmp_path, caplog):
    winners = ["model_a", "tie", "model_b", "tie"]
    path = write_rows(tmp_path, [build_row(f"x{row}", winner=winner) for row, winner in enumerate(winners)])
    assert load_battles(path)["label"][:] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.5, 0.5]]
    assert not caplog.records
    kept = load_battles(path, tie_policy="drop")
    assert (kept["id"][:], kept["label"][:]) == (["x0", "x2"], [[1.0, 0.0], [0.0, 1.0]])
    assert f"{path}: dropped 2 of 4 battles with ties (--tie_policy drop)" in caplog.text


def test_blank_texts_are_dropped_and_counted_or_kept_as_empty(tmp_path, caplog):
    rows = [build_row("x0"), build_row("x1", prompt=None), build_row("x2", response_b=" "), build_row("x3")]
    path = write_rows(tmp_path, rows)
    assert load_battles(path, blank_policy="drop")["id"][:] == ["x0", "x3"]
    assert f"{path}: dropped 2 of 4 battles with blank texts (--blank_policy drop)" in caplog.text
    kept = load_battles(path, blank_policy="keep")
    assert (kept["prompt"][:], kept["response_b"][2]) == (["p", "", "p", "p"], " ")


def test_soft_labels_are_kept_and_rounded_ones_sum_to_one(tmp_path):
    labels = [[0.25, 0.75], [1, 0], [0.3333, 0.6663]]  # the last sums to 0.9996, as rounding to 4 digits may
    rows = [build_row(f"x{row}", label=label) for row, label in enumerate(labels)]
    loaded = load_battles(write_rows(tmp_path, rows))
    assert loaded["label"][:2] == [[0.25, 0.75], [1.0, 0.0]]
    assert loaded["label"][2] == pytest.approx([0.3333 / 0.9996, 0.6663 / 0.9996]) and sum(loaded["label"][2]) == 1


def test_int_ids_stay_ints_and_extra_columns_follow_in_order(tmp_path):
    extras = {"model_a": "m1", "language": "한국어", "turns": [{"k": 1}], "score": None}
    loaded = load_battles(write_rows(tmp_path, [{**extras, **build_row(7)}, {**build_row(3), "score": 0.5}]))
    assert loaded.column_names == ["id", "prompt", "response_a", "response_b", "label", *extras]
    assert loaded["id"][:] == [7, 3] and all(type(id) is int for id in loaded["id"])
    assert loaded[0] == {**{k: v for k, v in build_row(7).items() if k != "winner"}, "label": [1.0, 0.0], **extras}
    assert loaded[1]["language"] is None and loaded[1]["score"] == 0.5


def test_lone_surrogates_are_repaired_with_a_warning_and_other_text_is_untouched(tmp_path, caplog):
    """JSON allows a lone surrogate, but no tokenizer and no parquet file can hold it."""
    intact = "👩‍👩‍👧 🏴󠁧󠁢󠁳󠁣󠁴󠁿 مرحبا بك שלום \u202eRTL\u202c e\u0301 \ufeff\ufffd\x00 𝒳"
    path = write_rows(tmp_path, [build_row("x0", prompt=intact)])
    assert load_battles(path)["prompt"][0] == intact
    assert not caplog.records
    broken = {"prompt": "a\ud83db", "response_a": "\udc00", "response_b": intact, "note": "end\ud83d"}
    loaded = load_battles(write_rows(tmp_path, [build_row("x0"), build_row("x1", **broken)]))
    assert [loaded[1][name] for name in broken] == ["a\ufffdb", "\ufffd", intact, "end\ufffd"]
    assert f"{path}: battle 'x1': repaired broken Unicode" in caplog.text


# --- battles that are Python objects ----------------------------------------------------------------------------------

TALK = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]
MESSAGES = [{"role": role, "content": text} for role, text in TALK]


@pytest.mark.parametrize("bad", [{"response_b": None}, {"prompt": " "}, {"response_a": 3}, {"id": None}, {"id": "x0"}])
def test_objects_and_files_are_refused_with_the_same_words(tmp_path, bad):
    rows = [build_row(), build_row("x1") | bad]
    path = write_rows(tmp_path, rows)
    with pytest.raises(ValueError) as error:
        read_battles(rows)
    assert str(error.value).replace("Battles", str(path), 1) == catch_error(path)


def test_a_nan_of_pandas_is_a_blank_text():
    frame = pd.DataFrame([build_row(), build_row("x1", response_a=math.nan)])
    with pytest.raises(ValueError, match=r"Battles: battle 'x1': prompt, response_a and response_b must not be null"):
        read_battles(frame)


def test_rows_without_ids_are_numbered_in_order_and_given_ids_are_kept():
    rows = [build_row(str(number), prompt=f"p{number}") for number in range(5)]
    unnamed = [{name: value for name, value in row.items() if name != "id"} for row in rows]
    assert read_battles(unnamed)["id"][:] == [0, 1, 2, 3, 4]
    assert read_battles(rows[::-1]).select_columns(["id", "prompt"]).to_list() == [
        {"id": str(number), "prompt": f"p{number}"} for number in (4, 3, 2, 1, 0)
    ]


def test_other_columns_do_not_matter():
    """An outcome that could not be read, and objects that no table can hold."""
    rows = [build_row(winner="nobody", odd=object()), build_row("x1", winner=3, odd="text", label=[2])]
    expected = {"id": ["x0", "x1"], "prompt": ["p"] * 2, "response_a": ["one"] * 2, "response_b": ["two"] * 2}
    assert read_battles(rows).to_dict() == expected


def test_a_conversation_is_joined_in_objects_and_files(tmp_path):
    answers = {"response_a": [{"role": "assistant", "content": "one"}]}
    row = build_row(prompt=MESSAGES) | answers
    expected = build_row(prompt=join_messages(TALK))
    for found in (read_battles(row), load_battles(write_rows(tmp_path, [row]))):
        assert found.select_columns(["prompt", "response_a"]).to_list() == [
            {"prompt": expected["prompt"], "response_a": "one"}
        ]
    assert read_battles((MESSAGES, "one", "two")).to_dict() == read_battles(expected | {"id": 0}).to_dict()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"prompt": [{"role": "robot", "content": "Hi"}]}, "prompt must be a list of messages"),
        ({"response_a": MESSAGES}, "response_a must be text or one message of the assistant; found"),
    ],
)
def test_a_conversation_that_cannot_be_joined_is_an_error(field, message):
    with pytest.raises(ValueError, match=f"Battles: battle 'x0': {message}"):
        read_battles(build_row(**field))


def test_objects_may_have_any_schema():
    pair = {"prompt": "p", "chosen": "better", "rejected": "worse"}
    (battle,) = read_battles(pair).to_list()
    assert {battle["response_a"], battle["response_b"]} == {"better", "worse"} and battle["id"] == 0
    arena = {f"conversation_{side}": [*MESSAGES[:1], {"role": "assistant", "content": side}] for side in "ab"}
    assert read_battles([arena | {"question_id": "q"}]).to_list() == [
        {"id": "q", "prompt": "Hi", "response_a": "a", "response_b": "b"}
    ]


def test_policies_are_those_of_files():
    rows = [
        {"question": "p", "response_a": "one", "response_b": " "},
        {"question": "q", "response_a": "1", "response_b": "2"},
    ]
    kept = read_battles(rows, columns={"prompt": "question"}, blank_policy="drop")
    assert kept.to_list() == [{"id": 1, "prompt": "q", "response_a": "1", "response_b": "2"}]


def test_what_was_checked_is_not_read_again(tmp_path):
    """Blank texts that were kept stay, in some of the rows and without prompts too; a new column of nulls is seen."""
    battles = load_battles(write_rows(tmp_path, [build_row(), build_row("x1", response_b=" ")]), blank_policy="keep")
    for known in (battles, battles.select([1, 0]), swap_responses(battles), hide_prompts(battles)):
        assert read_battles(known) is known
    assert read_battles(read_battles(build_row())).to_list() == read_battles(build_row()).to_list()
    for changed in (battles.remove_columns("id"), battles.map(lambda row: {"prompt": None})):
        assert not is_checked(changed)
    with pytest.raises(ValueError, match="battle 'x1'"):
        read_battles(battles.to_list())


# --- sides ------------------------------------------------------------------------------------------------------------


def build_battles(num_battles: int = 40) -> Dataset:
    rows = [build_row(i, prompt=f"Prompt {i // 2}", label=[i / 40, 1 - i / 40]) for i in range(num_battles)]
    return Dataset.from_list(rows)


def test_swapping_mirrors_and_twice_is_identity():
    battles = build_battles()
    for rows in (battles, battles.remove_columns("label"), battles.select([5, 3])):
        swapped = swap_responses(rows)
        assert swapped["response_a"][:] == rows["response_b"][:] and swapped["response_b"][:] == rows["response_a"][:]
        assert swapped["id"][:] == rows["id"][:] and swapped.column_names == rows.column_names
        twice = swap_responses(swapped)
        assert twice.to_list() == rows.to_list() and twice.features == rows.features
    assert swap_responses(battles)["label"][1] == [1 - 1 / 40, 1 / 40]


@pytest.mark.parametrize("orientation", ["ab", "ba"])
def test_orienting_a_label_is_its_own_inverse_and_agrees_with_the_order_read(orientation):
    by_label = {"response_a": 0.9, "response_b": 0.1}
    slots = orient_label(list(by_label.values()), orientation)
    assert slots == [by_label[name] for name in order_responses(orientation)]
    assert orient_label(slots, orientation) == [0.9, 0.1]


@pytest.mark.parametrize("read", [order_responses, lambda orientation: orient_label([1, 0], orientation)])
def test_an_unknown_orientation_is_an_error(read):
    with pytest.raises(ValueError, match="orientation: expected one of ab, ba; found 'aa'"):
        read("aa")


def test_winner_names_are_those_of_a_submission():
    assert name_winners([0.9, 0.5, 0.49]) == ["model_a", "model_a", "model_b"]
