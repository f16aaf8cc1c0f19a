"""Finds duplicate and near-duplicate texts by MinHash LSH (rensa). Knows texts only: no battles, no files.

LSH proposes pairs, their sketches rank them, and the exact Jaccard similarity of their shingle sets decides. So chance
can miss a pair (about one in 1,400 of those exactly at the default threshold), but never reports a wrong one.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import nlargest

from rensa import RMinHash, RMinHashLSH
from scipy.cluster.hierarchy import DisjointSet

from modeling.data.text import INVISIBLE, repair_text

# Measured on prompts in four languages with every tenth word, or the last tenth, replaced: 98% of the pairs are above
# it. Pairs below it mostly share an instruction around different tasks.
DEFAULT_THRESHOLD = 0.55
SHINGLE_LENGTH = 5
# A syllable or ideograph carries about as much as three letters. Counted as one, a changed Chinese word of two
# characters would break a far larger share of the shingles than a changed English word.
FIRST_WIDE_CHARACTER, WIDE_CHARACTER_LENGTH = "\u2e80", 3
# "What is 2+2?" and "What is 2+3?" differ in one character. Texts below 34 letters (about 7 words) must be equal.
MIN_SHINGLES = 30
BANDS, ROWS = 40, 3  # a pair of similarity s is proposed with probability 1 - (1 - s^3)^40: 0.9993 at 0.55
MOST_CANDIDATES = 64  # compared for one text, most similar first: thousands of one template all propose each other
TEXTS_PER_BATCH = 256  # sketched at once
WIDE = re.compile(f"([{FIRST_WIDE_CHARACTER}-\U0010ffff])")

# Scripts without spaces between words: Thai to Myanmar, Khmer, kana and Han. A space next to them means nothing.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
DECORATIVE_SPACE = re.compile(f"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])")
SENTENCE_ENDS = " .!?。؟।"
UNSEEN = re.compile(f"[{INVISIBLE}]")
# The user's first message, in a normalised text that `schemas.join_turns` or `schemas.join_messages` built.
FIRST_TURN = re.compile(r"(?:\[system\].*?)?\[(?:turn 1|user)\] ?(.+?) ?\[(?:turn 2|assistant)\]")


def normalize_text(text: str) -> str:
    """Returns the text without differences that do not change a task, so that equal tasks have equal texts.

    It repairs broken characters as the encoder does, folds case and width, and drops invisible characters and the
    punctuation at the end. Other punctuation stays ("C#" is not "C"). White space becomes one space, or none next to a
    character of a script that is written without spaces. Only a blank text becomes empty.
    """
    # NFKC twice, because case folding can undo the normal form.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", repair_text(text)).casefold())
    text = text if text.isascii() else UNSEEN.sub("", text)
    text = DECORATIVE_SPACE.sub("", " ".join(text.split()))
    return text.rstrip(SENTENCE_ENDS) or text


def _normalize_texts(texts: Sequence[str]) -> list[list[str]]:
    """Returns the keys of each text: the normalised text and, for a conversation, its first turn."""
    keys: dict[str, list[str]] = {}
    for text in texts:
        if text not in keys:  # texts repeat, and repairing them is the slowest step
            whole = normalize_text(text)
            keys[text] = [whole, *(turn for turn in _find_first_turn(whole) if turn != whole)]
    return [keys[text] for text in texts]


def _find_first_turn(text: str) -> list[str]:
    """Returns the first turn of a normalised conversation as a list of one, or no turn."""
    if not text.startswith("[") or not (found := FIRST_TURN.match(text)):
        return []
    turn = found[1].rstrip(SENTENCE_ENDS)
    # A short first turn is mostly a greeting. It would join conversations that have nothing else in common.
    return [turn] if len(_build_shingles(turn)) >= MIN_SHINGLES else []


class DuplicateIndex:
    """An index of texts that finds the duplicates of other texts.

    Args:
        threshold: Lowest Jaccard similarity of two near-duplicates' shingle sets, in (0, 1].

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
        self._numbers: dict[str, list[int]] = {}  # by key: the numbers of the texts that have it, in order of adding
        self._keys: list[str] = []  # the keys of `_numbers`
        self._sketches: dict[int, RMinHash] = {}  # by place in `_keys`

    def add(self, texts: Sequence[str]) -> None:
        """Adds texts, which continue the numbering of those already there. Equal texts cost next to nothing."""
        first = len(self._keys)
        for keys in _normalize_texts(texts):
            for key in keys:
                if key not in self._numbers:
                    self._keys.append(key)
                self._numbers.setdefault(key, []).append(self._num_texts)
            self._num_texts += 1
        for place, sketch in _sketch(self._keys, range(first, len(self._keys))):
            self._lsh.insert(place, sketch)
            self._sketches[place] = sketch

    def __contains__(self, text: str) -> bool:
        """Returns whether a text was added that is equal after `normalize_text`, as a whole or in its first turn."""
        (keys,) = _normalize_texts([text])
        return any(key in self._numbers for key in keys)

    def find(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the duplicates of each text among those added.

        Args:
            texts: Any texts, added or not. A conversation is looked up both as a whole and by its first turn.

        Returns:
            For each text the numbers of its duplicates, ascending: every text that is equal after `normalize_text`, and
            its near-duplicates. If LSH proposes more than `MOST_CANDIDATES`, some may be missing.
        """
        normalized = _normalize_texts(texts)
        queries = list(dict.fromkeys(key for keys in normalized for key in keys))
        found = {query: set(self._numbers.get(query, ())) for query in queries}
        for number, sketch in _sketch(queries, range(len(queries))):
            query = queries[number]
            for place in _rank_candidates(self._lsh, self._sketches, sketch):
                if compute_similarity(query, self._keys[place]) >= self.threshold:
                    found[query].update(self._numbers[self._keys[place]])
        return [sorted(set().union(*(found[key] for key in keys))) for keys in normalized]


def group_texts(texts: Sequence[str], threshold: float = DEFAULT_THRESHOLD) -> list[int]:
    """Returns the group number of each text. Duplicates share a group, also if they are linked only through others.

    Args:
        texts: Any texts.
        threshold: As in `DuplicateIndex`.

    Returns:
        Numbers from 0, in the order of each group's smallest normalised text, whatever the order of the texts.

    Raises:
        ValueError: If the threshold is out of range.
    """
    normalized = _normalize_texts(texts)
    unique = sorted({key for keys in normalized for key in keys})
    # Not `connected_components`, which needs all edges first. Pairs that are already linked need no comparison: for
    # 3,000 prompts from one template this leaves 2,999 comparisons of 189,920.
    groups = DisjointSet(unique)
    for text, other in _propose_pairs(unique, threshold):
        if not groups.connected(text, other) and compute_similarity(text, other) >= threshold:
            groups.merge(text, other)
    for whole, *first_turn in normalized:
        for turn in first_turn:
            groups.merge(whole, turn)
    numbers: dict[str, int] = {}  # of each group, by its root
    for text in unique:
        numbers.setdefault(groups[text], len(numbers))
    return [numbers[groups[whole]] for whole, *_ in normalized]


def _propose_pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[str, str]]:
    """Yields pairs of texts that may be near-duplicates: each text with the most similar of those before it."""
    lsh, sketches = _build_lsh(threshold), {}
    for place, sketch in _sketch(texts, range(len(texts))):
        for other in _rank_candidates(lsh, sketches, sketch):
            yield texts[place], texts[other]
        lsh.insert(place, sketch)
        sketches[place] = sketch


def _rank_candidates(lsh: RMinHashLSH, sketches: Mapping[int, RMinHash], sketch: RMinHash) -> list[int]:
    """Returns the places of the texts that LSH proposes for a sketch, or the most similar of them if there are many."""
    proposed = lsh.query(sketch)
    if len(proposed) <= MOST_CANDIDATES:
        return proposed
    similarities = map(sketch.jaccard, map(sketches.__getitem__, proposed))
    # Equal similarities are ordered by place, so that the result does not depend on the order of LSH's answer.
    return [place for _, place in nlargest(MOST_CANDIDATES, zip(similarities, proposed, strict=True))]


def _build_lsh(threshold: float) -> RMinHashLSH:
    """Returns an empty LSH table."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a similarity in (0, 1]; found {threshold}. Use {DEFAULT_THRESHOLD}.")
    return RMinHashLSH(threshold, BANDS * ROWS, BANDS)


