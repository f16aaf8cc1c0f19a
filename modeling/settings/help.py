"""What --help prints: each flag, what it takes, what it means, and the value that runs if it is left out."""

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping

from modeling.settings.arguments import TRAINING_DEFAULTS
from modeling.settings.flags import Flag

GROUPS = ("data", "model", "encoding", "adapter", "teacher", "passes", "calibration", "report", "output")  # come first
COLUMN = 34  # where the descriptions begin
MOST_CHOICES = 8  # that are listed as what a flag takes
KINDS = {int: "INT", float: "FLOAT", bool: "BOOL", str: "TEXT"}


def format_help(
    verb: str,
    purpose: str,
    flags: Iterable[Flag],
    values: Mapping[str, str],
    demo: Mapping[str, str],
    *,
    everything: bool,
) -> str:
    """The help of a script, in groups, its own flags before the Trainer's.

    Args:
        purpose: What the script does, in a sentence.
        flags: All that it takes.
        values: What the given YAML says.
        demo: What the demo's recipe says, where a bare command runs it.
        everything: Whether to list all of the Trainer's flags, and not only those that the script or a YAML sets.
    """
    groups: dict[str, list[Flag]] = {}
    for flag in flags:
        if (
            everything
            or not flag.is_trainers
            or flag.group != "training"
            or flag.name in {**TRAINING_DEFAULTS, **values}
        ):
            groups.setdefault(flag.group, []).append(flag)
    order = [
        *(name for name in GROUPS if name in groups),
        *(name for name in groups if name not in (*GROUPS, "training")),
    ]
    lines = [
        f"usage: {verb}.py [CONFIG.yaml] [--flag value ...]",
        "",
        purpose.strip(),
        "",
        "A flag wins over the YAML, which wins over the value in brackets.",
        f"Without CONFIG.yaml, configs/demo/{verb}.yaml runs, unless a flag names your own data or model.",
    ]
    for name in order:
        lines += ["", f"{name}:", *(line for flag in groups[name] for line in _format_flag(flag, values, demo))]
    if "training" in groups:
        title = "training (the Trainer's own flags" + (")" if everything else "; --help_all lists all of them)")
        lines += ["", f"{title}:"]
        lines += [line for flag in groups["training"] for line in _format_flag(flag, values, demo)]
    lines += ["", "help:", *_place("--help", "Show this and stop.")]
    if "training" in groups:
        lines += _place("--help_all", "Show every flag of the Trainer too.")
    return "\n".join(lines)


def format_value(value: object) -> str:
    """A value as it would be typed; empty for none."""
    if isinstance(value, list | tuple):
        return " ".join(map(format_value, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _format_flag(flag: Flag, values: Mapping[str, str], demo: Mapping[str, str]) -> list[str]:
    """The lines about one flag."""
    takes = KINDS[flag.kind]
    if flag.choices and len(flag.choices) <= MOST_CHOICES:
        takes = "|".join(map(str, flag.choices))
    default = TRAINING_DEFAULTS.get(flag.name, flag.default) if flag.is_trainers else flag.default
    runs = values.get(flag.name, format_value(default))
    said = [runs] if runs else []
    if demo.get(flag.name, runs) != runs:
        said.append(f"the demo runs {demo[flag.name]}")
    text = flag.help + (f" [{'; '.join(said)}]" if said else "")
    return _place(f"--{flag.name} {takes}{' ...' if flag.many else ''}", text)


def _place(left: str, text: str) -> list[str]:
    """Two columns; a long left part has a line of its own."""
    width = max(shutil.get_terminal_size().columns - COLUMN, 30)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    first = [f"  {left}"] if len(left) + 3 > COLUMN else []
    rest = [f"{'':{COLUMN}}{line}" for line in lines]
    return [*first, *rest] if first else [f"{'  ' + left:<{COLUMN}}{lines[0]}", *rest[1:]]
