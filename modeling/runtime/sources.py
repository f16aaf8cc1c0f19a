"""Reads a source of rows of any size as plain columns: a file, a folder or zip archive of files, or a Hub data set.

A folder is read file by file by the rules of a single file. It must not know battles.
"""

import itertools
import json
import logging
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
from datasets.data_files import SPLIT_KEYWORDS
from httpx2 import HTTPError  # `datasets` does not wrap this error of a connection that fails while it reads

from modeling.runtime.formats import CHUNK_ROWS, DAMAGED, Columns, DataFile, explain_unreadable, read_file
from modeling.runtime.paths import (
    BATTLE_ENDINGS,
    DATASET_ID,
    READABLE,
    check_source,
    explain_missing_source,
    find_format,
    is_archive,
    split_source,
)

logger = logging.getLogger(__name__)
TRAIN = "train"  # the split that is read if none is named
PEEKED_ROWS = 100  # of each file of a folder, to know the columns of all
SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")  # the Hub's own names of files, with the split
SPLIT_OF_WORD = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
DATA_ENDING = re.compile(
    r".*\.(arrow|feather|xlsx?|ods|json|ndjson|pkl|npy|npz|gz|zst|bz2|xz|7z|rar|tar|tgz|zip)", re.I
)
ABOUT_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def iterate_columns(source: str | Path, chunk_rows: int = CHUNK_ROWS) -> Iterator[Columns]:
    """Yields the columns of a source as Python lists, one chunk of rows at a time, so that any size fits.

    Args:
        source: A parquet, csv, tsv or jsonl file, plain or with .gz or .zst, also as `package:<installed package>/
            <file>`; a folder or zip archive of such files, or a folder written by `datasets`' save_to_disk, with an
            optional `:split`; or a Hub data set, `owner/name[/subset][@revision][:split]`. The split is "train" if
            none is named. Empty cells of a csv are empty texts, never NaN.
        chunk_rows: The largest number of rows in a chunk. A source without rows gives one chunk of empty columns.

    Raises:
        FileNotFoundError: If it is not there: no such file, folder, data set, subset, revision or split.
        ValueError: If it cannot be read. The message names the file and, for text files, the line.
        ConnectionError: If the Hub cannot be reached.
    """
    check_source(str(source))
    name, revision, split = split_source(str(source))
    path = Path(name)
    if not path.exists():
        yield from _read_hub(str(source), name, revision, split or TRAIN, chunk_rows)
    elif path.is_dir() or is_archive(path):
        yield from read_files(list_files(path, split), chunk_rows)
    else:
        yield from read_file(DataFile(path), chunk_rows)


# --- folders and archives ---------------------------------------------------------------------------------------------


def read_files(files: list[DataFile], chunk_rows: int) -> Iterator[Columns]:
    """Yields the rows of several files as those of one. A column that only some files have is None in the others."""
    peeked = (next(read_file(file, PEEKED_ROWS)) for file in files)
    names = dict.fromkeys(name for columns in peeked for name in columns)
    parts = (columns for file in files for columns in read_file(file, chunk_rows))
    held: Columns = {name: [] for name in names}
    empty = True
    for part in parts:
        held = _join_rows(held, part)
        whole = _count_rows(held) // chunk_rows * chunk_rows
        for start in range(0, whole, chunk_rows):
            empty = False
            yield {name: values[start : start + chunk_rows] for name, values in held.items()}
        held = {name: values[whole:] for name, values in held.items()}
    if empty or _count_rows(held):
        yield held


def _join_rows(first: Columns, second: Columns) -> Columns:
    """The rows of both, with the columns of both."""
    counts = _count_rows(first), _count_rows(second)
    empty = [[None] * count for count in counts]
    names = dict.fromkeys([*first, *second])
    return {name: [*first.get(name, empty[0]), *second.get(name, empty[1])] for name in names}


def _count_rows(columns: Columns) -> int:
    """Number of rows."""
    return len(next(iter(columns.values()), ()))


def list_files(folder: Path, split: str | None) -> list[DataFile]:
    """Returns the files of one split of a folder or zip archive, in the order of their names.

    What belongs to another split by its name, or is no table, is named in the log.

    Raises:
        FileNotFoundError: If there is no such split, or no file of rows at all.
        ValueError: If there are data in a format that cannot be read, or the archive is damaged.
    """
    splits = _find_saved(folder) or _find_splits(folder)
    chosen = split or (TRAIN if TRAIN in splits or len(splits) != 1 else next(iter(splits)))
    if not splits:
        raise FileNotFoundError(f"{folder}: expected files ending in {READABLE}; found none. Check the name.")
    if chosen not in splits:
        raise FileNotFoundError(
            f"{folder}: expected files of the split {chosen}; found no such split, only {', '.join(splits)}. Check the "
            f"name, or write {folder}:{next(iter(splits))}."
        )
    logger.info(f"{folder}: reads {', '.join(_shorten(folder, splits[chosen]))}")
    if others := [file for name, files in splits.items() if name != chosen for file in files]:
        logger.warning(
            f"{folder}: reads the split {chosen} only; left out by name: {', '.join(_shorten(folder, others))}. Write "
            f"{folder}:<split> for another."
        )
    return splits[chosen]


def _shorten(folder: Path, files: Iterable[DataFile]) -> list[str]:
    """Names of files below a folder."""
    return [str(file).removeprefix(f"{folder}/") for file in files]


