"""Battles to annotators and back, in every format: votes belong to their battle and side, and nothing is lost."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from modeling.data.annotation import (
    CHOICES,
    CONFIG_FILE,
    FILES,
    draw_order,
    label_battles,
    read_annotations,
    write_tasks,
)
from modeling.data.battles import load_battles
from modeling.data.schemas import is_chosen_first
from modeling.runtime.choices import ANNOTATION_FORMATS
from tests.helpers import SAMPLES, call, fail, write_rows

ANNOTATORS = ("ann", "bob")


@pytest.fixture
def battles():
    return load_battles(SAMPLES / "test.jsonl").select(range(12))


def fill_csv(path: Path, votes: dict) -> None:
    """As a spreadsheet does that separates by semicolons; a row per annotator, unanswered ones as they were."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";")
        writer.writeheader()
        for row in rows:
            writer.writerows(
                [row | {"winner": vote, "annotator": name} for name, vote in votes.get(row["id"], {}).items()] or [row]
            )


def fill_argilla(path: Path, votes: dict) -> None:
    """As `Record.to_dict` of argilla 2.8 writes responses; other tools add a status."""
    records = json.loads(path.read_text(encoding="utf-8"))
    for record in records:
        given = votes.get(record["id"], {})
        record["responses"] = {"winner": [{"value": vote, "user_id": name} for name, vote in given.items()]}
        record |= {"suggestions": {}, "vectors": {}, "_server_id": None}
        if not given:
            record["responses"] = {"winner": [{"value": "left", "user_id": "ann", "status": "draft"}]}
    path.write_text(json.dumps(records))


def fill_labelstudio(path: Path, votes: dict) -> None:
    """As Label Studio exports JSON: a task number, and annotations with results; a skipped one has none."""
    tasks = json.loads(path.read_text(encoding="utf-8"))
    for number, task in enumerate(tasks):
        given = votes.get(task["data"]["battle"], {})
        task |= {"id": number, "predictions": [], "annotations": [{"result": [], "was_cancelled": True}]}
        for name, vote in given.items():
            result = {"from_name": "winner", "to_name": "prompt", "type": "choices", "value": {"choices": [vote]}}
            task["annotations"].append({"completed_by": {"id": 7, "email": name}, "result": [result]})
    path.write_text(json.dumps(tasks))


FILL = {"csv": fill_csv, "argilla": fill_argilla, "labelstudio": fill_labelstudio}


def test_half_of_the_battles_show_a_on_the_left_whichever_answer_was_chosen():
    """Also of those that a file of pairs puts on side a: else every chosen answer would be on the left."""
    ids = [f"x{n}" for n in range(2000)]
    for part in (ids, [id for id in ids if is_chosen_first(id)]):
        assert sum(draw_order(id) == "ab" for id in part) / len(part) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("format", ANNOTATION_FORMATS)
def test_votes_come_back_to_their_battles_and_sides(format, battles, tmp_path):
    """Two annotators vote on all battles but two: ann always for a, bob in turn for left, right and both ties."""
    paths = write_tasks(tmp_path, battles, format)
    assert [path.name for path in paths] == [FILES[format], CONFIG_FILE][: len(paths)]
    votes, expected = {}, {}
    for number, id in enumerate(battles["id"][:10]):
        for_a = "left" if draw_order(id) == "ab" else "right"
        bobs = list(CHOICES)[number % 4]
        votes[id] = {"ann": for_a, "bob": bobs}
        expected[id] = [1.0, {for_a: 1.0, "tie": 0.5, "both_bad": 0.5}.get(bobs, 0.0)]
    FILL[format](paths[0], votes)
    found = read_annotations([str(paths[0])], battles)
    table = found.dropna(subset="p_a").pivot(index="id", columns="annotator", values="p_a")
    assert {id: table.loc[id, list(ANNOTATORS)].tolist() for id in table.index} == expected
    assert set(found["id"][found["p_a"].isna()]) >= set(battles["id"][10:])

    labelled = label_battles(battles, found)
    assert labelled["id"][:] == battles["id"][:10] and labelled["response_a"][:] == battles["response_a"][:10]
    assert labelled["label"][:] == [[sum(pair) / 2, 1 - sum(pair) / 2] for pair in expected.values()]
    assert set(labelled["num_votes"]) == {2} and labelled["annotators"][0] == list(ANNOTATORS)


