"""Resolves and checks names from a command line: a file, a folder, a packaged file, a Hub repository or data set.

It only looks at the disk and imports nothing heavy, so that a wrong path is reported before torch and transformers are
loaded. It must not know what is in the files.
"""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from modeling.runtime.packages import GEMMA_BASE, PACKAGED, WEIGHTS, find_packaged, find_parts, is_built

BATTLE_ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # endings that may follow, with Arrow's names for them
ARCHIVE = ".zip"
READABLE = f"{', '.join(BATTLE_ENDINGS)} (each also with {' or '.join(COMPRESSIONS)}) or {ARCHIVE}"
SOURCE = re.compile(r"(?P<path>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<split>.+))?")
DATASET_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(/(?P<subset>\w[\w.-]*))?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# A copy of huggingface_hub's rule, because importing that library is slower than checking a path may be.
REPOSITORY_ID = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)
DEFAULT_JUDGE = "default"  # the name of the judge that comes with this package
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "judging" / DEFAULT_JUDGE
DEFAULT_MEMBER = DEFAULT_FOLDER / "both"  # its only member
DEFAULT_BASE = GEMMA_BASE
# Names that can only be files. Any other ending may be part of a Hub id, as in "mix-v1.2".
FILE_ENDING = re.compile(r".*\.(parquet|csv|tsv|jsonl|json|ndjson|txt|arrow|feather|xlsx|gz|bz2|xz|zst|zip|tar)", re.I)


# --- resolving names --------------------------------------------------------------------------------------------------


def locate_source(source: str | Path) -> Path:
    """Returns the path of a battle file, which may be in an installed package."""
    return find_packaged(source, "Battles file") if str(source).startswith(PACKAGED) else Path(source)


def split_source(source: str) -> tuple[str, str | None, str | None]:
    """Returns path or Hub name (owner/name[/subset]), revision and split of a source of battles."""
    path = locate_source(source)
    name = None if path.exists() else SOURCE.fullmatch(source)  # an existing path may contain "@" and ":"
    return (name["path"], name["revision"], name["split"]) if name else (str(path), None, None)


def find_format(name: str) -> tuple[str, str | None]:
    """Returns the ending that tells a file's format, and Arrow's name of its compression, if any.

    Example: `find_format("battles.CSV.gz")` is `(".csv", "gzip")`.
    """
    path = Path(name.lower())
    if path.suffix not in COMPRESSIONS:
        return path.suffix, None
    return path.with_suffix("").suffix, COMPRESSIONS[path.suffix]


def is_archive(path: Path) -> bool:
    """Returns whether a path is a file that contains other files."""
    return path.is_file() and path.suffix.lower() == ARCHIVE


def find_judge_folder(name: str) -> Path | None:
    """Returns the folder of a judge or member that is on this machine; None if only the Hub can have it."""
    folder = DEFAULT_FOLDER if name == DEFAULT_JUDGE else Path(name)
    return folder if folder.is_dir() else None


def find_adapter_folder(name: str) -> Path | None:
    """Returns the folder of an adapter that is on this machine; None if only the Hub can have it."""
    folder = DEFAULT_MEMBER if name == DEFAULT_JUDGE else Path(name)
    return folder if folder.is_dir() else None


def is_repository_id(name: str) -> bool:
    """Returns whether a repository on the Hub can have this id."""
    return bool(REPOSITORY_ID.fullmatch(name)) and not re.search(r"--|\.\.|\.git$", name)


def is_in_folder(name: str) -> bool:
    """Returns whether a missing path is in an existing folder, and so more likely a mistyped path than a Hub id.

    A name with a revision, as in owner/name@main, is meant for the Hub.
    """
    return "/" in name and "@" not in name and Path(name).parent.is_dir()


def shorten_path(text: str) -> str:
    """Returns a path as a file that is written may name it; other text stays.

    A path inside the working directory is relative to it, and any other keeps only its last part: a file that is
    copied elsewhere must not tell the folders of this machine.
    """
    path = Path(os.path.expanduser(text))
    if not path.is_absolute() and ".." not in path.parts:
        return text
    inside = os.path.relpath(path)
    return path.name if inside.startswith("..") else inside


def describe_command(argv: Sequence[str], launcher: str) -> str:
    """Returns a script's command as typed, with its paths as `shorten_path` has them.

    Args:
        argv: The script and its flags, as in `sys.argv`.
        launcher: What started the script, such as "python". Its own flags are not in `argv`.
    """
    script, *words = argv
    flags = [word.partition("=") if word.startswith("--") else ("", "", word) for word in words]
    shortened = [flag + equals + shorten_path(value) for flag, equals, value in flags]
    return f"{launcher} {shlex.join([f'scripts/{Path(script).name}', *shortened])}"


# --- checking names ---------------------------------------------------------------------------------------------------


def check_source(source: str) -> None:
    """Raises an error if the name and the disk show that a source of battles cannot be read."""
    name, revision, split = split_source(source)
    path = Path(name)
    if revision and path.exists():
        raise ValueError(f"Battles {source}: expected a revision only of a Hub data set; found {name} on this machine.")
    if path.is_file():
        if not is_archive(path):
            _check_ending(path, split)
        return
    # Names that cannot be Hub data sets, or that end like a file, are never looked up on the Hub.
    if not path.is_dir() and (not DATASET_ID.fullmatch(name) or FILE_ENDING.fullmatch(name)):
        raise explain_missing_source(source)
    if not path.exists() and is_in_folder(source):
        raise explain_missing_source(source, f"a folder {path.parent} without {path.name}")


