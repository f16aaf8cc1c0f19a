"""Reads one file as chunks of plain columns: parquet, csv, tsv, jsonl or Arrow, compressed or inside a zip archive.

Every format gives the same values: a text stays as it is written, so that "None", "NA" and "0000" are texts in csv as
in parquet. It must not know which files make a source, or what their columns mean.
"""

import csv
import io
import itertools
import json
import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from modeling.runtime.paths import find_format

Columns = dict[str, list]
CHUNK_ROWS = 2048
LINE_LIMIT = 1 << 26  # characters; without a limit, a file without line ends would be read whole into memory
BUFFER = 1 << 16  # bytes
DELIMITERS = (",", ";", "\t")  # of equally many fields in the header, the first counts
DELIMITER_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # Excel's own first line
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class DataFile:
    """A file on disk, or a member of a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"

    @property
    def format(self) -> str:
        """Returns the ending that tells the format, as ".csv" of "battles.csv.gz"."""
        return find_format(self.member or self.path.name)[0]

    @property
    def compression(self) -> str | None:
        """Returns Arrow's name of the compression."""
        return find_format(self.member or self.path.name)[1]

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Yields the unpacked bytes as a buffered stream."""
        with self.path.open("rb") if self.member is None else zipfile.ZipFile(self.path).open(self.member) as packed:
            if self.compression is None:
                yield packed
            else:
                with io.BufferedReader(pa.input_stream(packed, compression=self.compression), BUFFER) as unpacked:
                    yield unpacked

    @contextmanager
    def open_text(self) -> Iterator[TextIO]:
        """Yields the text, from UTF-8 with or without a byte order mark, or from UTF-16 with one."""
        with self.open() as stream:
            encoding = "utf-16" if stream.peek(2)[:2] in UTF_16 else "utf-8-sig"
            # newline="" keeps the line ends inside quoted texts of a csv.
            with io.TextIOWrapper(stream, encoding=encoding, newline="" if is_table(self.format) else None) as text:
                yield text

    @contextmanager
    def open_seekable(self) -> Iterator[pa.NativeFile]:
        """Yields the unpacked bytes for formats that are not read from front to back."""
        if self.member is None and self.compression is None:
            with pa.OSFile(str(self.path)) as file:
                yield file
        else:
            with tempfile.TemporaryFile() as copy:
                with self.open() as stream:
                    shutil.copyfileobj(stream, copy, BUFFER)
                copy.seek(0)
                yield pa.PythonFile(copy, "r")


def is_table(format: str) -> bool:
    """Returns whether a format is text with a separator between cells."""
    return format in (".csv", ".tsv")


def read_file(file: DataFile, chunk_rows: int = CHUNK_ROWS) -> Iterator[Columns]:
    """Yields the columns of a file as Python lists, one chunk of rows at a time, so that any size fits.

    Args:
        file: A file in one of the formats of `READERS`.
        chunk_rows: The largest number of rows in a chunk. A file without rows gives one chunk of empty columns.

    Raises:
        ValueError: If the content is damaged. The message names the file and, for text files, the line.
    """
    try:
        yield from READERS[file.format](file, chunk_rows)
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if "16" in error.encoding else "UTF-8"
        raise ValueError(
            # The message has no offset, because error.start counts from the piece of the file being decoded.
            f"{file}: expected {encoding} text; found {error.object[max(error.start - 20, 0) : error.start + 1]!r}. "
            "Re-encode the file."
        ) from error
    # Arrow reports damage, of a page or of packed bytes, as a plain OSError without the path.
    except DAMAGED as error:
        raise explain_unreadable(file, error) from error


# What the libraries raise for files that are damaged, packed in another way or encrypted.
DAMAGED = (pa.ArrowException, OSError, EOFError, RuntimeError, NotImplementedError)
DAMAGED += (zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def explain_unreadable(file: DataFile | Path, error: Exception) -> ValueError:
    """Returns the error for a file that is there but cannot be read."""
    if isinstance(error, PermissionError):
        return ValueError(f"{file}: cannot be read: expected the right to read it; found none. Change its permissions.")
    ending, compression = find_format(str(file))
    kind = ending.removeprefix(".") or "data"
    packed = f", packed with {compression}" if compression else ""
    return ValueError(
        f"{file}: expected a {kind} file{packed}; found damaged or other data ({error}), which cannot be read. Write "
        "or copy the file again."
    )


# --- tables in binary -------------------------------------------------------------------------------------------------


def _read_parquet(file: DataFile, chunk_rows: int) -> Iterator[Columns]:
    """Reads a parquet file by chunks."""
    with file.open_seekable() as source:
        table = pq.ParquetFile(source, buffer_size=1 << 20)  # without a buffer size, a whole row group is read at once
        names = table.schema_arrow.names
        for batch in table.iter_batches(batch_size=chunk_rows):
            yield {name: batch[name].to_pylist() for name in names}
        if table.metadata.num_rows == 0:
            yield {name: [] for name in names}


def _read_arrow(file: DataFile, chunk_rows: int) -> Iterator[Columns]:
    """Reads a part of a folder that `datasets` wrote with save_to_disk: Arrow's stream format."""
    with file.open_seekable() as source:
        empty = True
        for batch in (reader := pa.ipc.open_stream(source)):
            for start in range(0, len(batch), chunk_rows):
                empty = False
                yield batch.slice(start, chunk_rows).to_pydict()
        if empty:
            yield {name: [] for name in reader.schema.names}


