"""Formats --help: each flag with its type, its meaning, and the value that runs if it is left out."""

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping

from modeling.settings.flags import Flag
from modeling.settings.train_arguments import TRAINING_DEFAULTS

GROUPS = (
    "data",
    "model",
    "encoding",
    "adapter",
    "teacher",
    "passes",
    "calibration",
    "report",
    "output",
)  # shown in this order, before all others
COLUMN = 34  # where the descriptions begin
MOST_CHOICES = 8  # a flag with more choices shows its type instead
KINDS = {int: "INT", float: "FLOAT", bool: "BOOL", str: "TEXT"}


def format_help(
    command: str,
    purpose: str,
    flags: Iterable[Flag],
    default: str,
    values: Mapping[str, str],
    demo: Mapping[str, str],
    *,
    everything: bool,
) -> str:
    """Returns a script's help text, in groups, with its own flags before the Trainer's.

    Args:
        command: The script as typed, without flags.
        purpose: One sentence on what the script does.
        flags: All flags of the script.
        default: What runs without a YAML.
        values: Values of the given YAML, by flag.
        demo: Values of the default recipe, by flag; empty if another recipe or none would run.
        everything: List all of the Trainer's flags, not only those that the script or a YAML sets.
    """
    groups = _group_flags(flags, {*TRAINING_DEFAULTS, *values}, everything)
    lines = [
        f"usage: {command} [CONFIG.yaml] [--flag value ...]",
        "",
        purpose.strip(),
        "",
        "Flags override the YAML, which overrides the default in brackets.",
        f"Without CONFIG.yaml, {default}.",
    ]
    for name, group in groups.items():
        if name == "training":
            name += " (the Trainer's own flags" + (")" if everything else "; --help_all lists all of them)")
        lines += ["", f"{name}:", *(line for flag in group for line in _format_flag(flag, values, demo))]
    lines += ["", "help:", *_place("--help", "Show this text and exit.")]
    if "training" in groups:
        lines += _place("--help_all", "Show all of the Trainer's flags too.")
    return "\n".join(lines)


def _group_flags(flags: Iterable[Flag], shown: set[str], everything: bool) -> dict[str, list[Flag]]:
    """The flags by heading, in the order of the headings: `GROUPS`, others, and last the Trainer's own."""
    found: dict[str, list[Flag]] = {}
    for flag in flags:
        if everything or not flag.is_trainers or flag.group != "training" or flag.name in shown:
            found.setdefault(flag.group, []).append(flag)
    others = [name for name in found if name not in (*GROUPS, "training")]
    return {name: found[name] for name in (*GROUPS, *others, "training") if name in found}


def format_value(value: object) -> str:
    """Returns a value as a user would type it; an empty string for None."""
    if isinstance(value, list | tuple):
        return " ".join(map(format_value, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _format_flag(flag: Flag, values: Mapping[str, str], demo: Mapping[str, str]) -> list[str]:
    """The lines of one flag."""
    takes = KINDS[flag.kind]
    if flag.choices and len(flag.choices) <= MOST_CHOICES:
        takes = "|".join(map(str, flag.choices))
    default = TRAINING_DEFAULTS.get(flag.name, flag.default) if flag.is_trainers else flag.default
    runs = values.get(flag.name, format_value(default))
    defaults = [runs] if runs else []
    if demo.get(flag.name, runs) != runs:
        defaults.append(f"the demo runs {demo[flag.name]}")
    text = flag.help + (f" [{'; '.join(defaults)}]" if defaults else "")
    return _place(f"--{flag.name} {takes}{' ...' if flag.many else ''}", text)


def _place(left: str, text: str) -> list[str]:
    """Two columns; a left part that is too long gets its own line."""
    width = max(shutil.get_terminal_size().columns - COLUMN, 30)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    first = [f"  {left}"] if len(left) + 3 > COLUMN else []
    rest = [f"{'':{COLUMN}}{line}" for line in lines]
    return [*first, *rest] if first else [f"{'  ' + left:<{COLUMN}}{lines[0]}", *rest[1:]]