def _list_all(folder: Path) -> list[str]:
    """Names of all files below a folder or in an archive, but hidden ones."""
    if folder.is_dir():
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    else:
        try:
            with zipfile.ZipFile(folder) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
        except (zipfile.BadZipFile, OSError) as error:
            raise explain_unreadable(folder, error) from error
    # __MACOSX is where macOS puts what it knows about the files of an archive.
    return sorted(name for name in names if not any(part.startswith((".", "__")) for part in name.split("/")))


def _locate(folder: Path, name: str) -> DataFile:
    """A file of a folder or archive by its name there."""
    return DataFile(folder / name) if folder.is_dir() else DataFile(folder, name)


def _find_splits(folder: Path) -> dict[str, list[DataFile]]:
    """The files of rows by their split. Files of another kind are an error if they may hold rows, else logged."""
    splits: dict[str, list[DataFile]] = {}
    others = []
    for name in _list_all(folder):
        if find_format(name)[0] in BATTLE_ENDINGS:
            splits.setdefault(_find_split(name), []).append(_locate(folder, name))
        elif (path := folder / name).suffix.lower() == ".zip" and folder.is_dir():
            # Of train.zip and test.zip with a battles.csv each, the archive names the split.
            for file in itertools.chain(*_find_splits(path).values()):
                splits.setdefault(_find_split(f"{name[: -len(path.suffix)]}/{file.member}"), []).append(file)
        else:
            others.append(name)
    data = [name for name in others if DATA_ENDING.fullmatch(name) and Path(name).name not in ABOUT_DATA]
    if data:
        raise ValueError(
            f"{folder}: expected files ending in {READABLE}; found {', '.join(data)} too, which cannot be read. Save "
            "them as one of these, or move them out of the folder."
        )
    if others:
        logger.warning(f"{folder}: left out, as they hold no rows: {', '.join(others)}")
    return splits


def _find_split(name: str) -> str:
    """The split that a file's name tells by the rules of the Hub; files that tell none are for training."""
    if shard := SHARD.match(name):
        return shard[1]
    words = re.split(r"[-._ /\d]+", name)
    return next((SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD), TRAIN)


def _find_saved(folder: Path) -> dict[str, list[DataFile]]:
    """The files by split of what `datasets` wrote with save_to_disk: a data set, or one folder for each split."""
    names = set(_list_all(folder))
    if "dataset_dict.json" in names:
        splits = _read_json(_locate(folder, "dataset_dict.json"))["splits"]
        return {split: _list_saved(folder, f"{split}/") for split in splits}
    if {"state.json", "dataset_info.json"} <= names:
        split = _read_json(_locate(folder, "state.json")).get("_split")
        return {split or TRAIN: _list_saved(folder, "")}
    return {}


def _list_saved(folder: Path, below: str) -> list[DataFile]:
    """The parts of a saved data set. A folder that was saved to twice may have more files than belong to it."""
    state = _read_json(_locate(folder, f"{below}state.json"))
    return [_locate(folder, f"{below}{part['filename']}") for part in state["_data_files"]]


def _read_json(file: DataFile) -> dict:
    """What a small JSON file holds."""
    try:
        with file.open() as stream:
            return json.load(stream)
    except (ValueError, *DAMAGED) as error:
        raise explain_unreadable(file.path, error) from error


# --- the Hub ----------------------------------------------------------------------------------------------------------


def _read_hub(source: str, name: str, revision: str | None, split: str, chunk_rows: int) -> Iterator[Columns]:
    """Streams a Hub data set."""
    found = DATASET_ID.fullmatch(name)
    subset = {"name": found["subset"]} if found["subset"] else {}
    try:
        rows = _keep_texts(found["repo"], revision=revision, split=split, **subset)
    except (OSError, ValueError, HTTPError) as error:
        raise _explain_hub(source, error, is_open=False) from error
    try:
        empty = True
        for chunk in rows.iter(batch_size=chunk_rows):
            empty = False
            yield {column: list(values) for column, values in chunk.items()}
        if empty:
            yield {column: [] for column in rows.column_names or []}
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        raise _explain_hub(source, error, is_open=True) from error


def _keep_texts(repo: str, **options: str | None) -> datasets.IterableDataset:
    """Opens a data set of the Hub. Cells of its csv files stay texts, as those of a csv file here do."""
    rows = datasets.load_dataset(repo, **options, streaming=True)
    if rows.info.builder_name != "csv":
        return rows
    names = next(iter(rows.iter(batch_size=1)), {})
    texts = datasets.Features({name: datasets.Value("string") for name in names})
    return datasets.load_dataset(repo, **options, streaming=True, features=texts, keep_default_na=False)


def _explain_hub(source: str, error: Exception, *, is_open: bool) -> OSError | ValueError:
    """The error for a Hub data set that is not there, cannot be reached or cannot be read."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    if isinstance(error, ConnectionError | TimeoutError | HTTPError):
        return ConnectionError(
            f"Battles file {source}: expected an answer from the Hub, which cannot be reached; found {text}. Check the "
            "connection and HF_HUB_OFFLINE, or download the data set and name its folder. If it should be on this "
            "machine, check the name: no such path is here."
        )
    if isinstance(error, FileNotFoundError) or not is_open:
        # Also an unknown subset or split, for which `datasets` names those that exist.
        way_out = "If it is private, log in with `hf auth login`."
        return FileNotFoundError(f"{explain_missing_source(source, f'no such data set on the Hub ({text})')} {way_out}")
    return ValueError(
        f"Battles file {source}: expected tables that `datasets` reads; found data that cannot be read ({text}). "
        "Download its files and name their folder, or name another revision."
    )
