"""A command line to filled dataclasses: YAML first, flags second, and what is unknown is an error.

All of it is checked before torch is loaded; only then are the Trainer's flags turned into its TrainingArguments.
"""

import argparse
import difflib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modeling.runtime.paths import CHECKS
from modeling.runtime.startup import show_text, start_torch
from modeling.settings.arguments import TRAINING_DEFAULTS
from modeling.settings.flags import PRECISION_FLAGS, Flag, list_flags, read_trainer_flags
from modeling.settings.help import format_help, format_value
from modeling.settings.recipes import ENDINGS, FOLDER, find_recipe, read_recipe

HELP = ("-h", "--help", "--help_all")
TOKEN_FLAGS = ("__hub_token", "__push_to_hub_token")  # TrainingArguments', which take - for _ too
TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
# Of TRAINING_DEFAULTS, those that transformers knows by a newer name too: a user's newer one wins.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def parse_arguments(kind: type, *, verb: str, trainer: bool = False, argv: Sequence[str] | None = None) -> tuple:
    """A filled dataclass, from `[CONFIG.yaml] [--flag value ...]`; flags win over the YAML, which wins over defaults.

    Without a YAML the script's demo recipe, configs/demo/<verb>.yaml, is taken; but none as soon as a flag names data
    or a model of the user's own.

    Args:
        kind: The script's argument dataclass.
        verb: The script's name, which is also its recipe's.
        trainer: Whether the Trainer's flags are taken too, and its TrainingArguments returned as a second value.
        argv: Command line without the program; the process's own if None.

    Raises:
        FileNotFoundError: If the YAML, or something else that is named, does not exist.
        ValueError: If a key or flag is unknown, or a value is not of its field's type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    flags = {flag.name: flag for flag in [*list_flags(kind), *(read_trainer_flags() if trainer else [])]}
    recipe = argv.pop(0) if argv and argv[0].endswith(ENDINGS) else None
    argv = [_normalize(word, flags) for word in argv]
    named = {word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
    is_demo = recipe is None and named.isdisjoint(kind.own_data)
    recipe = f"{FOLDER}/demo/{verb}.yaml" if is_demo else recipe
    if not set(HELP).isdisjoint(argv):
        values = _read_values(recipe, is_demo) if recipe else {}
        shown = {"values": {} if is_demo else values, "demo": values if is_demo else {}}
        show_text(format_help(verb, kind.__doc__, flags.values(), **shown, everything="--help_all" in argv))
        raise SystemExit(0)
    words = [*(_list_words(find_recipe(recipe, only_packaged=is_demo), flags) if recipe else ()), *argv]
    _refuse_tokens(words)
    given = _parse_words(words, flags)
    arguments = kind(**{name: value for name, value in given.items() if not flags[name].is_trainers})
    settings = {name: value for name, value in given.items() if flags[name].is_trainers}
    if trainer:
        _check_settings(settings, flags)
    check_paths(arguments)

    has_accelerator = start_torch()
    # Said for the user where there is no GPU: from a launcher's YAML alone it starts processes that do not talk.
    if "use_cpu" in flags and "use_cpu" not in given and not has_accelerator:
        words = ["--use_cpu", "true", *words]
        if trainer:
            settings["use_cpu"] = "true"
        else:
            arguments.use_cpu = True
    logger = logging.getLogger(f"bothways.{verb}")
    logger.info(f"Recipe: {recipe}" if recipe else "No recipe: the script's defaults")
    logger.info(f"Arguments{', the recipe first' if recipe else ''}: {' '.join(words)}")
    return (arguments, _build_training_arguments(settings)) if trainer else (arguments,)


def check_paths(arguments: object) -> None:
    """Raises an error if something that is named is neither here nor, by its name, on the Hub."""
    for flag in list_flags(type(arguments)):
        value = vars(arguments)[flag.name]
        if flag.path and value:
            for name in value if flag.many else [value]:
                CHECKS[flag.path](name)


def _refuse_tokens(words: Sequence[str]) -> None:
    """Raises a ValueError, before anything is logged, if a command holds a token: others see the list of processes."""
    if any(word.partition("=")[0].replace("-", "_") in TOKEN_FLAGS for word in words):
        raise ValueError("--hub_token: expected no token in a command. Log in with `hf auth login`, or set HF_TOKEN.")


def _check_settings(settings: Mapping[str, str], flags: Mapping[str, Flag]) -> None:
    """Raises a ValueError if the Trainer's flags lack what a run needs, or say what --dtype is there to say."""
    for name, instead in PRECISION_FLAGS.items():
        if name in settings:
            value, dtype = settings[name], instead[settings[name].lower() in FALSE]
            raise ValueError(
                f"--{name} {value}: expected --dtype instead, which says the precision in every script; found {name}, "
                f"as a flag or YAML key. Write --dtype {dtype}, or in YAML dtype: {dtype}."
            )
    if not settings.get("output_dir"):
        raise ValueError(
            f"Expected --output_dir; found neither flag nor YAML key. --output_dir: {flags['output_dir'].help}"
        )


def _build_training_arguments(settings: Mapping[str, str | list[str]]) -> object:
    """The Trainer's TrainingArguments, converted by transformers from the script's defaults and what was given."""
    from transformers import HfArgumentParser, TrainingArguments  # here: takes seconds

    defaults = {name: value for name, value in TRAINING_DEFAULTS.items() if RENAMED.get(name) not in settings}
    words = []
    for name, value in (defaults | settings).items():
        # One word where it can be, so that a value may begin with -.
        words += [f"--{name}", *value] if isinstance(value, list) else [f"--{name}={value}"]
    parser = HfArgumentParser(TrainingArguments, allow_abbrev=False)
    parser.error = _raise_error
    # Otherwise a file <script>.args that happens to lie beside the script is read too.
    return parser.parse_args_into_dataclasses(words, look_for_args_file=False)[0]


# --- words to values --------------------------------------------------------------------------------------------------


def _normalize(word: str, flags: Mapping[str, Flag]) -> str:
    """A word of the command line; a known flag written with - for _, or as --no_flag, in its plain form."""
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
    """A recipe's values as --help shows them; none where there is no such recipe, as help is given all the same."""
    try:
        values = read_recipe(find_recipe(recipe, only_packaged=only_packaged))
    except FileNotFoundError:
        return {}
    return {str(key): format_value(value) for key, value in values.items()}


def _parse_words(words: Sequence[str], flags: Mapping[str, Flag]) -> dict:
    """The values that were given; those of the Trainer's flags are checked, but stay as they were written."""
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
    """Whether a text says yes; as transformers reads it."""
    if text.lower() not in (*TRUE, *FALSE):
        raise argparse.ArgumentTypeError(f"expected true or false; got {text}")
    return text.lower() in TRUE


def _keep_text(read: Callable[[str], object]) -> Callable[[str], str]:
    """The text itself, which must be readable."""

    def check(text: str) -> str:
        read(text)
        return text

    check.__name__ = read.__name__  # argparse says it: "invalid int value"
    return check


def _suggest(name: str, known: Mapping[str, Flag], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(prefix + match for match in close)}?" if close else " --help lists all of them."


def _raise_error(message: str) -> None:
    """Stands in for argparse's own error, which prints a usage of several screens."""
    raise ValueError(f"Arguments: {message}.")