@pytest.mark.parametrize("format", ANNOTATION_FORMATS)
def test_annotators_see_the_texts_and_no_probability(format, battles, tmp_path):
    scored = battles.add_column("p_a", [0.123456] * 12).add_column("score", [0.98765] * 12)
    text = write_tasks(tmp_path, scored, format)[0].read_text(encoding="utf-8-sig")
    assert "0.123456" not in text and "0.98765" not in text
    assert json.dumps(battles["response_a"][3], ensure_ascii=False)[1:20] in text


def test_a_spreadsheet_computes_no_text(tmp_path):
    row = {"id": "x1", "prompt": "=1+1", "response_a": "- a list", "response_b": "a = b"}
    (path,) = write_tasks(tmp_path, load_battles(write_rows(tmp_path / "pool.jsonl", [row])), "csv")
    (written,) = pd.read_csv(path)[["prompt", "left", "right"]].to_numpy()
    assert set(written) == {"'=1+1", "'- a list", "a = b"}


def load_one(folder: Path) -> Dataset:
    row = {"id": "x1", "prompt": "p", "response_a": "a", "response_b": "b"}
    return load_battles(write_rows(folder / "pool.jsonl", [row]))


@pytest.mark.parametrize("id", ["0012", "-k3", "=a", "'q", "x1", "1e5"])
def test_a_spreadsheet_changes_no_id(id, tmp_path):
    """An id that looks like a number or a formula is written as text, and read back as it was."""
    row = {"id": id, "prompt": "p", "response_a": "a", "response_b": "b"}
    battles = load_battles(write_rows(tmp_path / "pool.jsonl", [row]))
    (path,) = write_tasks(tmp_path, battles, "csv")
    table = pd.read_csv(path, dtype=str)
    assert table["id"][0] == (id if id == "x1" else f"'{id}")
    table.assign(winner="left", annotator="ann").to_csv(path, index=False)
    assert read_annotations([str(path)], battles)["id"].tolist() == [id]


@pytest.mark.parametrize(
    "task",
    [
        "x",
        {"id": "x1", "fields": {}, "metadata": None, "responses": {}},
        {"id": "x1", "fields": {}, "metadata": {"order": "ab"}, "responses": None},
        {"data": {"battle": "x1", "order": "ab"}, "annotations": [{"completed_by": 1}]},
        {"data": {"battle": "x1", "order": "ab"}, "annotations": [{"result": [{"from_name": "winner"}]}]},
        {"data": None},
    ],
)
def test_an_export_of_another_shape_is_one_error(task, tmp_path):
    battles = load_one(tmp_path)
    (tmp_path / "votes.json").write_text(json.dumps([task]))
    with pytest.raises(ValueError, match=r"votes\.json: expected tasks or records as select.py wrote them"):
        read_annotations([str(tmp_path / "votes.json")], battles)


@pytest.mark.parametrize("value", [["left"], 7])
def test_a_choice_that_is_no_text_is_refused(value, tmp_path):
    battles = load_one(tmp_path)
    responses = {"winner": [{"value": value, "user_id": "u", "status": "submitted"}]}
    record = {"id": "x1", "fields": {}, "metadata": {"order": "ab"}, "responses": responses}
    (tmp_path / "votes.json").write_text(json.dumps([record]))
    with pytest.raises(ValueError, match="expected a winner, left"):
        read_annotations([str(tmp_path / "votes.json")], battles)