def check_benchmark(source: str) -> None:
    """Raises an error if the name and the disk show that the file of a benchmark cannot be read.

    Unlike battles, it may also be one JSON list, as some authors publish theirs.
    """
    if not (source.lower().endswith(".json") and Path(source).is_file()):
        check_source(source)


def _check_ending(path: Path, split: str | None) -> None:
    """Raises a ValueError if a file has no readable format, or a split is asked of it."""
    if find_format(path.name)[0] not in BATTLE_ENDINGS:
        found = repr(path.suffix) if path.suffix else "'no ending'"
        raise ValueError(
            f"{path}: expected a file ending in {READABLE}; found {found}. Save it as one of them, or rename it if it "
            "is one of them."
        )
    if split:
        raise ValueError(f"{path}: expected no split, as a file has none; found :{split}. Leave it out.")


def explain_missing_source(source: str, problem: str = "none") -> FileNotFoundError:
    """Returns the error for a source of battles that is not there."""
    return FileNotFoundError(
        f"Battles file {source}: expected a file, a folder of data files, or a Hub data set (owner/name[/subset]"
        f"[@revision][:split]); found {problem}. Check the name."
    )


def check_hub_name(name: str, role: str) -> None:
    """Raises a FileNotFoundError if a name, with an optional @revision, cannot be a Hub repository.

    Args:
        name: The name as typed.
        role: What the repository is for, in the error: "Judge", "Base".
    """
    is_possible = is_repository_id(name.partition("@")[0])
    if is_possible and not is_in_folder(name):
        return
    if is_possible:
        found, way_out = f"a folder {Path(name).parent} without it", f", or write {name}@main for a repository"
    else:
        found, way_out = "neither, as no repository can have that name", ""
    raise FileNotFoundError(
        f"{role} {name}: expected a folder here or a Hub repository; found {found}. If it is the demo's, run "
        "`make demo` first (`bothways quantize` and `bothways train` without a clone); otherwise check the path"
        f"{way_out}."
    )


def check_folder(name: str, role: str) -> None:
    """Raises a FileNotFoundError if a name is not a folder here and cannot be a Hub repository."""
    if not Path(name).is_dir():
        check_hub_name(name, role)


def check_judge(name: str) -> None:
    """Raises a FileNotFoundError if a judge is not here and cannot be a Hub repository, or a package that it needs is
    not installed."""
    if name == DEFAULT_JUDGE:
        check_base(DEFAULT_BASE)
    else:
        check_folder(name, "Judge")


def check_adapter(name: str) -> None:
    """Raises a FileNotFoundError if an adapter is not a folder here and cannot be a Hub repository."""
    if name != DEFAULT_JUDGE:
        check_folder(name, "Adapter")


def check_local_folder(name: str | Path, flag: str, what: str) -> None:
    """Raises a FileNotFoundError if a name is not a folder on this machine, even if it is on the Hub.

    Args:
        name: The name as typed.
        flag: Its flag, in the error.
        what: What the folder should contain, in the error: "a base".
    """
    if not Path(name).is_dir():
        raise FileNotFoundError(f"{flag} {name}: expected the folder of {what}; found none.")


def check_base(base: str) -> None:
    """Raises an error if a base is not a packaged file, a GGUF file or a model folder, and cannot be a repository."""
    path = Path(base)
    if base in WEIGHTS:
        if not is_built(base):
            find_parts(base)
    elif base.startswith(PACKAGED):
        find_packaged(base, "Base")
    elif not path.is_dir():
        if not (path.is_file() and path.suffix == ".gguf"):
            check_hub_name(base, "Base")
    elif (path / "adapter_config.json").is_file():
        raise ValueError(f"Base {base}: expected a base; found an adapter. Pass it as --judge, or as --merge_adapter.")
    else:
        _check_base_folder(path)


def _check_base_folder(folder: Path) -> None:
    """Raises a ValueError if a file is missing that every base has."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"Base {folder}: expected a model folder with config.json; found none. Give a folder that quantize.py "
            "wrote, or a model's own."
        )
    if not any(folder.glob("*.safetensors")):
        others = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "none"
        raise ValueError(
            f"Base {folder}: expected weights in *.safetensors; found {others}. Download the whole model, or save it "
            "with save_pretrained, which writes safetensors."
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"Base {folder}: expected a tokenizer ({' or '.join(TOKENIZER_FILES)}); found none. Copy the tokenizer's "
            "files of the original model into the folder."
        )


def check_predictions(path: str) -> None:
    """Raises a FileNotFoundError if there is no such file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Predictions {path}: expected a file; found none. scripts/predict.py writes it.")


def check_annotations(path: str) -> None:
    """Raises a FileNotFoundError if there is no such file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Annotations {path}: expected a file; found none. Correct the path.")


def check_secret_file(name: str, flag: str) -> None:
    """Raises a ValueError if there is no such file. It never repeats the name, which may be the secret itself."""
    if not os.path.isfile(name):  # unlike Path.is_file, false for a name that is too long
        raise ValueError(
            f"{flag}: expected a file; found none of this name. Never give a secret itself on the command line, where "
            "`ps` shows it to every user of the machine: write it to a file, and name the file."
        )


# The check of each kind of path; an option's metadata names its kind under "path".
CHECKS: dict[str, Callable[[str], None]] = {
    "battles": check_source,
    "benchmark": check_benchmark,
    "base": check_base,
    "judge": check_judge,
    "adapter": check_adapter,
    "predictions": check_predictions,
    "annotations": check_annotations,
    "base here": lambda name: check_local_folder(name, "--base", "a base"),
    "judge here": lambda name: check_local_folder(name, "--judge", "a member or judge"),
    "key": lambda name: check_secret_file(name, "--api_key"),
    "users": lambda name: check_secret_file(name, "--auth"),
}
