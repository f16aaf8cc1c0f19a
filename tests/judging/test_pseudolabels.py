"""Pseudo-labels and their script: rows keep their id, battles left out are counted, no input is overwritten."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling.data.battles import load_battles
from modeling.judging import judge
from modeling.judging.pseudolabels import PartFolder, describe_training
from modeling.runtime.sources import iterate_columns
from tests.helpers import SAMPLES, call, fail


@pytest.fixture
def pool(tmp_path) -> Path:
    """Six battles with different prompts and no outcomes."""
    asked = ("tell me about whales", "how do engines work", "what is a poem", "name a river", "draw a cat", "say hello")
    rows = [
        {"id": f"x{row}", "prompt": text, "response_a": "yes", "response_b": "no"} for row, text in enumerate(asked)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path := tmp_path / "pool.parquet")
    return path


def list_flags(members: dict[str, Path], pool: Path, output: Path) -> list:
    return ["--battles", pool, "--judge", *members.values(), "--output", output]


def test_a_pool_is_labelled_in_parts_without_training_prompts_and_resumes_after_a_crash(
    members, tmp_path, monkeypatch, caplog
):
    """Parts of 10 give the labels of one part of 72, and finished parts are not read again."""
    pool = load_battles(SAMPLES / "test.jsonl").to_pandas().drop(columns="label")
    pool.to_parquet(battles := tmp_path / "pool.parquet")
    pool[5:9].assign(prompt=pool["prompt"][5:9].str.upper()).to_parquet(tmp_path / "train.parquet")
    flags = ["--battles", battles, "--judge", *members.values(), "--exclude", tmp_path / "train.parquet"]
    call("pseudolabel", *flags, "--output", tmp_path / "whole.parquet", monkeypatch=monkeypatch)
    whole = pd.read_parquet(tmp_path / "whole.parquet")
    assert set(pool["id"]) - set(whole["id"]) >= set(pool["id"][5:9]) and len(whole) >= 60
    assert set(whole["judge"]) == {"ab+ba"} and set(whole["judge_readings"]) == {"ab:ab+ab:ba+ba:ab+ba:ba"}
    assert {"judge_revision", "judged_on", "tokens", "cut_prompt", "language"} < set(whole)

    reads, real = [], judge.Judge.predict

    def stop_at_the_fourth(self, part, **options):
        reads.append(len(part))
        if len(reads) == 4:
            raise KeyboardInterrupt
        return real(self, part, **options)

    monkeypatch.setattr(judge.Judge, "predict", stop_at_the_fourth)
    parts = [*flags, "--output", tmp_path / "parts.parquet", "--rows_per_part", 10]
    with pytest.raises(SystemExit):
        call("pseudolabel", *parts, monkeypatch=monkeypatch)
    assert not (tmp_path / "parts.parquet").exists()
    reads.extend([0] * 4)  # past the fourth call, so it does not stop again
    call("pseudolabel", *parts, monkeypatch=monkeypatch)
    assert len(reads) == 8 + 8 - 3  # three parts were finished
    found = pd.read_parquet(tmp_path / "parts.parquet")
    assert found["id"].tolist() == whole["id"].tolist()
    assert np.allclose(np.stack(found["label"]), np.stack(whole["label"]), atol=1e-5)
    assert not list(tmp_path.glob(".parts*"))


@pytest.mark.parametrize(
    ("battles", "output", "exclude", "found"),
    [
        ("pool.parquet", "pool.parquet", "empty.csv", "--battles"),
        ("link.parquet", "pool.parquet", "empty.csv", "--battles"),
        ("empty.csv", "pool.parquet", "link.parquet", "--exclude"),
        (".", "new.parquet", "empty.csv", "--battles"),
    ],
)
def test_neither_the_pool_nor_the_excluded_files_are_overwritten(
    battles, output, exclude, found, pool, tmp_path, monkeypatch, caplog
):
    """It is refused before anything is read: the other file is empty, and the judge does not exist."""
    (tmp_path / "link.parquet").symlink_to(pool)
    (tmp_path / "empty.csv").touch()
    monkeypatch.chdir(tmp_path)
    before = pool.read_bytes()
    flags = ["--battles", battles, "--judge", "nobody", "--output", output, "--exclude", exclude]
    said = fail("pseudolabel", *flags, monkeypatch=monkeypatch, caplog=caplog)
    path = battles if found == "--battles" else exclude
    assert f"--output {output}: expected a file apart from what is read; found {found} {path}. " in said
    assert pool.read_bytes() == before and {path.name for path in tmp_path.iterdir()} == {
        "pool.parquet",
        "link.parquet",
        "empty.csv",
    }


def test_an_output_that_is_a_folder_is_refused_at_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "out.parquet").mkdir()
    (tmp_path / "empty.csv").touch()
    flags = ["--battles", tmp_path / "empty.csv", "--judge", "nobody", "--output", tmp_path / "out.parquet"]
    assert "expected a file; found a folder" in fail("pseudolabel", *flags, monkeypatch=monkeypatch, caplog=caplog)


def test_without_exclude_the_files_that_the_members_were_trained_on_are_named(
    members, pool, tmp_path, monkeypatch, caplog
):
    trainings = {"train_file": ["t.parquet", "o/n"], "eval_file": None}, {"train_file": ["o/n"], "eval_file": "e.csv"}
    real = judge.Judge.from_pretrained

    def load(*arguments, **options):
        loaded = real(*arguments, **options)
        assert describe_training(loaded) == "not recorded"  # members made by the fixture recorded no files
        for member, training in zip(loaded.members, trainings, strict=True):
            member.facts.training.update(training)
        return loaded

    monkeypatch.setattr(judge.Judge, "from_pretrained", load)
    flags = list_flags(members, pool, tmp_path / "o.parquet")
    call("pseudolabel", *flags, monkeypatch=monkeypatch)
    said = "found none, so no battle is left out. The judge was trained and evaluated on"
    assert f"{said}: t.parquet, o/n, e.csv" in caplog.text
    caplog.clear()
    call("pseudolabel", *flags, "--exclude", pool, monkeypatch=monkeypatch)
    assert "was trained and evaluated on" not in caplog.text and len(pq.read_table(tmp_path / "o.parquet")) == 0


def test_battles_left_out_are_counted_with_the_first_ids(members, pool, tmp_path, monkeypatch, caplog):
    """In parts of two battles. The second part is excluded as a whole, and no battle has a probability of 1."""
    rows = pq.read_table(pool).slice(2, 2).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "known.parquet")
    flags = [*list_flags(members, pool, tmp_path / "o.parquet"), "--rows_per_part", 2]
    flags += ["--exclude", tmp_path / "known.parquet"]
    call("pseudolabel", *flags, monkeypatch=monkeypatch)
    assert f"{pool}: left out 2 of 6 that have a prompt of --exclude: battles 'x2', 'x3'" in caplog.text
    assert "--min_confidence" not in caplog.text
    soft = pq.read_table(tmp_path / "o.parquet")
    assert soft["id"].to_pylist() == ["x0", "x1", "x4", "x5"] and soft.schema.field("tokens").type == pa.int64()
    call("pseudolabel", *flags, "--min_confidence", 1, monkeypatch=monkeypatch)
    said = "left out 4 of 6 that are below --min_confidence: battles 'x0', 'x1', 'x4', 'x5'"
    assert f"{pool}: {said}" in caplog.text and len(pq.read_table(tmp_path / "o.parquet")) == 0


def test_excluded_files_have_their_own_schema_and_the_pool_s_row_policy(members, pool, tmp_path, monkeypatch, caplog):
    row = {"id": "1", "prompt": "NAME a river!", "response_a": "x", "response_b": "y"}
    (tmp_path / "two.jsonl").write_text(json.dumps({**row, "winner": "model_a", "label": [1, 0]}))
    bad = {**row, "id": "2", "prompt": "draw a cat", "winner": "model_c"}
    (tmp_path / "bad.jsonl").write_text(json.dumps({**row, "winner": "tie"}) + "\n" + json.dumps(bad))
    flags = [*list_flags(members, pool, tmp_path / "o.parquet"), "--exclude"]
    for name, way_out in (("two", ["--exclude_schema", "label"]), ("bad", ["--bad_row_policy", "drop"])):
        exclude = [*flags, tmp_path / f"{name}.jsonl"]
        said = fail("pseudolabel", *exclude, monkeypatch=monkeypatch, caplog=caplog)
        assert way_out[0] in said and f"{name}.jsonl" in said
        call("pseudolabel", *exclude, *way_out, monkeypatch=monkeypatch)
        labelled = pq.read_table(tmp_path / "o.parquet")["id"].to_pylist()
        assert labelled == ["x0", "x1", "x2", "x4", "x5"]
    assert "bad.jsonl: dropped 1 of 2 battles with a fault" in caplog.text


def test_a_part_is_finished_only_if_all_of_its_columns_were_the_same(pool, tmp_path):
    """A pool whose language column was corrected between a crash and the restart must not keep the old values."""
    (columns,) = iterate_columns(pool)
    names = []
    for language in ("English", "Klingon", "English"):
        pq.write_table(pa.table({**columns, "language": [language] * 6}), tmp_path / "f.parquet")
        parts = PartFolder(tmp_path / "parts", names)
        assert parts.begin(load_battles(tmp_path / "f.parquet"), {}) is (len(names) < 2)
        names.append(parts.parts[0].name)
    assert names[0] == names[2] != names[1]
