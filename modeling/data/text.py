"""Repairs broken Unicode and recognises blank text. Knows single texts only: no battles, no files.

The repair is ftfy's `fix_text`, which is called only for lines that it might change.
"""

import re
import unicodedata

import ftfy

SURROGATE = re.compile("[\ud800-\udfff]")

# Characters that ftfy leaves alone in any mixture, but for its last step, NFC. tests/data/test_text.py tries them all.
# "&", control characters, curly quotes and full-width forms are not here. Of the characters that appear in wrongly
# decoded text (é€, Ã), only those are here that never look broken together: small Latin-1 and Russian letters, but no
# accented capital, currency sign or box.
UNTOUCHED = (
    "\t\n -%'-~"
    "ß-öø-ÿА-Яа-я"
    "\u0531-\u1fff"  # from Armenian, Hebrew, Arabic and Indic scripts to Vietnamese
    "\u3001-\u318e\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"  # CJK punctuation, kana, jamo, ideographs, Hangul
    "\U0001f300-\U0001faff"
)
_UNTOUCHED = re.compile(f"[{UNTOUCHED}]*")

# Invisible characters that ftfy leaves in: soft hyphen, joiners, direction marks, Hangul fillers, variation selectors,
# the empty braille cell. White space is not here, nor are tag characters, which tell flag emoji apart.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0"
)
_BLANK = re.compile(rf"[\s{INVISIBLE}]*")


def is_blank(text: str) -> bool:
    """Returns whether a text has only white space and invisible characters."""
    return bool(_BLANK.fullmatch(text))


def has_surrogates(text: str) -> bool:
    """Returns whether a text has surrogate code points, which JSON allows but UTF-8 cannot encode."""
    return not text.isascii() and bool(SURROGATE.search(text))


def replace_surrogates(text: str) -> str:
    """Returns the text with each surrogate pair joined to its character and each lone surrogate as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def replace_nested_surrogates(value: object) -> object:
    """Returns a value with every text in it, at any depth of lists and dicts, without surrogates."""
    match value:
        case str():
            return replace_surrogates(value) if has_surrogates(value) else value
        case list():
            return [replace_nested_surrogates(part) for part in value]
        case dict():
            return {replace_nested_surrogates(key): replace_nested_surrogates(part) for key, part in value.items()}
    return value


def repair_text(text: str) -> str:
    """Returns `ftfy.fix_text(text)`, in a fraction of its time for text that is mostly sound."""
    if _is_sound(text):
        return text
    # ftfy mends each line by itself, so sound lines can be skipped. One state is carried from line to line: after the
    # first "<", ftfy takes the text for HTML and leaves entities alone.
    lines, unescape_html = [], "auto"
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        lines.append(line if _is_sound(line) else ftfy.fix_text(line, unescape_html=unescape_html))
        if "<" in line:
            unescape_html = False
    return "".join(lines)


def _is_sound(text: str) -> bool:
    """Returns whether ftfy certainly leaves a text as it is."""
    return bool(_UNTOUCHED.fullmatch(text)) and unicodedata.is_normalized("NFC", text)