# --- tables in text ---------------------------------------------------------------------------------------------------


def _read_csv(file: DataFile, chunk_rows: int) -> Iterator[Columns]:
    """Reads a csv or tsv file by chunks. The csv module keeps texts; pandas turns "null" and "NA" into NaN."""
    csv.field_size_limit(LINE_LIMIT)  # the default, 131,072 characters, is shorter than some responses
    with file.open_text() as text:
        lines = (line for _, line in _bound_lines(file, text))
        head = next(lines, "")
        if told := DELIMITER_LINE.fullmatch(head):
            head = next(lines, "")
        delimiter = told[1] if told else "\t" if file.format == ".tsv" else find_delimiter(head)
        reader = csv.reader(itertools.chain([head], lines), delimiter=delimiter, strict=True)
        try:
            header = _drop_empty_end(next(reader, []))
            if len(set(header)) != len(header):
                raise ValueError(f"{file}: expected distinct column names; found {', '.join(header)}.")
            rows = _check_width(file, reader, header, skipped=bool(told))
            yield from _chunk_rows(rows, chunk_rows, header)
        except csv.Error as error:
            raise ValueError(f"{file}, line {reader.line_num + bool(told)}: malformed csv: {error}.") from error


def find_delimiter(header: str) -> str:
    """Returns the separator that gives the most columns: a comma, or what spreadsheets write instead of it.

    Example: `find_delimiter("id;prompt;winner")` is ";".
    """

    def count(delimiter: str) -> int:
        """Number of columns."""
        return len(next(csv.reader([header], delimiter=delimiter), []))

    return max(DELIMITERS, key=count)  # of equals the first


def _drop_empty_end(cells: list[str]) -> list[str]:
    """The cells without the empty ones at the end, which spreadsheets leave where a column was deleted."""
    while cells and not cells[-1]:
        cells = cells[:-1]
    return cells


def _check_width(file: DataFile, reader: Iterator[list[str]], header: list[str], skipped: int) -> Iterator[dict]:
    """Yields csv rows as dicts; a row with missing or extra fields is an error. Rows without any text are no rows."""
    width = len(header)
    for row in reader:
        if not any(row):  # a blank line, or a spreadsheet's empty row
            continue
        if len(row) > width and not any(row[width:]):
            row = row[:width]
        if len(row) != width:
            raise ValueError(
                f"{file}, line {reader.line_num + skipped}: expected {width} fields; found {len(row)}. "
                "Quote fields that hold separators or line breaks."
            )
        yield dict(zip(header, row, strict=True))


def _read_jsonl(file: DataFile, chunk_rows: int) -> Iterator[Columns]:
    """Reads a jsonl file by chunks."""
    with file.open_text() as text:
        yield from _chunk_rows(_parse_lines(file, text), chunk_rows)


def _parse_lines(file: DataFile, text: TextIO) -> Iterator[dict]:
    """Yields the JSON object of each line; blank lines are skipped."""
    for number, line in _bound_lines(file, text):
        if line.strip():
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:  # RecursionError: too deeply nested
                found = f"{line.strip()[:60]!r} ({error})"
                raise ValueError(f"{file}, line {number}: expected JSON; found {found}.") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{file}, line {number}: expected one JSON object a line; found {line.strip()[:60]!r}."
                )
            yield row


def _bound_lines(file: DataFile, text: TextIO) -> Iterator[tuple[int, str]]:
    """Yields each line with its number. A line that does not end is an error before it fills the memory."""
    for number in itertools.count(1):
        line = text.readline(LINE_LIMIT + 1)
        if len(line) > LINE_LIMIT:
            raise ValueError(
                f"{file}, line {number}: expected at most {LINE_LIMIT:,} characters; found more, beginning with "
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


READERS = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".arrow": _read_arrow,
}
