"""Files in and out: tables of rows as plain columns, and results that are complete or absent. Knows no battles."""

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
LINE_LIMIT = 1 << 26  # characters; a file without line ends would otherwise be read whole into memory


def iterate_columns(source: str | Path, chunk_rows: int = CHUNK_ROWS) -> Iterator[Columns]:
    """Columns of a file or data set as Python lists, `chunk_rows` rows at a time, so that any size fits the memory.

    Args:
        source: A parquet, csv or jsonl file (empty cells of a csv are empty texts, never NaN), also as
            `package:<installed package>/<file>`; or what `datasets.load_dataset` takes: a folder of such files or a
            Hub id, each with an optional `@revision` and `:split` ("train" if left out).
        chunk_rows: Most rows of a chunk. A source without rows gives one chunk of empty columns.

    Raises:
        FileNotFoundError: If there is neither such a file nor such a data set.
        ValueError: If the content is damaged: the message names the file and the line.
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
            # No offset: error.start counts from the piece of the file that was being decoded.
            f"{path}: expected UTF-8 text; found {error.object[max(error.start - 20, 0) : error.start + 1]!r}. "
            "Re-encode the file."
        ) from error


def _read_dataset(source: str, chunk_rows: int) -> Iterator[Columns]:
    """A folder of data files or a Hub data set, streamed."""
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


def check_writable(flag: str, output: Path, sources: Mapping[str, Sequence[str]]) -> None:
    """Raises a ValueError, before hours of work, if a file cannot be written or would replace what it is made from.

    Args:
        flag: What the file was given as.
        output: The file, which need not be there.
        sources: What is read, as `iterate_columns` takes it, by its flag.
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
                    f"{flag} {output}: expected a file apart from what is read; found {name} {path}. What stands "
                    "there would be replaced, or be more the next time. Name another file."
                )


def _read_parquet(path: Path, chunk_rows: int) -> Iterator[Columns]:
    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20)  # else a whole row group is read at once
        names = file.schema_arrow.names
        for batch in file.iter_batches(batch_size=chunk_rows):
            yield {name: batch[name].to_pylist() for name in names}
        if file.metadata.num_rows == 0:
            yield {name: [] for name in names}
    except (pa.ArrowException, OSError) as error:  # damaged pages are a bare OSError
        raise ValueError(
            f"{path}: expected a parquet file; found damaged or other data ({error}). Write or copy the file again."
        ) from error


def _read_csv(path: Path, chunk_rows: int) -> Iterator[Columns]:
    csv.field_size_limit(LINE_LIMIT)  # the default, 131,072 characters, is less than a long answer
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
    for row in reader:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {reader.line_num}: expected {len(header)} fields; found {len(row)}. "
                "Quote fields that hold commas or line breaks."
            )
        yield dict(zip(header, row, strict=True))


def _read_jsonl(path: Path, chunk_rows: int) -> Iterator[Columns]:
    with path.open(encoding="utf-8-sig") as file:
        yield from _chunk_rows(_parse_lines(path, file), chunk_rows)


def _parse_lines(path: Path, file: Iterable[str]) -> Iterator[dict]:
    for number, line in _bound_lines(path, file):
        if line.strip():
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                found = f"{line.strip()[:60]!r} ({error})"
                raise ValueError(f"{path}, line {number}: expected JSON; found {found}.") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, line {number}: expected one JSON object a line; found {line.strip()[:60]!r}."
                )
            yield row


def _bound_lines(path: Path, file) -> Iterator[tuple[int, str]]:
    """The lines with their numbers; one that would not end is an error before it fills the memory."""
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
    """Rows as columns; a key that a row lacks is None there, if a row of the same chunk has it."""
    first = True
    while (chunk := list(itertools.islice(rows, chunk_rows))) or first:
        present = dict.fromkeys([*names, *(name for row in chunk for name in row)])
        yield {name: [row.get(name) for row in chunk] for name in present}
        first = False


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


def write_json(path: Path, values: object) -> None:
    """Writes JSON as people can read it; NaN, which is no JSON, is a ValueError."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def describe_file(path: str) -> dict[str, str | None]:
    """Name and, of a file, SHA-256: no folders, which are the machine's own affair. A Hub id keeps its name."""
    file = locate_source(path)
    return {"name": file.name if file.exists() else path, "sha256": hash_file(file) if file.is_file() else None}


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
