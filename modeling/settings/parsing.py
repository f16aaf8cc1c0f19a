"""Parses a command line into argument dataclasses: YAML first, then flags; anything unknown is an error.

Everything is checked before torch is loaded, so that a mistake is answered at once. Only then are the Trainer's flags
turned into its TrainingArguments. This module must not know what any script does.
"""

import argparse
import difflib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from modeling.runtime.devices import start_torch
from modeling.runtime.paths import CHECKS
from modeling.runtime.startup import show_text
from modeling.settings.flags import (
    EVALUATION_FLAGS,
    PRECISION_FLAGS,
    REFUSED_FLAGS,
    REPORTERS,
    Flag,
    list_flags,
    read_trainer_flags,
)
from modeling.settings.help import format_help, format_value
from modeling.settings.recipes import ENDINGS, FOLDER, find_recipe, read_recipe
from modeling.settings.train_arguments import TRAINING_DEFAULTS

HELP = ("-h", "--help", "--help_all")
TOKEN_FLAGS = ("__hub_token", "__push_to_hub_token")  # flags of TrainingArguments, after - has become _
TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
# Keys of TRAINING_DEFAULTS that transformers also knows by a newer name. If the user gives the newer name, our default
# is left out: otherwise both would be passed.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def parse_arguments(
    kind: type,
    *,
    verb: str,
    trainer: bool = False,
    command: str | None = None,
    default_recipe: str | None = None,
    argv: Sequence[str] | None = None,
) -> tuple:
    """Returns a filled dataclass, parsed from `[CONFIG.yaml] [--flag value ...]`.

    Flags override the YAML, which overrides the defaults. Without a YAML the script runs its default recipe, unless a
    flag names the user's own data or model.

    Args:
        kind: The script's argument dataclass.
        verb: The script's name, which is also its recipe's name.
        trainer: Also accept the Trainer's flags, and return its TrainingArguments as a second value.
        command: What --help shows as the command; `<verb>.py` if None.
        default_recipe: Recipe to run without a YAML, relative to the current folder; configs/demo/<verb>.yaml of the
            clone or the installed package if None.
        argv: Command line without the program; the process's own if None.

    Raises:
        FileNotFoundError: If the YAML, or a file or model that a flag names, does not exist.
        ValueError: If a key or flag is unknown, or a value is not of its field's type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    flags = {flag.name: flag for flag in [*list_flags(kind), *(read_trainer_flags() if trainer else [])]}
    recipe = argv.pop(0) if argv and argv[0].endswith(ENDINGS) else None
    argv = [_normalize(word, flags) for word in argv]
    named = {word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
    demo = default_recipe or f"{FOLDER}/demo/{verb}.yaml"
    is_demo = recipe is None and named.isdisjoint(kind.own_data)
    recipe = demo if is_demo else recipe
    # The user's folder may have a configs/demo/ of its own, which nobody asked for.
    only_packaged = is_demo and default_recipe is None
    if not set(HELP).isdisjoint(argv):
        values = _read_values(recipe, only_packaged) if recipe else {}
        shown = {"values": {} if is_demo else values, "demo": values if is_demo else {}}
        default = f"{demo} runs" + (", unless a flag names your own data or model" if kind.own_data else "")
        shown |= {"default": default, "everything": "--help_all" in argv}
        show_text(format_help(command or f"{verb}.py", kind.__doc__, flags.values(), **shown))
        raise SystemExit(0)
    words = [*(_list_words(find_recipe(recipe, only_packaged=only_packaged), flags) if recipe else ()), *argv]
    _refuse_tokens(words)
    given = _parse_words(words, flags)
    arguments = kind(**{name: value for name, value in given.items() if not flags[name].is_trainers})
    settings = {name: value for name, value in given.items() if flags[name].is_trainers}
    if trainer:
        _check_settings(settings, flags)
    check_paths(arguments)

    # Set for the user where there is no GPU: `use_cpu: true` in a launcher's YAML alone starts processes that do not
    # communicate, each training by itself.
    if not start_torch() and "use_cpu" in flags and "use_cpu" not in given:
        words = ["--use_cpu", "true", *words]
        if trainer:
            settings["use_cpu"] = "true"
        else:
            arguments.use_cpu = True
    _log_arguments(logging.getLogger(f"bothways.{verb}"), recipe, words, settings)
    return (arguments, _build_training_arguments(settings)) if trainer else (arguments,)


def _log_arguments(logger: logging.Logger, recipe: str | None, words: Sequence[str], settings: Mapping) -> None:
    """Logs what runs, and warns about flags that do nothing here."""
    logger.info(f"Recipe: {recipe}" if recipe else "No recipe: the script's defaults")
    logger.info(f"Arguments{', the recipe first' if recipe else ''}: {' '.join(words)}")
    if idle := [f"--{name}" for name in EVALUATION_FLAGS if name in settings]:
        logger.warning(f"{', '.join(idle)}: no effect; evaluation runs packed sequences within --tokens_per_batch")


def check_paths(arguments: object) -> None:
    """Raises an error if a named file, folder or model does not exist here and cannot be a Hub id."""
    for flag in list_flags(type(arguments)):
        value = vars(arguments)[flag.name]
        if flag.path and value:
            for name in value if flag.many else [value]:
                CHECKS[flag.path](name)


def _refuse_tokens(words: Sequence[str]) -> None:
    """Raises a ValueError if a command holds a token, before it is logged: other users can see a process's command."""
    if any(word.partition("=")[0].replace("-", "_") in TOKEN_FLAGS for word in words):
        raise ValueError("--hub_token: expected no token in a command. Log in with `hf auth login`, or set HF_TOKEN.")


