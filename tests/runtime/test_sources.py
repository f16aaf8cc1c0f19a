"""Laws of sources.py and formats.py: every way in gives the same rows; what cannot be read says where and why."""

import gzip
import json
import shutil
import zipfile
from pathlib import Path
from unittest.mock import Mock, call

import datasets
import pyarrow as pa
import pytest

import modeling.runtime.formats
from modeling.data.battles import load_battles
from modeling.judging.predictions import name_winners, write_verdicts
from modeling.runtime.files import describe_file
from modeling.runtime.sources import iterate_columns
from tests.helpers import write_rows

HEADER = "id,prompt,response_a,response_b,winner"


def build_rows() -> list[dict]:
    """Returns texts that readers often change: "null" and the like, line ends, quotes, separators, very long ones."""
    texts = ["null", "NA", "NaN", "None", "1", "1.50", "true", "{}", "a,b", "back\\slash\\n", 'say "hi"', '"']
    texts += [
        "one\ntwo",
        "1\r\n2\r3",
        " padded ",
        "tab\there",
        "\ufeffBOM",
        "\u2028 ends no line, nor does \x85",
        "한국어 👩‍👩‍👧",
    ]
    texts += ["0123456789abcde\n" * 65536]  # 1 MiB, eight times the csv module's own limit
    winners = ["model_a", "model_b", "tie"]
    rows = [{"id": f"0{row}", "prompt": text, "response_a": f"{text}!"} for row, text in enumerate(texts)]
    return [row | {"response_b": "b", "winner": winners[i % 3], "note": ""} for i, row in enumerate(rows)]


def read_columns(path: Path) -> dict[str, list]:
    (columns,) = iterate_columns(path)
    return columns


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    rows = build_rows()
    path = write_rows(tmp_path / f"battles{suffix}", rows)
    labels = {"model_a": [1.0, 0.0], "model_b": [0.0, 1.0], "tie": [0.5, 0.5]}
    assert load_battles(path).to_list() == [row | {"label": labels[row.pop("winner")]} for row in rows]


def test_labels_read_the_same_from_every_format(tmp_path):
    rows = [{"id": "x", "prompt": "p", "response_a": "a", "response_b": "b", "label": [0.25, 0.75]}]
    paths = [write_rows(tmp_path / f"battles{suffix}", rows) for suffix in (".parquet", ".csv", ".jsonl")]
    assert all(load_battles(path).to_list() == rows for path in paths)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path, suffix):
    rows = build_rows()[:12]  # no text with line ends of its own
    path = write_rows(tmp_path / f"battles{suffix}", rows)
    plain = read_columns(path)
    assert plain["prompt"] == [row["prompt"] for row in rows]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert read_columns(path) == plain


