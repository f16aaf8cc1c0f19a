"""Laws of columns.py: names that the user gives, words for winners, and repairs in carried columns."""

import json
from pathlib import Path

import pytest

from modeling.data.battles import load_battles
from tests.helpers import write_rows

A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
OTHER = {"uuid": "x", "question": "p", "answer_1": "one", "answer_2": "two", "preference": "model_b", "note": "n"}
NAMES = dict(zip(("id", "prompt", "response_a", "response_b", "winner"), OTHER, strict=False))


def write_json(folder: Path, rows: list[dict]) -> Path:
    """Writes jsonl whose texts may have surrogates, as escapes."""
    (path := folder / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build_row(id="x", **fields) -> dict:
    return {"id": id, "prompt": "p", "response_a": "one", "response_b": "two", **fields}


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_columns_get_the_names_that_the_user_gives(tmp_path, suffix):
    path = write_rows(tmp_path / f"f{suffix}", [OTHER])
    assert load_battles(path, columns=NAMES).to_list() == [build_row(label=B, note="n")]
    with pytest.raises(ValueError, match=r"missing columns prompt, .* as in --columns response_a=answer_a"):
        load_battles(path)


def test_a_name_that_the_source_has_already_needs_no_other(tmp_path):
    """One flag serves several sources, of which some have the usual names."""
    path = write_rows(tmp_path / "f.jsonl", [build_row(winner="tie")])
    assert load_battles(path, columns=NAMES)["label"][:] == [TIE]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"prompt": "frage"},
            r"f\.jsonl: --columns prompt=frage: expected a column frage; found uuid, .*Check",
        ),
        ({"note": "question"}, "--columns note=question: expected no other column note; found one. .*old_note=note"),
        ({"prompt": "question", "id": "question"}, "--columns: expected one name for each column; found"),
    ],
)
def test_names_that_cannot_be_given_are_an_error(tmp_path, columns, message):
    path = write_rows(tmp_path / "f.jsonl", [OTHER])
    with pytest.raises(ValueError, match=message):
        load_battles(path, columns=columns)


def test_names_may_be_swapped(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [build_row(winner="model_a")])
    swapped = load_battles(path, columns={"response_a": "response_b", "response_b": "response_a"})
    assert (swapped["response_a"][0], swapped["response_b"][0]) == ("two", "one")


def test_a_renamed_column_may_be_absent_from_later_parts(tmp_path):
    rows = [build_row(f"x{n}", **({"lang": "en"} if n < 2048 else {})) for n in range(2050)]
    battles = load_battles(write_rows(tmp_path / "f.jsonl", rows), columns={"language": "lang"})
    assert (battles["language"][0], battles["language"][2049]) == ("en", None)


# --- winners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("words", [("a", "b"), ("A", "B"), ("model_1", "model_2")])
def test_words_that_mean_one_side_are_read_and_the_log_says_so(tmp_path, caplog, words, suffix):
    rows = [build_row(f"x{n}", winner=word) for n, word in enumerate((*words, "tie", "model_a"))]
    path = write_rows(tmp_path / f"f{suffix}", rows)
    assert load_battles(path)["label"][:] == [A, B, TIE, A]
    assert f"{path}: reads the winners {words[0]} as model_a, {words[1]} as model_b; --winner_v" in caplog.text


def test_a_word_that_is_a_model_s_name_is_not_read(tmp_path):
    """There "a" may be the model that is shown second."""
    path = write_rows(tmp_path / "f.jsonl", [build_row(winner="a", model_a="b", model_b="a")])
    with pytest.raises(ValueError, match="battle 'x': winner must be one of model_a, model_b, tie; found 'a'"):
        load_battles(path)
    values = {"model_a": "b", "model_b": "a"}
    assert load_battles(path, winner_values=values)["label"][:] == [B]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("values", [(0, 1, 2), (1, 2, 0), (1.0, 0.0, 0.5), ("left", "right", "both"), (-1, 1, 0)])
def test_other_values_are_read_as_the_user_says(tmp_path, suffix, values):
    asked = dict(zip(("model_a", "model_b", "tie"), values, strict=True))
    path = write_rows(tmp_path / f"f{suffix}", [build_row(f"x{n}", winner=value) for n, value in enumerate(values)])
    for given in (asked, {winner: str(value) for winner, value in asked.items()}):  # as flags give them
        assert load_battles(path, winner_values=given)["label"][:] == [A, B, TIE]
    with pytest.raises(ValueError, match="winner must be one of") as error:
        load_battles(path)
    assert ("--winner_values model_a=<its value>" in str(error.value)) is not isinstance(values[0], str)


def test_booleans_are_no_winners_unless_the_user_says_which(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [build_row("x", winner=True), build_row("y", winner=False)])
    with pytest.raises(
        ValueError, match=r"found True, False\. A number may mean either side; say which one: --winner_v"
    ):
        load_battles(path)
    assert load_battles(path, winner_values={"model_a": "true", "model_b": "false"})["label"][:] == [A, B]


def test_values_of_winners_do_not_matter_without_winners(tmp_path):
    """The same flags predict battles without outcomes."""
    path = write_rows(tmp_path / "f.jsonl", [build_row()])
    assert load_battles(path, winner_values={"model_a": 1}).to_list() == [build_row()]


def test_a_value_that_was_not_named_is_an_error(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [build_row("x", winner=1), build_row("y", winner=3)])
    with pytest.raises(ValueError, match="battle 'y': winner must be one of model_a, model_b, tie; found 3"):
        load_battles(path, winner_values={"model_a": 1, "model_b": 2})


@pytest.mark.parametrize("values", [{"a": 1}, {"model_a": 1, "model_b": "1"}, {"model_a": 1, "model_b": 1.0}])
def test_values_that_do_not_tell_winners_apart_are_an_error(tmp_path, values):
    path = write_rows(tmp_path / "f.jsonl", [build_row(winner=1)])
    with pytest.raises(ValueError, match="--winner_values: expected another value for each of model_a, model_b, tie"):
        load_battles(path, winner_values=values)


# --- repairs ----------------------------------------------------------------------------------------------------------


def test_lone_surrogates_are_repaired_at_any_depth_and_each_battle_is_counted_once(tmp_path, caplog):
    broken, whole = "a\ud83d", "a\ufffd"
    deep = [{"role": "user", "content": [{"text": broken}]}, {broken: None}]
    rows = [build_row(f"x{n}", note=broken, deep=deep, prompt=broken) for n in range(7)]
    rows.append(build_row("sound", note="n", deep=[{"role": "user", "content": [{"text": "t"}]}]))
    battles = load_battles(path := write_json(tmp_path, rows))
    assert battles["note"][:2] == [whole] * 2 and battles["prompt"][0] == whole
    assert battles["deep"][6][0]["content"] == [{"text": whole}] and whole in battles["deep"][0][1]
    named = ", ".join(f"'x{n}'" for n in range(5))
    assert f"{path}: battles {named} and 2 more: repaired broken Unicode" in caplog.text


def test_nan_in_a_column_with_a_repair_is_not_counted(tmp_path, caplog):
    rows = [build_row("x", note="a\ud83d"), build_row("y", note=float("nan"))]
    assert load_battles(path := write_json(tmp_path, rows))["note"][:] == ["a\ufffd", None]
    assert f"{path}: battle 'x': repaired" in caplog.text
