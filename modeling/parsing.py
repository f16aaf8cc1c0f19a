"""A command line to filled dataclasses: YAML first, flags second, and what is unknown is an error."""

import difflib
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser

REPOSITORY = Path(__file__).resolve().parent.parent
TOKEN_FLAGS = ("__hub_token", "__push_to_hub_token")  # TrainingArguments', which take - for _ too


def parse_arguments(*kinds: type, verb: str, argv: Sequence[str] | None = None) -> tuple:
    """One filled instance per dataclass, from `[CONFIG.yaml] [--flag value ...]`; flags win over the YAML.

    Without a YAML the script's demo recipe, configs/demo/<verb>.yaml, is taken.

    Args:
        kinds: Argument dataclasses; TrainingArguments may be among them.
        verb: The script's name, which is also its recipe's.
        argv: Command line without the program; the process's own if None.

    Raises:
        FileNotFoundError: If the YAML does not exist.
        ValueError: If a key or flag is unknown, or a value is not of its field's type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        kinds, allow_abbrev=False, description=(kinds[0].__doc__ or "").strip(), prog=f"{verb}.py"
    )
    parser.usage = f"{verb}.py [CONFIG.yaml] [--flag value ...]   (without CONFIG: configs/demo/{verb}.yaml)"
    if not {"-h", "--help"}.isdisjoint(argv):
        parser.parse_args(["--help"])
    parser.error = _raise_error
    given = bool(argv) and argv[0].endswith((".yaml", ".yml"))
    path = Path(argv.pop(0)) if given else REPOSITORY / "configs" / "demo" / f"{verb}.yaml"
    known = {field.name for kind in kinds for field in fields(kind) if field.init}
    # Said for the user where there is no GPU: from a launcher's YAML alone it starts processes that do not talk.
    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    automatic = ["--use_cpu", "true"] if "use_cpu" in known and on_cpu else []
    argv = [*automatic, *_read_recipe(path, known), *argv]
    if any(flag.partition("=")[0].replace("-", "_") in TOKEN_FLAGS for flag in argv):
        # Before anything is logged; other users see it in the list of processes.
        raise ValueError("--hub_token: expected no token in a command. Log in with `hf auth login`, or set HF_TOKEN.")
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(f"Unknown argument {unknown[0]!r}.{_suggest(unknown[0].lstrip('-'), known, '--')}")
    # Otherwise a file <script>.args that happens to lie beside the script is read too.
    logging.getLogger(f"bothways.{verb}").info(f"Arguments, {path.name} first: {' '.join(argv)}")
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)


def _read_recipe(path: Path, known: set[str]) -> list[str]:
    """The YAML's keys as flags, so that one parser checks and converts both."""
    if not path.is_file():
        raise FileNotFoundError(f"Recipe {path}: expected a YAML file; found none. The recipes stand in configs/.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"Recipe {path}: expected YAML; found {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"Recipe {path}: expected `key: value` lines; found a {type(values).__name__}.")
    flags = []
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"Recipe {path}: unknown key {key!r}.{_suggest(str(key), known)}")
        if value is not None:
            items = value if isinstance(value, list) else [value]
            flags += [f"--{key}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in items)]
    return flags


def _suggest(name: str, known: set[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(prefix + match for match in close)}?" if close else " --help lists all of them."


def _raise_error(message: str) -> None:
    """Stands in for argparse's own error, which prints a usage of several screens."""
    raise ValueError(f"Arguments: {message}.")