def test_an_empty_csv_cell_is_an_empty_text_and_blank_only_where_a_text_is_needed(tmp_path):
    path = tmp_path / "battles.csv"
    path.write_text(f'{HEADER},note\nx,p,a,b,tie,\ny,p,a,"",tie,n\n', encoding="utf-8")
    assert read_columns(path)["note"] == ["", "n"]
    with pytest.raises(ValueError, match=r"battle 'y': .* not be null or blank; found \{'response_b': ''\}"):
        load_battles(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv", f"{HEADER}\nx,p,a,b,tie\ny,p,a,b\n", "line 3: expected 5 fields; found 4. Quote fields"),
        ("f.csv", f"{HEADER}\nx,p,a,b,c,tie\n", "line 2: expected 5 fields; found 6"),
        ("f.csv", f'{HEADER}\nx,"p"q,a,b,tie\n', "line 2: malformed csv"),
        ("f.csv", f'{HEADER}\nx,"p,a,b,tie\n', "malformed csv: unexpected end of data"),
        ("f.csv", f"{HEADER},id\nx,p,a,b,tie,y\n", "expected distinct column names"),
        (
            "f.csv",
            'id,prompt,response_a,response_b,label\nx,p,a,b,"[1, 0"\n',
            r"battle 'x': label must be 2 .*'\[1, 0'",
        ),
        ("f.csv", 'prompt,label\np,"[1, 0]"\n', "missing columns response_a, response_b; found prompt, label"),
        ("f.csv", "", "missing columns prompt, response_a, response_b; found no columns"),
        ("f.jsonl", '{"id": 1}\n\n{"id": 2\n', "line 3: expected JSON; found '{\"id\": 2'"),
        ("f.jsonl", '["id", 1]\n', "line 1: expected one JSON object a line; found"),
        ("f.jsonl", "id,prompt\n", "line 1: expected JSON; found 'id,prompt'"),
        ("f.csv", f"{HEADER}\nx,{'p' * 9000},Gr\xfc\xdf\n".encode("latin-1"), r"UTF-8 text; found b'p+,Gr\\xfc'"),
        ("f.jsonl", '{"id": "Gr\xfc"}'.encode("latin-1"), "expected UTF-8 text; found .*Re-encode the file"),
        ("f.jsonl", '{"id": 1}'.encode("utf-16-le"), "line 1: expected JSON; found"),  # no byte order mark
        ("f.csv", f"{HEADER}\n".encode("utf-16")[:-1], "expected UTF-16 text; found .*Re-encode the file"),
        ("f.parquet", HEADER, "expected a parquet file; found damaged or other data"),
        ("f.parquet", "", "expected a parquet file; found damaged or other data"),
        ("f.json", "[]", r"expected a file ending in .parquet, .csv, .tsv, .jsonl \(each .*\.zip; found '.json'"),
        ("battles", "", "expected a file ending in .parquet, .*; found 'no ending'"),
        ("f.json.gz", "", "expected a file ending in .parquet, .*; found '.gz'"),
        (
            "f.csv.gz",
            gzip.compress(HEADER.encode(), mtime=0)[:20],
            "expected a csv file, packed with gzip; found damaged",
        ),
        ("f.csv.zst", HEADER, "expected a csv file, packed with zstd; found damaged or other data"),
        ("f.parquet.gz", gzip.compress(b"PAR1", mtime=0), "expected a parquet file, packed with gzip; found damaged"),
        ("f.zip", HEADER, "expected a zip file; found damaged or other data"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_says_where(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_battles(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("damage", ["cut short", "overwritten page", "overwritten footer"])
def test_a_damaged_parquet_is_an_error_that_names_it(tmp_path, damage):
    """Arrow reports a bad page as a plain OSError that does not name the file."""
    path = write_rows(tmp_path / "f.parquet", build_rows()[:-1] * 50)
    content = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(content[: len(content) // 2])
    else:
        start = 100 if damage == "overwritten page" else len(content) - 200
        path.write_bytes(content[:start] + b"\xff" * 100 + content[start + 100 :])
    with pytest.raises(ValueError, match=r"f\.parquet: expected a parquet file; found damaged"):
        load_battles(path)


@pytest.mark.parametrize("name", ["f.csv", "owner/none.parquet", "a/b/c/d", "none", "none@1:train"])
def test_a_source_that_is_not_there_is_an_error_with_the_way_out(name):
    with pytest.raises(FileNotFoundError, match=f"Battles file {name}: expected a file, .*; found no.* Check the name"):
        load_battles(name)


def test_a_folder_of_data_files_is_streamed_in_parts(tmp_path):
    """A downloaded Hub data set is such a folder."""
    rows = [row | {"prompt": f"p{row['id']}"} for row in build_rows()[:9]]
    write_rows(tmp_path / "train-0.jsonl", rows[:5])
    write_rows(tmp_path / "train-1.jsonl", rows[5:])
    chunks = list(iterate_columns(tmp_path, 4))
    assert [len(chunk["id"]) for chunk in chunks] == [4, 4, 1]
    assert load_battles(tmp_path)["prompt"][:] == [row["prompt"] for row in rows]
    with pytest.raises(FileNotFoundError, match=r"files of the split validation; found no such split, only train\."):
        load_battles(f"{tmp_path}:validation")


def test_a_hub_data_set_is_asked_for_by_id_subset_revision_and_split(monkeypatch):
    rows = {name: [name, name] for name in ("prompt", "response_a", "response_b")} | {"id": [1, 2]}
    asked = Mock(return_value=Mock(iter=lambda batch_size: iter([rows])))
    monkeypatch.setattr(datasets, "load_dataset", asked)
    assert load_battles("lmarena-ai/arena-140k@v2:test")["id"][:] == [1, 2]
    load_battles("lmarena-ai/arena-140k")
    load_battles("o/mix/20231101.en@v2:test")
    assert asked.call_args_list == [
        call("lmarena-ai/arena-140k", revision="v2", split="test", streaming=True),
        call("lmarena-ai/arena-140k", revision=None, split="train", streaming=True),
        call("o/mix", revision="v2", split="test", name="20231101.en", streaming=True),
    ]


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("mlabonne/orpo-dpo-mix-40k-v1.2", ("mlabonne/orpo-dpo-mix-40k-v1.2", None, "train")),
        ("o/mix.en@v1.0:test.small", ("o/mix.en", "v1.0", "test.small")),
    ],
)
def test_a_dot_in_a_name_does_not_make_it_a_file(tmp_path, monkeypatch, source, asked):
    monkeypatch.chdir(tmp_path)
    load = Mock(return_value=Mock(iter=lambda batch_size: iter([{"id": [1]}])))
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(iterate_columns(source)) == [{"id": [1]}]
    load.assert_called_once_with(asked[0], revision=asked[1], split=asked[2], streaming=True)


@pytest.mark.parametrize("name", ["o/train.csv", "o/train.v2.JSONL", "o/train.json.gz", "./o/n", "o/n/m/v1", "n"])
def test_a_missing_file_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", load := Mock())
    with pytest.raises(FileNotFoundError, match=r"expected a file, .*; found none\. Check the name"):
        list(iterate_columns(name))
    load.assert_not_called()


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_parts_of_any_size_give_the_same_rows(tmp_path, suffix):
    path = write_rows(tmp_path / f"battles{suffix}", build_rows()[:13])
    whole = read_columns(path)
    for chunk_rows in (1, 5, 13, 14):
        chunks = list(iterate_columns(path, chunk_rows))
        assert all(0 < len(chunk["id"]) <= chunk_rows for chunk in chunks)
        assert {name: [value for chunk in chunks for value in chunk[name]] for name in whole} == whole


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_of_one_endless_line_is_an_error_before_it_fills_the_memory(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(modeling.runtime.formats, "LINE_LIMIT", 1000)
    path = tmp_path / f"f{suffix}"
    path.write_text(f"{HEADER}\n{'x' * 1001}\n" if suffix == ".csv" else f'{{"id": "{"x" * 1001}"}}\n')
    with pytest.raises(ValueError, match=rf"f\{suffix}, line \d: expected at most 1,000 characters; found more, begin"):
        load_battles(path)
    path = tmp_path / "quoted.csv"
    path.write_text(HEADER + '\n"' + "x\n" * 600 + '",p,a,b,tie\n')
    with pytest.raises(ValueError, match="malformed csv: field larger than field limit"):
        load_battles(path)


# --- packed files, folders, archives ----------------------------------------------------------------------------------

# What pandas, and so `datasets`, takes for a missing value or a number.
ANSWERS = ["None", "NA", "null", "nan", "1.50"]


def build_answers() -> list[dict]:
    rows = [{"id": f"{n:04}", "prompt": "p", "response_a": text} for n, text in enumerate(ANSWERS)]
    return [row | {"response_b": "b", "winner": "model_a"} for row in rows]


def pack(path: Path, compression: str) -> Path:
    """Writes a packed copy of a file beside it, by another library's code for gzip."""
    packed = path.with_name(f"{path.name}.{compression}")
    if compression == "gz":
        packed.write_bytes(gzip.compress(path.read_bytes()))
    else:
        with pa.CompressedOutputStream(str(packed), "zstd") as stream:
            stream.write(path.read_bytes())
    path.unlink()
    return packed


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_a_packed_file_reads_as_the_file_does(tmp_path, suffix, compression):
    path = write_rows(tmp_path / f"battles{suffix.replace('tsv', 'csv')}", build_answers())
    if suffix == ".tsv":
        path.write_text(path.read_text().replace(",", "\t"))
        path = path.rename(path.with_suffix(".tsv"))
    plain = list(iterate_columns(path, 2))
    assert [row for part in plain for row in part["response_a"]] == ANSWERS
    assert list(iterate_columns(pack(path, compression), 2)) == plain


@pytest.mark.parametrize("way", ["folder", "zip", "zip in a folder", "packed folder"])
def test_a_folder_reads_as_its_file_does(tmp_path, way):
    """Also in what is written: an id that looks like a number keeps its zeros in submission.csv."""
    file = write_rows(tmp_path / "battles.csv", build_answers())
    (folder := tmp_path / "folder").mkdir()
    shutil.copy(file, folder)
    if way == "packed folder":
        pack(folder / "battles.csv", "gz")
    source = folder
    if "zip" in way:
        source = Path(shutil.make_archive(str(tmp_path / "folder"), "zip", folder))
        if way != "zip":
            shutil.rmtree(folder)
            folder.mkdir()
            shutil.move(source, folder)
            source = folder
    battles = load_battles(source)
    assert battles.to_list() == load_battles(file).to_list() and battles["response_a"][:] == ANSWERS
    verdicts = battles.to_pandas()[["id"]].assign(p_a=0.9, winner=name_winners([0.9] * len(battles)))
    _, submission = write_verdicts(tmp_path / "out", verdicts, {})
    assert [line.split(",")[0] for line in submission.read_text().split()[1:]] == battles["id"][:]


@pytest.mark.parametrize("first", ["fewer columns", "nulls"])
@pytest.mark.parametrize("suffixes", [(".jsonl", ".jsonl"), (".csv", ".jsonl"), (".parquet", ".csv")])
def test_the_columns_of_a_folder_are_those_of_all_files(tmp_path, suffixes, first):
    weeks = [[row | {"id": f"{week}{row['id']}"} for row in build_answers()] for week in "ab"]
    weeks[1] = [row | {"language": "en"} for row in weeks[1]]
    if first == "nulls" and suffixes[0] != ".csv":
        weeks[0] = [row | {"language": None} for row in weeks[0]]
    for week, suffix, rows in zip((1, 2), suffixes, weeks, strict=True):
        write_rows(tmp_path / f"week{week}{suffix}", rows)
    battles = load_battles(tmp_path)
    assert battles["id"][:] == [row["id"] for rows in weeks for row in rows]
    assert battles["language"][:] == [None] * 5 + ["en"] * 5


def test_a_file_without_outcomes_among_files_with_them_is_an_error_that_names_its_rows(tmp_path):
    rows = build_answers()
    write_rows(
        tmp_path / "a.jsonl", [{k: v for k, v in row.items() if k != "winner"} | {"id": "x"} for row in rows[:1]]
    )
    write_rows(tmp_path / "b.jsonl", rows)
    with pytest.raises(ValueError, match=r"battle 'x': winner must be one of .*; found None"):
        load_battles(tmp_path)


def test_what_a_folder_has_beside_its_tables_is_named_in_the_log_or_an_error(tmp_path, caplog):
    write_rows(tmp_path / "week1.csv", build_answers())
    (tmp_path / "README.md").write_text("Notes")
    (tmp_path / ".hidden").write_text("of the system")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "make.py").write_text("")
    assert len(load_battles(tmp_path)) == 5
    assert f"{tmp_path}: left out, as they hold no rows: README.md, code/make.py" in caplog.text
    for name in ("week2.json", "week2.xlsx", "week2.arrow", "week2.csv.bz2", "week2.json.gz"):
        (tmp_path / name).write_text("[]")
        with pytest.raises(ValueError, match=f"found {name} too, which cannot be read. Save them as one of these, or"):
            load_battles(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "week1.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected files ending in .parquet, .*; found none\. Check the name"):
        load_battles(tmp_path)


def test_a_folder_s_files_have_splits_by_the_rules_of_the_hub(tmp_path, caplog):
    rows = build_answers()
    (tmp_path / "data").mkdir()
    for number, name in enumerate(["week1", "eval_week1", "data/test", "data/human-00000-of-00001"]):
        write_rows(tmp_path / f"{name}.jsonl", rows[number : number + 1])
    assert load_battles(tmp_path)["id"][:] == ["0000"]
    assert (
        "reads the split train only; left out by name: data/human-00000-of-00001.jsonl, data/test.jsonl, eval_week1"
        in (caplog.text)
    )
    assert load_battles(f"{tmp_path}:test")["id"][:] == ["0002", "0001"]
    assert load_battles(f"{tmp_path}:human")["id"][:] == ["0003"]
    (tmp_path / "week1.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"found no such split, only human, test\. Check .*:human"):
        load_battles(tmp_path)
    (tmp_path / "data" / "human-00000-of-00001.jsonl").unlink()
    assert load_battles(tmp_path)["id"][:] == ["0002", "0001"]  # the only split


def test_a_file_has_no_split(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", build_answers())
    with pytest.raises(ValueError, match=r"f\.jsonl: expected no split, as a file has none; found :test"):
        load_battles(f"{path}:test")


@pytest.mark.parametrize("way", ["folder", "zip"])
def test_folders_of_save_to_disk_are_read(tmp_path, way):
    rows = build_answers()
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    shutil.copy(tmp_path / "one" / "data-00000-of-00002.arrow", tmp_path / "one" / "data-00000-of-00001.arrow")  # stale
    datasets.DatasetDict(train=data, test=data.select([3])).save_to_disk(tmp_path / "two")
    names = {name: str(tmp_path / name) for name in ("one", "two")}
    if way == "zip":
        names = {name: shutil.make_archive(path, "zip", path) for name, path in names.items()}
    assert load_battles(names["one"])["response_a"][:] == load_battles(names["two"])["response_a"][:] == ANSWERS
    assert [len(part["id"]) for part in iterate_columns(names["one"], 2)] == [2, 2, 1]
    assert load_battles(f"{names['two']}:test")["id"][:] == ["0003"]
    with pytest.raises(FileNotFoundError, match=r"files of the split dev; found no such split, only train, test"):
        load_battles(f"{names['two']}:dev")


def test_a_damaged_file_of_an_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("a/b.parquet", b"no parquet")
        archive.writestr("__MACOSX/a/._b.parquet", b"what macOS adds")
    with pytest.raises(ValueError, match=r"f\.zip/a/b\.parquet: expected a parquet file; found damaged or other data"):
        load_battles(tmp_path / "f.zip")


# --- not there, cannot be reached, cannot be read ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["owner/none", "owner/none/subset@main:test"])
def test_a_hub_that_cannot_be_reached_is_an_error_of_its_own(name):
    """The tests have no network."""
    with pytest.raises(ConnectionError, match=f"Battles file {name}: .* cannot be reached; .*Check the connection and"):
        load_battles(name)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'o/n' doesn't exist"),
            FileNotFoundError,
            "no such data set",
        ),
        (ValueError("BuilderConfig 'x' not found. Available: ['en']"), FileNotFoundError, r"Available: \['en'\]"),
        (ValueError("Unknown split 'train'. Should be one of ['human']"), FileNotFoundError, r"one of \['human'\]"),
        (ConnectionError("Couldn't reach 'o/n' on the Hub"), ConnectionError, "cannot be reached"),
    ],
)
def test_a_hub_data_set_that_is_not_there_is_told_from_one_that_cannot_be_reached(monkeypatch, error, kind, message):
    monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=error))
    with pytest.raises(kind, match=message):
        load_battles("o/n")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (datasets.exceptions.DatasetGenerationError("bad page"), ValueError, r"o/n: .* cannot be read \(.*bad page"),
        (TimeoutError("no answer"), ConnectionError, "cannot be reached"),
    ],
)
def test_a_hub_data_set_that_fails_while_it_is_read(monkeypatch, error, kind, message):
    monkeypatch.setattr(datasets, "load_dataset", Mock(return_value=Mock(iter=Mock(side_effect=error))))
    with pytest.raises(kind, match=message):
        load_battles("o/n")


