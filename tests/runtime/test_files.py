"""Laws of files.py: results are complete or absent, and never replace what they were made from."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from modeling.runtime.files import check_writable, describe_file, replace_file, replace_folder
from tests.helpers import write_rows

MARK = "mark.json"


def test_an_output_does_not_replace_its_own_input(tmp_path):
    """Neither by another path nor through links. A folder is read whole, so nothing may be written into it."""
    pool, folder = write_rows(tmp_path / "pool.jsonl", [{"id": 1}]), tmp_path / "data"
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


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_that_names_what_was_not_written(error, tmp_path):
    """safetensors' error, seen on a full disk, is no OSError, and would end a script with a traceback."""
    for name, replace in (("file.parquet", replace_file), ("folder", lambda path: replace_folder(path, MARK))):
        with (
            pytest.raises(OSError, match=rf"{name}: expected room on the disk to write it; found .*No space left"),
            replace(tmp_path / name),
        ):
            raise error
    with pytest.raises(OSError, match="of another kind"), replace_file(tmp_path / "file"):
        raise OSError("of another kind")
    assert list(tmp_path.iterdir()) == []
