"""Laws of text.py: repair_text equals ftfy.fix_text, so whatever skips ftfy is what ftfy leaves alone."""

import random
import unicodedata
from itertools import product

import ftfy
import pytest

from modeling.data.text import _UNTOUCHED, repair_text

# Characters that skip ftfy: one of each kind that ftfy distinguishes when it looks for wrongly decoded text, and more.
KINDS = list("aZ 5.<'\"\n\tàìîöúüßÿВГРСАявㄱ가あァー漢、「اשกअế😀")
# Text that ftfy repairs.
BROKEN = ["donâ€™t", "Ã©", "рџ", "ÃƒÂ©", "à²", "Â ", "×²", "°", "É", "€", "œ", "Ўў", "…", "–", "“x”", "’", "&amp;"]
BROKEN += ["&lt;b&gt;", "ﬁ", "ﾊﾝ", "！", "e\u0301", "\u212b", "\u1112\u1161\u11ab", "\r\n", "\r", "\u3000", "\u2028"]
BROKEN += ["\x85", "\x1b[31m", "\x00", "\ufeff"]


@pytest.fixture(scope="module")
def skipped():
    """Returns every character of the texts that never reach ftfy."""
    return [char for char in map(chr, range(0x110000)) if _UNTOUCHED.fullmatch(char) and repair_text(char) == char]


def test_every_character_that_skips_ftfy_is_one_it_leaves_alone(skipped):
    skipped = [char for char in skipped if unicodedata.is_normalized("NFC", char)]
    assert len(skipped) > 40_000
    assert [char for char in skipped if ftfy.fix_text(char) != char] == []


def test_no_three_kinds_together_look_broken_to_ftfy():
    assert all(_UNTOUCHED.fullmatch(kind) for kind in KINDS)
    assert [text for text in map("".join, product(KINDS, repeat=3)) if ftfy.is_bad(text)] == []


def test_mixtures_of_characters_that_skip_ftfy_come_out_as_ftfy_leaves_them(skipped):
    """One alphabet is all such characters; the others are the few kinds that ftfy distinguishes."""
    rng = random.Random(0)
    for number in range(4000):
        text = "".join(rng.choices(rng.choice([skipped, KINDS, KINDS[:30]]), k=rng.randint(1, 60)))
        assert _UNTOUCHED.fullmatch(text), number
        assert repair_text(text) == ftfy.fix_text(text)


def test_repairing_line_by_line_equals_repairing_the_whole_text():
    """From the first "<" on, ftfy leaves HTML entities alone in all later lines."""
    rng = random.Random(1)
    for _ in range(4000):
        text = "".join(rng.choices([*BROKEN, *KINDS, "\n", "\n", "plain "], k=rng.randint(1, 25)))
        assert repair_text(text) == ftfy.fix_text(text)


def test_a_line_longer_than_ftfy_takes_at_once():
    long = "&amp;é " * 200_000  # 1.4 million characters: ftfy splits after the first million
    for text in (long + "<&amp;", "<" + long, long + "\n<\n&amp;"):
        assert repair_text(text) == ftfy.fix_text(text)