def test_csv_files_of_the_hub_keep_their_texts_too(tmp_path, monkeypatch):
    """`datasets` reads them with pandas. A folder takes the Hub's place here."""
    write_rows(tmp_path / "train.csv", build_answers())
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: load(str(tmp_path), **options))
    battles = load_battles("owner/name")
    assert battles["response_a"][:] == ANSWERS and battles["id"][:] == [f"{n:04}" for n in range(5)]


# --- what spreadsheets write ------------------------------------------------------------------------------------------


def write_text(folder: Path, text: str, name: str = "f.csv", encoding: str = "utf-8") -> Path:
    (path := folder / name).write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("oddity", ["", "blank end", "empty rows", "empty columns", "sep="])
def test_csv_files_of_spreadsheets_read_as_others_do(tmp_path, encoding, delimiter, oddity):
    """A cell may hold the other separators, as "a, b; c" does."""
    rows = [HEADER.split(","), ["0001", '"p, q; r"', "None", "né", "model_a"], ["0002", '"x\ny"', "1,5", "b", "tie"]]
    rows[2][2] = '"1,5"'
    if oddity == "empty columns":
        rows = [[*row, "", ""] for row in rows]
    lines = [delimiter.join(row) for row in rows]
    if oddity == "empty rows":
        lines += [delimiter * 4] * 2
    if oddity == "sep=":
        lines.insert(0, f"sep={delimiter}")
    text = "\r\n".join(lines) + "\r\n" + "\r\n" * (oddity == "blank end")
    battles = load_battles(write_text(tmp_path, text, encoding=encoding))
    assert battles["id"][:] == ["0001", "0002"] and battles["prompt"][:] == ["p, q; r", "x\ny"]
    assert battles["response_a"][:] == ["None", "1,5"] and battles["response_b"][:] == ["né", "b"]
    assert battles.column_names == ["id", "prompt", "response_a", "response_b", "label"]


