"""Texts that are equal or nearly so, found by MinHash LSH (rensa). Knows texts and nothing else: no battles, no files.

LSH proposes pairs and the exact Jaccard similarity of their shingle sets decides, so chance can miss a pair (about one
in 1,400 of those just at the default threshold) but never makes one up.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from heapq import nlargest

from rensa import RMinHash, RMinHashLSH

# Of real prompts in four languages with every tenth word or the last tenth replaced, 98% stay above this; what lies
# below it are prompts that share an instruction around different tasks.
DEFAULT_THRESHOLD = 0.55
SHINGLE_LENGTH = 5
# A syllable or ideograph says as much as about three letters; counted as one, a changed Chinese word of two would
# break three times as many shingles as an English one.
FIRST_WIDE_CHARACTER, WIDE_CHARACTER_LENGTH = "\u2e80", 3
MIN_SHINGLES = 30  # "What is 2+2?" and "What is 2+3?" differ in one: texts below 34 letters (7 words) must be equal
BANDS, ROWS = 40, 3  # a pair of similarity s is proposed with probability 1 - (1 - s^3)^40: 0.9993 at 0.55
MOST_CANDIDATES = 64  # compared for one text: thousands made from one template all propose each other
TEXTS_PER_BATCH = 256
WIDE = re.compile(f"([{FIRST_WIDE_CHARACTER}-\U0010ffff])")

# Of scripts that put no spaces between words (Thai to Myanmar, Khmer, kana and Han) any space is decoration.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
DECORATIVE_SPACE = re.compile(f"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])")
SENTENCE_ENDS = " .!?。؟।"


def normalize_text(text: str) -> str:
    """The text without what does not change a task: Unicode form, case, white space and the mark at the end.

    Other punctuation stays ("C#" is not "C"). White space becomes one space, and none next to a character of a script
    that is written without spaces.

    Args:
        text: Any text.

    Returns:
        A text that is equal for equal tasks; never empty unless the text is blank.
    """
    # Twice: the casefold of a normal form need not be one.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = DECORATIVE_SPACE.sub("", " ".join(text.split()))
    return text.rstrip(SENTENCE_ENDS) or text


class DuplicateIndex:
    """Texts that can be asked for the duplicates of other texts.

    Args:
        threshold: Jaccard similarity of the shingle sets from which texts are near-duplicates, in (0, 1].

    Raises:
        ValueError: If the threshold is out of range.

    Example:
        >>> index = DuplicateIndex()
        >>> index.add(["Hello", "hi"])
        >>> index.find(["HELLO!"])
        [[0]]
    """

    def __init__(self, threshold: float = DEFAULT_THRESHOLD):
        self._lsh, self.threshold = _build_lsh(threshold), threshold
        self._num_texts = 0
        self._numbers: dict[str, list[int]] = {}  # of each normalised text, in order of adding
        self._texts: list[str] = []  # the keys above

    def add(self, texts: Sequence[str]) -> None:
        """Adds texts; they are numbered on from those already there.

        Args:
            texts: Any texts; equal ones cost next to nothing.
        """
        first = len(self._texts)
        for text in map(normalize_text, texts):
            if text not in self._numbers:
                self._texts.append(text)
            self._numbers.setdefault(text, []).append(self._num_texts)
            self._num_texts += 1
        for place, sketch in _sketch(self._texts, range(first, len(self._texts))):
            self._lsh.insert(place, sketch)

    def __contains__(self, text: str) -> bool:
        """Whether an equal text was added, as equal as `normalize_text` says."""
        return normalize_text(text) in self._numbers

    def find(self, texts: Sequence[str]) -> list[list[int]]:
        """Duplicates of each text among those added.

        Args:
            texts: Any texts, added or not.

        Returns:
            For each text the numbers of its duplicates, ascending: all that are equal after `normalize_text`, and the
            near-duplicates. Of very many near-duplicates of one text (`MOST_CANDIDATES`) some may be left out.
        """
        normalized = [normalize_text(text) for text in texts]
        asked = list(dict.fromkeys(normalized))
        found = {text: set(self._numbers.get(text, ())) for text in asked}
        for query, sketch in _sketch(asked, range(len(asked))):
            for place in nlargest(MOST_CANDIDATES, self._lsh.query(sketch)):
                if compute_similarity(asked[query], self._texts[place]) >= self.threshold:
                    found[asked[query]].update(self._numbers[self._texts[place]])
        return [sorted(found[text]) for text in normalized]


def group_texts(texts: Sequence[str], threshold: float = DEFAULT_THRESHOLD) -> list[int]:
    """Number of each text's group; texts that are duplicates, also by way of others, share one.

    Args:
        texts: Any texts.
        threshold: As in `DuplicateIndex`.

    Returns:
        Group numbers from 0, in the order of each group's smallest normalised text. The order of the texts changes
        nothing.

    Raises:
        ValueError: If the threshold is out of range.
    """
    normalized = [normalize_text(text) for text in texts]
    unique = sorted(set(normalized))
    lsh, leader = _build_lsh(threshold), list(range(len(unique)))

    def find_leader(place: int) -> int:
        """The text that stands for a text's group so far."""
        while leader[place] != place:
            leader[place] = place = leader[leader[place]]
        return place

    for place, sketch in _sketch(unique, range(len(unique))):
        for other in nlargest(MOST_CANDIDATES, lsh.query(sketch)):
            mine, theirs = find_leader(place), find_leader(other)
            # What is joined already needs no comparison.
            if mine != theirs and compute_similarity(unique[place], unique[other]) >= threshold:
                leader[max(mine, theirs)] = min(mine, theirs)
        lsh.insert(place, sketch)
    leaders = [find_leader(place) for place in range(len(unique))]
    number = {leader: number for number, leader in enumerate(sorted(set(leaders)))}
    group = {text: number[leader] for text, leader in zip(unique, leaders, strict=True)}
    return [group[text] for text in normalized]


def _build_lsh(threshold: float) -> RMinHashLSH:
    """An empty table of sketches."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a similarity in (0, 1]; found {threshold}. Use {DEFAULT_THRESHOLD}.")
    return RMinHashLSH(threshold, BANDS * ROWS, BANDS)


def compute_similarity(text: str, other: str) -> float:
    """Jaccard similarity of the shingle sets of two normalised texts, from 0 to 1."""
    mine, theirs = _build_shingles(text), _build_shingles(other)
    common = len(mine & theirs)
    return common / (len(mine) + len(theirs) - common)


@lru_cache(maxsize=1024)
def _build_shingles(text: str) -> frozenset[str]:
    """All runs of SHINGLE_LENGTH characters."""
    text = WIDE.sub(r"\1" * WIDE_CHARACTER_LENGTH, text)
    return frozenset(text[start : start + SHINGLE_LENGTH] for start in range(len(text) - SHINGLE_LENGTH + 1))


def _sketch(texts: Sequence[str], places: range) -> Iterator[tuple[int, RMinHash]]:
    """(place, MinHash) of the texts at these places that are long enough to have near-duplicates."""
    for start in range(places.start, places.stop, TEXTS_PER_BATCH):
        batch = range(start, min(start + TEXTS_PER_BATCH, places.stop))
        sets = {place: list(_build_shingles(texts[place])) for place in batch}
        long = [place for place, shingles in sets.items() if len(shingles) >= MIN_SHINGLES]
        sketches = RMinHash.from_token_sets([sets[place] for place in long], BANDS * ROWS, 0)
        yield from zip(long, sketches, strict=True)
