"""Mends broken Unicode as ftfy.fix_text does, calling it only for the lines that it may change; knows what is blank."""

import re
import unicodedata

import ftfy

# What no step of ftfy but its last, NFC, changes in any mixture; tests/test_cleaning.py tries them. No "&", control
# characters, curly quotes, full-width forms; and of the letters that wrongly decoded text is made of (é€, Ã) only those
# that are harmless among themselves: small Latin-1 and Russian ones, no accented capital, currency sign or box.
UNTOUCHED = (
    "\t\n -%'-~"
    "ß-öø-ÿА-Яа-я"
    "\u0531-\u1fff"  # from Armenian, Hebrew, Arabic and Indic scripts to Vietnamese
    "\u3001-\u318e\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"  # their punctuation, kana, jamo, ideographs, Hangul
    "\U0001f300-\U0001faff"
)
_UNTOUCHED = re.compile(f"[{UNTOUCHED}]*")

# Characters that nobody sees, which ftfy leaves: soft hyphen, joiners, marks of direction, Hangul fillers, variation
# selectors, the braille cell without dots. White space is not among them, nor are tags, which tell flags apart.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0"
)
_BLANK = re.compile(rf"[\s{INVISIBLE}]*")


def is_blank(text: str) -> bool:
    """Whether there is nothing to read in a text: white space and invisible characters alone."""
    return bool(_BLANK.fullmatch(text))


def repair_text(text: str) -> str:
    """The same as `ftfy.fix_text(text)`, which mends each line by itself, in a fraction of its time."""
    if _is_sound(text):
        return text
    lines, unescape_html = [], "auto"
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        lines.append(line if _is_sound(line) else ftfy.fix_text(line, unescape_html=unescape_html))
        if "<" in line:
            unescape_html = False  # the one thing that ftfy carries from line to line
    return "".join(lines)


def _is_sound(text: str) -> bool:
    """Whether ftfy certainly changes nothing."""
    return bool(_UNTOUCHED.fullmatch(text)) and unicodedata.is_normalized("NFC", text)
