"""Files in and out: tables of rows as plain columns, and results that are complete or absent. Knows no battles."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Columns = dict[str, list]


def read_columns(path: Path) -> Columns:
    """Columns of a parquet, csv or jsonl file as Python lists; empty cells of a csv are empty texts, never NaN."""
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if not path.is_file():
        raise FileNotFoundError(
            f"Battles file {path}: expected a file; found {'a folder' if path.is_dir() else 'none'}."
        )
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: expected a file ending in {', '.join(readers)}; found {path.suffix or 'no ending'!r}."
        )
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise ValueError(
            # No offset: error.start counts from the piece of the file that was being decoded.
            f"{path}: expected UTF-8 text; found {error.object[max(error.start - 20, 0) : error.start + 1]!r}. "
            "Re-encode the file."
        ) from error


def _read_parquet(path: Path) -> Columns:
    try:
        table = pq.read_table(path)
        return {name: table[name].to_pylist() for name in table.column_names}
    except (pa.ArrowException, OSError) as error:  # damaged pages are a bare OSError
        raise ValueError(
            f"{path}: expected a parquet file; found damaged or other data ({error}). Write or copy the file again."
        ) from error


def _read_csv(path: Path) -> Columns:
    csv.field_size_limit(sys.maxsize)  # the default, 131,072 characters, is less than a long answer
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            columns: Columns = {name: [] for name in header}
            if len(columns) != len(header):
                raise ValueError(f"{path}: expected distinct column names; found {', '.join(header)}.")
            for row in reader:
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: expected {len(header)} fields; found {len(row)}. "
                        "Quote fields that hold commas or line breaks."
                    )
                for name, value in zip(header, row, strict=True):
                    columns[name].append(value)
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: malformed csv: {error}.") from error
    if "label" in columns and "id" in columns:
        columns["label"] = [
            _parse_json(f"{path}, id {id!r}", text) for id, text in zip(columns["id"], columns["label"], strict=True)
        ]
    return columns


def _read_jsonl(path: Path) -> Columns:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = _parse_json(f"{path}, line {number}", line)
                if not isinstance(row, dict):
                    raise ValueError(
                        f"{path}, line {number}: expected one JSON object a line; found {line.strip()[:60]!r}."
                    )
                rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parse_json(where: str, text: str) -> object:
    """The JSON value, or a ValueError that says where it stood."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected JSON; found {text.strip()[:60]!r} ({error}).") from error


@contextmanager
def replace_folder(folder: Path, mark: str) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once filled; if filling fails nothing has changed.

    Args:
        folder: Where the result belongs. What stands there is replaced only if it is empty or holds `mark`.
        mark: Name of a file that every result of this kind has.
    """
    folder = folder.resolve()
    beside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)  # an earlier call was killed between its two renames
    check_replaceable(folder, mark)
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: Path, mark: str) -> None:
    """Raises a ValueError if the folder holds something else than what would replace it."""
    if folder.exists() and not (folder.is_dir() and ((folder / mark).is_file() or not any(folder.iterdir()))):
        raise ValueError(
            f"--output_dir {folder}: expected a new or empty folder, or one with {mark} to replace; found other files."
        )