def _check_settings(settings: Mapping[str, str], flags: Mapping[str, Flag]) -> None:
    """Raises a ValueError if --output_dir is missing, or a flag is given that --dtype replaces or that is refused."""
    for name, instead in PRECISION_FLAGS.items():
        if name in settings:
            value, dtype = settings[name], instead[settings[name].lower() in FALSE]
            raise ValueError(
                f"--{name} {value}: expected --dtype instead, which sets the precision in every script; found {name}, "
                f"as a flag or YAML key. Write --dtype {dtype}, or in YAML dtype: {dtype}."
            )
    for name, reason in REFUSED_FLAGS.items():
        if settings.get(name, "false").lower() not in (*FALSE, "none"):
            raise ValueError(f"--{name} {settings[name]}: expected without it; {reason}. Leave it out.")
    reporter = settings.get("report_to")
    if reporter in REPORTERS and not any(map(find_spec, REPORTERS[reporter])):
        needed = REPORTERS[reporter][0]
        raise ValueError(
            f"--report_to {reporter}: expected the package {needed}; found none. Install it (pip install {needed}), or "
            "leave it out."
        )
    if not settings.get("output_dir"):
        raise ValueError(
            f"Expected --output_dir; found neither flag nor YAML key. --output_dir: {flags['output_dir'].help}"
        )


def _build_training_arguments(settings: Mapping[str, str | list[str]]) -> object:
    """The Trainer's TrainingArguments; transformers converts the given values and our defaults."""
    from transformers import HfArgumentParser, TrainingArguments  # imported here because it takes seconds

    defaults = {name: value for name, value in TRAINING_DEFAULTS.items() if RENAMED.get(name) not in settings}
    words = []
    for name, value in (defaults | settings).items():
        # As --name=value where possible: argparse would take a separate value that begins with - for a flag.
        words += [f"--{name}", *value] if isinstance(value, list) else [f"--{name}={value}"]
    parser = HfArgumentParser(TrainingArguments, allow_abbrev=False)
    parser.error = _raise_error
    # By default HfArgumentParser also reads a file <script>.args beside the script.
    return parser.parse_args_into_dataclasses(words, look_for_args_file=False)[0]


# --- words to values --------------------------------------------------------------------------------------------------


def _normalize(word: str, flags: Mapping[str, Flag]) -> str:
    """A word of the command line; known flags with - for _, or written --no_flag, in their plain form."""
    name, equals, value = word.partition("=")
    plain = name.removeprefix("--").replace("-", "_")
    if not name.startswith("--"):
        return word
    if plain in flags:
        return f"--{plain}{equals}{value}"
    negated = flags.get(plain.removeprefix("no_"))
    return f"--{negated.name}=false" if negated and negated.kind is bool and plain.startswith("no_") else word


def _list_words(path: Path, flags: Mapping[str, Flag]) -> list[str]:
    """The YAML's keys as flags, so that one parser checks and converts both."""
    words = []
    for key, value in read_recipe(path).items():
        if key not in flags:
            raise ValueError(f"Recipe {path}: unknown key {key!r}.{_suggest(str(key), flags)}")
        items = value if isinstance(value, list) else [value]
        words += [f"--{key}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in items)]
    return words


def _read_values(recipe: str, only_packaged: bool) -> dict[str, str]:
    """A recipe's values as --help shows them; empty if the recipe does not exist, because --help must not fail."""
    try:
        values = read_recipe(find_recipe(recipe, only_packaged=only_packaged))
    except FileNotFoundError:
        return {}
    return {str(key): format_value(value) for key, value in values.items()}


def _parse_words(words: Sequence[str], flags: Mapping[str, Flag]) -> dict:
    """The given values by flag. Those of the Trainer's flags are checked but stay text, for transformers to convert."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
    parser.error = _raise_error
    for flag in flags.values():
        _add_flag(parser, flag)
    found, unknown = parser.parse_known_args(words)
    if unknown:
        raise ValueError(f"Unknown argument {unknown[0]!r}.{_suggest(unknown[0].lstrip('-'), flags, '--')}")
    return vars(found)


def _add_flag(parser: argparse.ArgumentParser, flag: Flag) -> None:
    """Adds a flag to a parser."""
    read = _read_bool if flag.kind is bool else flag.kind
    options = {"type": _keep_text(read) if flag.is_trainers else read, "choices": flag.choices}
    if flag.many:
        options["nargs"] = "+"
    elif flag.kind is bool:
        options |= {"nargs": "?", "const": "true" if flag.is_trainers else True}
    parser.add_argument(f"--{flag.name}", **options)


def _read_bool(text: str) -> bool:
    """Whether a text means true; accepts the same words as transformers."""
    if text.lower() not in (*TRUE, *FALSE):
        raise argparse.ArgumentTypeError(f"expected true or false; got {text}")
    return text.lower() in TRUE


def _keep_text(read: Callable[[str], object]) -> Callable[[str], str]:
    """A type for argparse that checks a text with `read` but returns the text."""

    def check(text: str) -> str:
        """The text, unless `read` refuses it."""
        read(text)
        return text

    check.__name__ = read.__name__  # for argparse's message "invalid int value"
    return check


def _suggest(name: str, known: Mapping[str, Flag], prefix: str = "") -> str:
    """The end of an error: the nearest known names, or where to find them."""
    close = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(prefix + match for match in close)}?" if close else " --help lists all of them."


def _raise_error(message: str) -> None:
    """Replaces argparse's own error, which prints several screens of usage and exits."""
    raise ValueError(f"Arguments: {message}.")
