"""The command `bothways <verb> ...`, which runs the same script as `python scripts/<verb>.py ...`, from any folder.

It parses only the verb and imports nothing slow: each script imports what it needs.
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

SCRIPTS = "bothways"  # setup.cfg installs the folder scripts/ as this package
DOCTOR = "doctor"
DOCTOR_DOES = "Reports versions, devices, precision and quantisation on this machine, for bug reports."


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb with the rest of the command line, or lists the verbs.

    Args:
        argv: Command line without the program; the process's own if None.

    Raises:
        SystemExit: With code 2 for an unknown verb, otherwise with the script's own code.
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
    """Returns the script of each verb, from site-packages or from a clone that is installed editable."""
    package = importlib.util.find_spec(SCRIPTS)
    folders = [Path(folder) for folder in package.submodule_search_locations] if package else []
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Runs a module as `python -m` does: it is `__main__` and sees only its own arguments."""
    sys.argv[1:] = arguments
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def describe_verbs() -> str:
    """Returns the help text: each verb with the first line of its script's docstring."""
    verbs = {verb: read_purpose(path) for verb, path in find_verbs().items()} | {DOCTOR: DOCTOR_DOES}
    width = max(map(len, verbs))
    lines = [f"  {verb:{width}}  {purpose}" for verb, purpose in sorted(verbs.items())]
    return "\n".join(
        [
            "usage: bothways VERB [CONFIG.yaml] [--flag value ...]",
            "",
            *lines,
            "",
            "bothways VERB --help lists a verb's flags; bothways --version prints the version.",
            "In several processes: accelerate launch -m bothways.train [CONFIG.yaml] [--flag value ...]",
        ]
    )


def read_purpose(path: Path) -> str:
    """Returns the first line of a script's docstring, without importing the script."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def explain_unknown(verb: str) -> str:
    """Returns the error for an unknown verb, with the nearest known verb."""
    verbs = [*find_verbs(), DOCTOR]
    if verbs == [DOCTOR]:
        return "expected the package `bothways`; found none. Install the project: `make install`, or pip install it."
    close = difflib.get_close_matches(verb, verbs, n=1)
    hint = f"Did you mean {close[0]}?" if close else "bothways --help lists them."
    return f"unknown verb {verb!r}. {hint}"


def fail(message: str) -> None:
    """Ends the process as a script does after a user's mistake: one line, exit code 2."""
    print(f"bothways: error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