def test_a_csv_in_another_encoding_is_named(tmp_path):
    (tmp_path / "votes.csv").write_bytes("id,order,winner,annotator\nx1,ab,left,René\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"votes\.csv: expected text in UTF-8"):
        read_annotations(
            [str(tmp_path / "votes.csv")],
            load_one(tmp_path),
        )


def write_csv(path: Path, **changed) -> str:
    row = {"id": "x1", "order": "ab", "winner": "left", "annotator": "ann"} | changed
    return str(write_rows(path / "votes.csv", [row]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"id": "y9"}, "expected a battle of --battles; found 'y9' in 1: battle 'y9'"),
        ({"order": "left"}, "expected an order, ab or ba, as it was written; found 'left'"),
        ({"winner": "model_a"}, "expected a winner, left, right, tie, both_bad, or nothing; found 'model_a'"),
        ({"annotator": ""}, "expected an annotator for each winner"),
        ({"winner": "", "annotator": ""}, "expected answers of annotators; found none"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(changed, said, tmp_path):
    battles = pd.DataFrame([{"id": "x1", "prompt": "p", "response_a": "a", "response_b": "b"}])
    write_rows(tmp_path / "pool.jsonl", battles.to_dict("records"))
    with pytest.raises(ValueError, match=said):
        read_annotations([write_csv(tmp_path, **changed)], load_battles(tmp_path / "pool.jsonl"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,winner\nx1,left\n", "found no annotator and no order"),
        ('[{"id": 1, "winner": "left", "battle": "x1"}]', "as JSON \\(not JSON-MIN\\)"),
        ('[{"id": ', "found an error in it"),
    ],
)
def test_a_file_of_another_kind_says_what_to_export(text, said, battles, tmp_path):
    (tmp_path / "votes").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_annotations([str(tmp_path / "votes")], battles)


def test_an_annotator_has_one_vote_on_a_battle(battles, tmp_path):
    path = write_csv(tmp_path, id=battles["id"][0])
    with pytest.raises(ValueError, match=f"one answer of an annotator to a battle; found .*{battles['id'][0]}"):
        read_annotations([path, path], battles)


def test_the_script_makes_training_data_and_says_how_far_annotators_agree(
    battles, tmp_path, monkeypatch, caplog, capsys
):
    """Two annotators agree on four of five battles; a sixth has no vote, the others were never shown."""
    battles.to_parquet(tmp_path / "pool.parquet")
    ids = battles["id"][:6]
    for name, second in (("ann", "left"), ("bob", "right")):
        winners = ["left", "left", "right", "right", second, ""]
        rows = [
            {"id": id, "order": draw_order(id), "winner": winner, "annotator": name}
            for id, winner in zip(ids, winners, strict=True)
        ]
        write_rows(tmp_path / f"{name}.csv", rows)
    judge = pd.DataFrame({"id": battles["id"][:], "p_a": 1.0, "p_b": 0.0})
    judge.to_parquet(tmp_path / "p.parquet")
    flags = ["--battles", tmp_path / "pool.parquet", "--predictions", tmp_path / "p.parquet", "--output_dir"]
    files = ["--annotations", tmp_path / "ann.csv", tmp_path / "bob.csv"]
    call("select", *flags, tmp_path / "out", *files, monkeypatch=monkeypatch)
    labelled = load_battles(tmp_path / "out" / "labelled.parquet", require_labels=True)
    assert labelled["id"][:] == ids[:5] and labelled["label"][4] == [0.5, 0.5]
    assert [label[0] for label in labelled["label"]][:2] == [float(draw_order(id) == "ab") for id in ids[:2]]
    agreement = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert agreement["percent_agreement"]["value"] == 0.8 and agreement["unanswered"] == 1
    for_a = sum(draw_order(id) == ("ab" if place in (0, 1, 4) else "ba") for place, id in enumerate(ids[:5]))
    assert agreement["annotators"]["ann"]["with_judge"]["value"] == for_a / 5
    assert f"no answer to 1: battle '{ids[5]}'" in caplog.text and "10 votes on 5 battles" in capsys.readouterr().out
    said = fail("select", *flags, tmp_path / "none.csv", *files[:1], "none.csv", monkeypatch=monkeypatch, caplog=caplog)
    assert "Annotations none.csv: expected a file; found none" in said
