"""Reads rows of any size as plain columns, and writes results that are complete or absent. It must not know battles."""

import csv
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from modeling.runtime.paths import BATTLE_ENDINGS, check_source, explain_missing_source, locate_source, split_source

Columns = dict[str, list]
CHUNK_ROWS = 2048
LINE_LIMIT = 1 << 26  # characters; without a limit, a file without line ends would be read whole into memory


# --- rows in ----------------------------------------------------------------------------------------------------------


def iterate_columns(source: str | Path, chunk_rows: int = CHUNK_ROWS) -> Iterator[Columns]:
    """Yields the columns of a file or data set as Python lists, one chunk of rows at a time, so that any size fits.

    Args:
        source: A parquet, csv or jsonl file, also as `package:<installed package>/<file>`; or what
            `datasets.load_dataset` takes: a folder of such files or a Hub id, each with an optional `@revision` and
            `:split` (default "train"). Empty cells of a csv are empty texts, never NaN.
        chunk_rows: The largest number of rows in a chunk. A source without rows gives one chunk of empty columns.

    Raises:
        FileNotFoundError: If there is no such file and no such data set.
        ValueError: If the content is damaged. The message names the file and, for text files, the line.
    """
    check_source(str(source))
    path = locate_source(source)
    if not path.is_file():
        yield from _read_dataset(str(source), chunk_rows)
        return
    readers = dict(zip(BATTLE_ENDINGS, (_read_parquet, _read_csv, _read_jsonl), strict=True))
    try:
        yield from readers[path.suffix](path, chunk_rows)
    except UnicodeDecodeError as error:
        raise ValueError(
            # The message has no offset, because error.start counts from the piece of the file being decoded.
            f"{path}: expected UTF-8 text; found {error.object[max(error.start - 20, 0) : error.start + 1]!r}. "
            "Re-encode the file."
        ) from error


def _read_dataset(source: str, chunk_rows: int) -> Iterator[Columns]:
    """Streams a folder of data files or a Hub data set."""
    path, revision, split = split_source(source)
    try:
        rows = datasets.load_dataset(path, revision=revision, split=split or "train", streaming=True)
        empty = True
        for chunk in rows.iter(batch_size=chunk_rows):
            empty = False
            yield {column: list(values) for column, values in chunk.items()}
        if empty:
            yield {column: [] for column in rows.column_names or []}
    except (OSError, ValueError) as error:
        problem = f"no data set either ({type(error).__name__}: {error})"
        raise explain_missing_source(source, problem) from error


def _read_parquet(path: Path, chunk_rows: int) -> Iterator[Columns]:
    """Reads a parquet file by chunks."""
    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20)  # without a buffer size, a whole row group is read at once
        names = file.schema_arrow.names
        for batch in file.iter_batches(batch_size=chunk_rows):
            yield {name: batch[name].to_pylist() for name in names}
        if file.metadata.num_rows == 0:
            yield {name: [] for name in names}
    except (pa.ArrowException, OSError) as error:  # Arrow reports a damaged page as a plain OSError without the path
        raise ValueError(
            f"{path}: expected a parquet file; found damaged or other data ({error}). Write or copy the file again."
        ) from error


def _read_csv(path: Path, chunk_rows: int) -> Iterator[Columns]:
    """Reads a csv file by chunks. The csv module keeps texts as they are; pandas turns "null" and "NA" into NaN."""
    csv.field_size_limit(LINE_LIMIT)  # the default, 131,072 characters, is shorter than some responses
    # "utf-8-sig" drops a byte order mark, and newline="" keeps the line ends inside quoted texts.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader((line for _, line in _bound_lines(path, file)), strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise ValueError(f"{path}: expected distinct column names; found {', '.join(header)}.")
            yield from _chunk_rows(_check_width(path, reader, header), chunk_rows, header)
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: malformed csv: {error}.") from error


def _check_width(path: Path, reader: Iterator[list[str]], header: list[str]) -> Iterator[dict]:
    """Yields csv rows as dicts; a row with missing or extra fields is an error."""
    for row in reader:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {reader.line_num}: expected {len(header)} fields; found {len(row)}. "
                "Quote fields that hold commas or line breaks."
            )
        yield dict(zip(header, row, strict=True))


def _read_jsonl(path: Path, chunk_rows: int) -> Iterator[Columns]:
    """Reads a jsonl file by chunks."""
    with path.open(encoding="utf-8-sig") as file:
        yield from _chunk_rows(_parse_lines(path, file), chunk_rows)


