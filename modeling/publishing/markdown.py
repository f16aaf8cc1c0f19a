"""Values as markdown that shows them and nothing else. Knows no facts.

Names that come out of files (sources, languages, settings) are data: none of them may end a table's cell, open a tag,
become a link, or name a folder of the machine it comes from.
"""

import re
from collections.abc import Iterator, Mapping

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

LONGEST_TEXT = 300  # characters of a name or setting; the rest stands in the file it comes from
MOST_NAMES = 6  # of a count, such as languages, that one cell lists
# Entities, not backslashes: they hold in tables and in HTML too, and no renderer takes one for a mark. An underscore
# between letters and a colon without slashes are harmless, and are left to be read.
MARKS = re.compile(r"[\\`*{}\[\]<>|~$@^&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.", re.IGNORECASE)
FOLDERS = re.compile(r"""(?<![\w:./\\})-])(?:file:/*|~\w*/|/|[A-Za-z]:[/\\])(?:[^\s'"/\\]+[/\\])*(?=[^\s'"/\\])""")
TOKENS = re.compile(r"\bhf_\w{8,}|(?<=token )\S+|(?<=token=)\S+")


def escape_text(value: object) -> Markup:
    """Text that shows as it is, on one line; a missing fact is "not recorded", and markup stays what it is."""
    if isinstance(value, Markup):
        return value
    text = "not recorded" if value is None else str(value)
    text = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Markup(MARKS.sub(lambda match: f"&#{ord(match[0])};", text))


def conceal(text: str) -> str:
    """A setting without what is the trainer's own: folders that an absolute path goes through, and tokens."""
    return TOKENS.sub("(removed)", FOLDERS.sub("", text))


def fence(code: str, language: str = "") -> Markup:
    """A code block that its own text cannot end."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return Markup(f"{ticks}{language}\n{code.strip()}\n{ticks}")


def format_estimate(estimate: Mapping | None) -> Markup:
    """A figure with the ends of its interval; a ValueError if they are no numbers."""
    if estimate is None or estimate["value"] is None:
        return Markup("not measured")
    ends = [estimate["low"], estimate["high"]]
    interval = "no interval" if None in ends else f"{ends[0]:.3f}, {ends[1]:.3f}"
    return Markup(f"{estimate['value']:.3f} [{interval}]")


def format_duration(seconds: float | None) -> str | None:
    """Hours and minutes, or seconds of what took less than two minutes."""
    if seconds is None:
        return None
    hours, minutes = divmod(round(seconds / 60), 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def format_counts(counts: Mapping[str, int] | None) -> str | None:
    """Names with their counts, most first; those beyond the first few as a number."""
    if not counts:
        return None
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = f" and {len(ordered) - MOST_NAMES} more" if len(ordered) > MOST_NAMES else ""
    return ", ".join(f"{name} {count}" for name, count in ordered[:MOST_NAMES]) + rest


def flatten_settings(values: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted names, in their order, as text; tokens are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten_settings(value, f"{prefix}{name}.")
        elif not name.endswith("token"):
            items = value if isinstance(value, list) else [value]
            yield f"{prefix}{name}", ", ".join(conceal(_format_setting(item)) for item in items)


def _format_setting(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def render(template: str, **values) -> str:
    """A Jinja2 template in which whatever is printed goes through `escape_text`."""
    # autoescape makes macros return Markup, which is not escaped again; it finds nothing else left to do.
    environment = Environment(
        autoescape=True, finalize=escape_text, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"estimate": format_estimate, "duration": format_duration, "counts": format_counts}
    return environment.from_string(template).render(**values).rstrip() + "\n"