def compute_similarity(text: str, other: str) -> float:
    """Returns the Jaccard similarity of the shingle sets of two normalised texts, from 0 to 1."""
    first, second = _build_shingles(text), _build_shingles(other)
    common = len(first & second)
    return common / (len(first) + len(second) - common)


@lru_cache(maxsize=1024)
def _build_shingles(text: str) -> frozenset[str]:
    """Returns all substrings of SHINGLE_LENGTH characters, after repeating wide characters."""
    text = WIDE.sub(r"\1" * WIDE_CHARACTER_LENGTH, text)
    return frozenset(text[start : start + SHINGLE_LENGTH] for start in range(len(text) - SHINGLE_LENGTH + 1))


def _sketch(texts: Sequence[str], places: range) -> Iterator[tuple[int, RMinHash]]:
    """Yields (place, MinHash) of the texts at these places that are long enough to have near-duplicates."""
    for start in range(places.start, places.stop, TEXTS_PER_BATCH):
        batch = range(start, min(start + TEXTS_PER_BATCH, places.stop))
        shingles = {place: list(_build_shingles(texts[place])) for place in batch}
        long = {place: tokens for place, tokens in shingles.items() if len(tokens) >= MIN_SHINGLES}
        sketches = RMinHash.from_token_sets(list(long.values()), BANDS * ROWS, 0)  # 0: the seed
        yield from zip(long, sketches, strict=True)