def _parse_lines(path: Path, file: Iterable[str]) -> Iterator[dict]:
    """Yields the JSON object of each line; blank lines are skipped."""
    for number, line in _bound_lines(path, file):
        if line.strip():
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:  # RecursionError: too deeply nested
                found = f"{line.strip()[:60]!r} ({error})"
                raise ValueError(f"{path}, line {number}: expected JSON; found {found}.") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, line {number}: expected one JSON object a line; found {line.strip()[:60]!r}."
                )
            yield row


def _bound_lines(path: Path, file) -> Iterator[tuple[int, str]]:
    """Yields each line with its number. A line that does not end is an error before it fills the memory."""
    for number in itertools.count(1):
        line = file.readline(LINE_LIMIT + 1)
        if len(line) > LINE_LIMIT:
            raise ValueError(
                f"{path}, line {number}: expected at most {LINE_LIMIT:,} characters; found more, beginning with "
                f"{line[:60]!r}. Is this a file of one row per line?"
            )
        if not line:
            return
        yield number, line


def _chunk_rows(rows: Iterator[dict], chunk_rows: int, names: Iterable[str] = ()) -> Iterator[Columns]:
    """Yields chunks of rows as columns. A key that only some rows of a chunk have is None in the others."""
    first = True
    while (chunk := list(itertools.islice(rows, chunk_rows))) or first:
        present = dict.fromkeys([*names, *(name for row in chunk for name in row)])
        yield {name: [row.get(name) for row in chunk] for name in present}
        first = False


# --- results out ------------------------------------------------------------------------------------------------------


def check_writable(flag: str, output: Path, sources: Mapping[str, Sequence[str]]) -> None:
    """Checks, before hours of work, that a file can be written and does not replace one of its own inputs.

    Args:
        flag: The flag that names the file.
        output: The file, which need not exist.
        sources: For each flag, the sources that are read, as `iterate_columns` takes them.

    Raises:
        ValueError: If the file cannot be written, or is a source or in a folder that is one.
    """
    if output.is_dir():
        raise ValueError(f"{flag} {output}: expected a file; found a folder. Name a file in it.")
    if file := next((parent for parent in output.parents if parent.is_file()), None):
        raise ValueError(f"{flag} {output}: expected a folder {file}; found a file. Name another folder.")
    for name, given in sources.items():
        for path in (Path(split_source(source)[0]) for source in given):
            same = path.is_file() and output.is_file() and path.samefile(output)  # also through links
            if same or (path.is_dir() and path.resolve() in output.resolve().parents):
                raise ValueError(
                    f"{flag} {output}: expected a file apart from what is read; found {name} {path}. The output would "
                    "replace its own input, or be read as input by the next run. Name another file."
                )


@contextmanager
def replace_folder(folder: Path, mark: str) -> Iterator[Path]:
    """Yields a new folder to fill, which replaces `folder` on success. On failure nothing has changed.

    Args:
        folder: The folder of the result. If it exists, it must be empty or contain `mark`.
        mark: The name of a file that every result of this kind contains.

    Raises:
        ValueError: If the folder contains anything other than an earlier result.
    """
    folder = folder.resolve()
    beside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)  # an earlier call was killed between its two renames
    check_replaceable(folder, mark)
    for leftover in (beside, old):  # a killed process runs no cleanup
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():  # a folder cannot be renamed onto one that has files
            folder.rename(old)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: Path, mark: str) -> None:
    """Raises a ValueError unless a folder is new, empty, or an earlier result, which contains `mark`."""
    if folder.exists() and not (folder.is_dir() and ((folder / mark).is_file() or not any(folder.iterdir()))):
        raise ValueError(
            f"--output_dir {folder}: expected a new or empty folder, or one with {mark} to replace; found other files."
        )


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a path to write, which replaces `path` on success. On failure nothing has changed.

    Example: `with replace_file(path) as beside: verdicts.to_parquet(beside)`.
    """
    # In the same folder, because only there a rename is atomic. The ending stays, because some writers choose the
    # format by it. The dot hides the file from the shell and from `datasets`, should a killed process leave it.
    beside = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def name_progress(output: Path) -> Path:
    """Returns the folder for the progress of a command. It is beside the output, which is replaced as a whole."""
    return output.with_name(f".{output.name}.progress")


def write_json(path: Path, values: object) -> None:
    """Writes indented JSON. NaN, which JSON does not have, is a ValueError."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def describe_file(path: str) -> dict[str, str | None]:
    """Returns the name of a source and, if it is a file, its SHA-256. A Hub id keeps its whole name."""
    file = locate_source(path)
    # Only the last part of a path: no file that is written may name a folder of this machine.
    return {"name": file.name if file.exists() else path, "sha256": hash_file(file) if file.is_file() else None}


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
