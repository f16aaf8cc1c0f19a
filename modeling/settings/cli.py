"""The command `bothways <verb> ...`: runs the same script as `python scripts/<verb>.py ...`, from any folder.

It reads no argument but the verb, and imports nothing that costs time: whatever a verb needs, its script imports.
"""

import ast
import difflib
import importlib.metadata
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling.runtime.startup import show_text

SCRIPTS = "bothways"  # the package that setup.cfg makes of the folder scripts/
DOCTOR = "doctor"
DOCTOR_DOES = "Says what works on this machine: versions, devices, precision, quantisation. For bug reports."


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb with the rest of the command line, or says which verbs there are.

    Args:
        argv: Command line without the program; the process's own if None.

    Raises:
        SystemExit: With code 2 if there is no such verb, or what the script itself exits with.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (given[0], given[1:]) if given else ("--help", [])
    if verb in ("-h", "--help"):
        show_text(describe_verbs())
    elif verb == "--version":
        print(f"bothways {importlib.metadata.version('bothways')}")
    elif verb == DOCTOR:
        run_module("modeling.network.doctor", rest)
    elif verb in find_verbs():
        run_module(f"{SCRIPTS}.{verb}", rest)
    else:
        fail(explain_unknown(verb))


def find_verbs() -> dict[str, Path]:
    """The script of each verb, by name: from site-packages, or from a clone that is installed editable."""
    package = importlib.util.find_spec(SCRIPTS)
    folders = [Path(folder) for folder in package.submodule_search_locations] if package else []
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Runs a module as `python -m` does, so that it is `__main__` and sees its own arguments."""
    sys.argv[1:] = arguments
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def describe_verbs() -> str:
    """The help text: each verb with the first line of its script's docstring."""
    verbs = {verb: read_purpose(path) for verb, path in find_verbs().items()} | {DOCTOR: DOCTOR_DOES}
    width = max(map(len, verbs))
    lines = [f"  {verb:{width}}  {purpose}" for verb, purpose in sorted(verbs.items())]
    return "\n".join(
        [
            "usage: bothways VERB [CONFIG.yaml] [--flag value ...]",
            "",
            *lines,
            "",
            "bothways VERB --help lists a verb's flags; bothways --version says which version this is.",
            "In several processes: accelerate launch -m bothways.train [CONFIG.yaml] [--flag value ...]",
        ]
    )


def read_purpose(path: Path) -> str:
    """The first line of a script's docstring, without importing the script."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def explain_unknown(verb: str) -> str:
    """One line for a verb that is not there, with the nearest one that is."""
    verbs = [*find_verbs(), DOCTOR]
    if verbs == [DOCTOR]:
        return "expected the package `bothways`; found none. Install the project: `make install`, or pip install it."
    close = difflib.get_close_matches(verb, verbs, n=1)
    hint = f"Did you mean {close[0]}?" if close else "bothways --help lists them."
    return f"unknown verb {verb!r}. {hint}"


def fail(message: str) -> None:
    """Ends the process as a script does where the user made a mistake: one line, exit code 2."""
    print(f"bothways: error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
