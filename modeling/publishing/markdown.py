"""Formats values as Markdown and keeps text literal. Knows no facts.

Names from files (sources, languages, settings) are untrusted: none of them may end a table cell, open a tag, become a
link, or reveal a folder of the machine it comes from.
"""

import re
from collections.abc import Iterator, Mapping

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

LONGEST_TEXT = 300  # characters of a name or setting; member.json has the whole text
MOST_NAMES = 6  # names that one cell lists, such as languages
# Replaced by HTML entities, not backslashes: those fail in tables and in HTML, and markupsafe escapes HTML only.
# An underscore between letters and a colon without slashes are harmless and stay readable.
MARKS = re.compile(r"[\\`*{}\[\]<>|~$@^&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.", re.IGNORECASE)
# The folders of an absolute path (POSIX, ~, Windows or file:), up to its last part. Relative paths and URLs stay.
FOLDERS = re.compile(r"""(?<![\w:./\\})-])(?:file:/*|~\w*/|/|[A-Za-z]:[/\\])(?:[^\s'"/\\]+[/\\])*(?=[^\s'"/\\])""")
# A Hub token anywhere, and what follows a flag that ends in "token".
TOKENS = re.compile(r"\bhf_\w{8,}|(?<=token )\S+|(?<=token=)\S+")


def escape_text(value: object) -> Markup:
    """Returns text that renders literally on one line. None becomes "not recorded"; `Markup` is returned unchanged."""
    if isinstance(value, Markup):
        return value
    text = "not recorded" if value is None else str(value)
    text = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
    # Control and direction characters, line ends and lone surrogates become visible escapes.
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Markup(MARKS.sub(lambda match: f"&#{ord(match[0])};", text))


def remove_secrets(text: str) -> str:
    """Removes the folders of absolute paths, and tokens, from a setting."""
    return TOKENS.sub("(removed)", FOLDERS.sub("", text))


def fence(code: str, language: str = "") -> Markup:
    """Returns a code block whose fence is longer than any run of backticks in the code."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return Markup(f"{ticks}{language}\n{code.strip()}\n{ticks}")


def format_estimate(estimate: Mapping | None) -> Markup:
    """Returns an estimate with its interval, such as "0.634 [0.584, 0.679]".

    Raises:
        ValueError: If a value is not a number.
    """
    if estimate is None or estimate["value"] is None:
        return Markup("not measured")
    ends = [estimate["low"], estimate["high"]]
    interval = "no interval" if None in ends else f"{ends[0]:.3f}, {ends[1]:.3f}"
    return Markup(f"{estimate['value']:.3f} [{interval}]")


def format_duration(seconds: float | None) -> str | None:
    """Returns hours and minutes, or seconds below two minutes."""
    if seconds is None:
        return None
    hours, minutes = divmod(round(seconds / 60), 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def format_counts(counts: Mapping[str, int] | None) -> str | None:
    """Returns names with their counts, largest first, and the number of names beyond the first few."""
    if not counts:
        return None
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = f" and {len(ordered) - MOST_NAMES} more" if len(ordered) > MOST_NAMES else ""
    return ", ".join(f"{name} {count}" for name, count in ordered[:MOST_NAMES]) + rest


def flatten_settings(values: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields nested settings as dotted names and text, in their order, without tokens."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten_settings(value, f"{prefix}{name}.")
        elif not name.endswith("token"):
            items = value if isinstance(value, list) else [value]
            yield f"{prefix}{name}", ", ".join(remove_secrets(_format_setting(item)) for item in items)


def _format_setting(value: object) -> str:
    """Formats a setting as a user would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def render(template: str, **values) -> str:
    """Renders a Jinja2 template; every printed value goes through `escape_text`."""
    # autoescape is on only because macros then return Markup, which finalize does not escape a second time.
    environment = Environment(
        autoescape=True, finalize=escape_text, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"estimate": format_estimate, "duration": format_duration, "counts": format_counts}
    return environment.from_string(template).render(**values).rstrip() + "\n"