def test_a_text_below_no_column_name_is_an_error_and_not_dropped(tmp_path):
    path = write_text(tmp_path, f"{HEADER},,\nx,p,a,b,tie,,note\n")
    with pytest.raises(ValueError, match=r"f\.csv, line 2: expected 5 fields; found 7"):
        load_battles(path)


def test_jsonl_in_utf_16_is_read(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in build_answers())
    assert load_battles(write_text(tmp_path, text, "f.jsonl", "utf-16"))["response_a"][:] == ANSWERS


def test_an_archive_in_a_folder_names_the_split_of_its_files(tmp_path):
    """As train.zip and test.zip with a battles.csv each: nothing of the test part may be trained on."""
    for split, text in (("train", "x"), ("test", "y")):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            archive.writestr("battles.csv", f"id,prompt,response_a,response_b\n1,{text},a,b\n")
    for split, text in (("train", "x"), ("test", "y")):
        (columns,) = iterate_columns(f"{tmp_path}:{split}")
        assert list(columns["prompt"]) == [text]


def test_a_revision_of_a_file_on_this_machine_is_refused(tmp_path):
    (tmp_path / "f.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"expected a revision only of a Hub data set; found .*f\.jsonl on this"):
        list(iterate_columns(f"{tmp_path / 'f.jsonl'}@v1"))


def test_a_zip_with_a_damaged_member_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "f.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("f.csv", "id,prompt,response_a,response_b\n" + "1,how,so,thus\n" * 500)
    data = bytearray(path.read_bytes())
    data[45:60] = b"\xff" * 15
    path.write_bytes(data)
    with pytest.raises(ValueError, match="found damaged or other data"):
        list(iterate_columns(str(path)))


def test_a_source_with_a_split_is_described_without_its_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("{}\n")
    assert describe_file(f"{tmp_path}/data:test") == {"name": "data:test", "sha256": None}
    assert describe_file("owner/name@v1:test") == {"name": "owner/name@v1:test", "sha256": None}
