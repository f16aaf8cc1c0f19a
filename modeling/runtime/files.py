"""Writes results that are complete or absent, and describes files. It must not know battles."""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from modeling.runtime.paths import split_source


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
        OSError: If the disk is full.
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
        with _explain_full_disk(folder):
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

    Raises:
        OSError: If the disk is full.

    Example: `with replace_file(path) as beside: verdicts.to_parquet(beside)`.
    """
    # In the same folder, because only there a rename is atomic. The ending stays, because some writers choose the
    # format by it. The dot hides the file from the shell and from `datasets`, should a killed process leave it.
    beside = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        with _explain_full_disk(path):
            yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _explain_full_disk(target: Path) -> Iterator[None]:
    """Names the file or folder that a full disk kept from being written; safetensors' own error is no OSError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
            raise
        raise OSError(
            f"{target}: expected room on the disk to write it; found {error}. It was not written: make room, or name "
            "another folder."
        ) from error


def name_progress(output: Path) -> Path:
    """Returns the folder for the progress of a command. It is beside the output, which is replaced as a whole."""
    return output.with_name(f".{output.name}.progress")


def write_json(path: Path, values: object) -> None:
    """Writes indented JSON. NaN, which JSON does not have, is a ValueError."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def describe_file(path: str) -> dict[str, str | None]:
    """Returns the name of a source and, if it is a file, its SHA-256. A Hub id keeps its whole name."""
    name, _, split = split_source(path)
    file = Path(name)
    # Only the last part of a path: no file that is written may name a folder of this machine.
    plain = file.name + (f":{split}" if split else "")
    return {"name": plain if file.exists() else path, "sha256": hash_file(file) if file.is_file() else None}


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
