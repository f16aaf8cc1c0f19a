"""Laws of files.py: every format gives the same rows, damage is named, results are complete or absent."""

from pathlib import Path
from unittest.mock import Mock, call

import datasets
import pytest

import modeling.runtime.files
from modeling.data.battles import load_battles
from modeling.runtime.files import check_writable, describe_file, iterate_columns, replace_file, replace_folder
from tests.helpers import write_rows

HEADER = "id,prompt,response_a,response_b,winner"
MARK = "mark.json"


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
        ("f.csv", 'prompt,label\np,"[1, 0]"\n', "missing columns id, response_a, response_b; found prompt, label"),
        ("f.csv", "", "missing columns id, prompt, response_a, response_b; found no columns"),
        ("f.jsonl", '{"id": 1}\n\n{"id": 2\n', "line 3: expected JSON; found '{\"id\": 2'"),
        ("f.jsonl", '["id", 1]\n', "line 1: expected one JSON object a line; found"),
        ("f.jsonl", "id,prompt\n", "line 1: expected JSON; found 'id,prompt'"),
        ("f.csv", f"{HEADER}\nx,{'p' * 9000},Gr\xfc\xdf\n".encode("latin-1"), r"UTF-8 text; found b'p+,Gr\\xfc'"),
        ("f.jsonl", '{"id": "Gr\xfc"}'.encode("latin-1"), "expected UTF-8 text; found .*Re-encode the file"),
        ("f.jsonl", '{"id": 1}'.encode("utf-16"), "expected UTF-8 text; found .*Re-encode the file"),
        ("f.parquet", HEADER, "expected a parquet file; found damaged or other data"),
        ("f.parquet", "", "expected a parquet file; found damaged or other data"),
        ("f.json", "[]", "expected a file ending in .parquet, .csv, .jsonl; found '.json'"),
        ("battles", "", "expected a file ending in .parquet, .csv, .jsonl; found 'no ending'"),
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


@pytest.mark.parametrize("name", ["f.csv", "owner/none.parquet", "owner/none", "a/b/c", "none", "owner/n@1:train"])
def test_a_source_that_is_nowhere_is_an_error_with_the_way_out(name):
    """Names that could be a Hub data set are looked up there; the tests have no network."""
    with pytest.raises(FileNotFoundError, match=f"Battles file {name}: expected a file, .*; found no.* Check the name"):
        load_battles(name)


def test_a_folder_of_data_files_is_streamed_in_parts(tmp_path):
    """A downloaded Hub data set is such a folder; `datasets` reads both with the same code."""
    rows = [row | {"prompt": f"p{row['id']}"} for row in build_rows()[:9]]
    write_rows(tmp_path / "train-0.jsonl", rows[:5])
    write_rows(tmp_path / "train-1.jsonl", rows[5:])
    chunks = list(iterate_columns(tmp_path, 4))
    assert [len(chunk["id"]) for chunk in chunks] == [4, 4, 1]
    assert load_battles(tmp_path)["prompt"][:] == [row["prompt"] for row in rows]
    with pytest.raises(FileNotFoundError, match=r"found no data set either .*[Ss]plit"):
        load_battles(f"{tmp_path}:validation")


def test_a_hub_data_set_is_asked_for_by_id_revision_and_split(monkeypatch):
    rows = {name: [name, name] for name in ("prompt", "response_a", "response_b")} | {"id": [1, 2]}
    asked = Mock(return_value=Mock(iter=lambda batch_size: iter([rows])))
    monkeypatch.setattr(datasets, "load_dataset", asked)
    assert load_battles("lmarena-ai/arena-140k@v2:test")["id"][:] == [1, 2]
    load_battles("lmarena-ai/arena-140k")
    assert asked.call_args_list == [
        call("lmarena-ai/arena-140k", revision="v2", split="test", streaming=True),
        call("lmarena-ai/arena-140k", revision=None, split="train", streaming=True),
    ]


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("mlabonne/orpo-dpo-mix-40k-v1.2", ("mlabonne/orpo-dpo-mix-40k-v1.2", None, "train")),
        ("o/mix.en@v1.0:test.small", ("o/mix.en", "v1.0", "test.small")),
        ("my.data", ("my.data", None, "train")),
        ("my.data:test", ("my.data", None, "test")),
        ("at@home", ("at@home", None, "train")),
    ],
)
def test_a_dot_in_a_name_does_not_make_it_a_file(tmp_path, monkeypatch, source, asked):
    monkeypatch.chdir(tmp_path)
    for name in ("my.data", "at@home"):
        (tmp_path / name).mkdir()
    load = Mock(return_value=Mock(iter=lambda batch_size: iter([{"id": [1]}])))
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(iterate_columns(source)) == [{"id": [1]}]
    load.assert_called_once_with(asked[0], revision=asked[1], split=asked[2], streaming=True)


@pytest.mark.parametrize("name", ["o/train.csv", "o/train.v2.JSONL", "o/train.json.gz", "./o/n", "o/n/m.v1", "n"])
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
    monkeypatch.setattr(modeling.runtime.files, "LINE_LIMIT", 1000)
    path = tmp_path / f"f{suffix}"
    path.write_text(f"{HEADER}\n{'x' * 1001}\n" if suffix == ".csv" else f'{{"id": "{"x" * 1001}"}}\n')
    with pytest.raises(ValueError, match=rf"f\{suffix}, line \d: expected at most 1,000 characters; found more, begin"):
        load_battles(path)
    path = tmp_path / "quoted.csv"
    path.write_text(HEADER + '\n"' + "x\n" * 600 + '",p,a,b,tie\n')
    with pytest.raises(ValueError, match="malformed csv: field larger than field limit"):
        load_battles(path)


def test_an_output_does_not_replace_its_own_input(tmp_path):
    """Neither by another path nor through links. A folder is read whole, so nothing may be written into it."""
    pool, folder = write_rows(tmp_path / "pool.jsonl", build_rows()[:2]), tmp_path / "data"
    folder.mkdir()
    (tmp_path / "link.jsonl").symlink_to(pool)
    (tmp_path / "second.jsonl").hardlink_to(pool)
    (tmp_path / "parts").symlink_to(folder)
    for output, read in (
        (pool, pool),
        (tmp_path / "data" / ".." / "pool.jsonl", pool),
        (pool, tmp_path / "link.jsonl"),
        (tmp_path / "link.jsonl", pool),
        (pool, tmp_path / "second.jsonl"),
        (folder / "new.parquet", folder),
        (tmp_path / "parts" / "sub" / "new.parquet", f"{folder}:test"),
    ):
        with pytest.raises(ValueError, match=r"--output .*: expected a file apart from what is read; found --battles"):
            check_writable("--output", output, {"--exclude": ["o/n"], "--battles": ["none.csv", str(read)]})
    with pytest.raises(ValueError, match="data: expected a file; found a folder"):
        check_writable("--output", folder, {})
    with pytest.raises(ValueError, match=r"expected a folder .*pool\.jsonl; found a file"):
        check_writable("--output", pool / "sub" / "new.parquet", {})
    check_writable("--output", tmp_path / "new" / "new.parquet", {"--battles": [str(pool), str(folder)]})


# --- results are complete or absent -----------------------------------------------------------------------------------


def list_files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_result(folder: Path, text: str) -> None:
    with replace_folder(folder, MARK) as beside:
        (beside / "sub").mkdir()
        (beside / "sub" / "weights").write_text(text)
        (beside / MARK).write_text(text)


def test_a_filled_folder_replaces_the_old_one_whole(tmp_path):
    folder = tmp_path / "new" / "result"
    write_result(folder, "first")
    (folder / "stale").write_text("first")
    write_result(folder, "second")
    assert list_files(tmp_path) == {f"new/result/{name}": "second" for name in (MARK, "sub/weights")}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existed", [True, False])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path, stop, existed):
    folder = tmp_path / "result"
    if existed:
        write_result(folder, "first")
    before = list_files(tmp_path)
    with pytest.raises(stop), replace_folder(folder, MARK) as beside:
        (beside / MARK).write_text("half")
        assert list_files(folder) == {name.removeprefix("result/"): text for name, text in before.items()}
        raise stop
    assert list_files(tmp_path) == before and list(tmp_path.iterdir()) == [folder] * existed


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    """A killed process runs no cleanup. Its half result must not get into the next one."""
    write_result(tmp_path / "result", "before")
    for leftover in (".result.new", ".result.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "half").write_text("half")
    write_result(tmp_path / "result", "whole")
    assert list_files(tmp_path) == {f"result/{name}": "whole" for name in (MARK, "sub/weights")}


def test_a_foreign_folder_is_refused_and_an_empty_one_is_used(tmp_path):
    folder = tmp_path / "result"
    folder.mkdir()
    write_result(folder, "first")
    (folder / MARK).rename(folder / "thesis.docx")
    before = list_files(tmp_path)
    with pytest.raises(ValueError, match=f"expected a new or empty folder, or one with {MARK} to replace; found other"):
        write_result(folder, "second")
    assert list_files(tmp_path) == before and list(tmp_path.iterdir()) == [folder]
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        write_result(folder / "thesis.docx", "a file has this name")


@pytest.mark.parametrize("existed", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, existed):
    path = tmp_path / "result.csv"
    if existed:
        path.write_text("first")
    before = list_files(tmp_path)
    with pytest.raises(KeyboardInterrupt), replace_file(path) as beside:
        beside.write_text("half")
        assert beside.suffix == ".csv" and list(tmp_path.glob("[!.]*.csv")) == [path] * existed
        raise KeyboardInterrupt
    assert list_files(tmp_path) == before
    with replace_file(path) as beside:
        beside.write_text("second")
    assert list_files(tmp_path) == {"result.csv": "second"}


def test_a_source_is_named_without_its_folders(tmp_path):
    """The SHA-256 of no bytes is e3b0...b855. A folder and a Hub id have none."""
    (tmp_path / "battles").mkdir()
    (tmp_path / "empty.csv").touch()
    empty = describe_file(str(tmp_path / "empty.csv"))
    assert empty["name"] == "empty.csv" and empty["sha256"][:4] == "e3b0" and empty["sha256"][-4:] == "b855"
    assert describe_file(str(tmp_path / "battles")) == {"name": "battles", "sha256": None}
    assert describe_file("owner/name") == {"name": "owner/name", "sha256": None}
