"""Texts that are equal or nearly so, found by MinHash LSH (rensa). Knows texts and nothing else: no battles, no files.

LSH proposes pairs, their sketches rank them, and the exact Jaccard similarity of their shingle sets decides, so chance
can miss a pair (about one in 1,400 of those just at the default threshold) but never makes one up.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import nlargest

from rensa import RMinHash, RMinHashLSH

from modeling.data.text import INVISIBLE, repair_text

# Of real prompts in four languages with every tenth word or the last tenth replaced, 98% stay above this; what lies
# below it are prompts that share an instruction around different tasks.
DEFAULT_THRESHOLD = 0.55
SHINGLE_LENGTH = 5
# A syllable or ideograph says as much as about three letters; counted as one, a changed Chinese word of two would
# break three times as many shingles as an English one.
FIRST_WIDE_CHARACTER, WIDE_CHARACTER_LENGTH = "\u2e80", 3
MIN_SHINGLES = 30  # "What is 2+2?" and "What is 2+3?" differ in one: texts below 34 letters (7 words) must be equal
BANDS, ROWS = 40, 3  # a pair of similarity s is proposed with probability 1 - (1 - s^3)^40: 0.9993 at 0.55
MOST_CANDIDATES = 64  # compared for one text, the likest first: thousands of one template all propose each other
TEXTS_PER_BATCH = 256
WIDE = re.compile(f"([{FIRST_WIDE_CHARACTER}-\U0010ffff])")

# Of scripts that put no spaces between words (Thai to Myanmar, Khmer, kana and Han) any space is decoration.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
DECORATIVE_SPACE = re.compile(f"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])")
SENTENCE_ENDS = " .!?。؟।"
UNSEEN = re.compile(f"[{INVISIBLE}]")
# Of a conversation that was joined into one text and normalised: what its user said first.
FIRST_TURN = re.compile(r"(?:\[system\].*?)?\[(?:turn 1|user)\] ?(.+?) ?\[(?:turn 2|assistant)\]")


def normalize_text(text: str) -> str:
    """The text without what does not change a task: broken and invisible characters, case, white space, the last mark.

    Other punctuation stays ("C#" is not "C"). It is mended as it will be before a model reads it. White space becomes
    one space, and none next to a character of a script that is written without spaces.

    Args:
        text: Any text.

    Returns:
        A text that is equal for equal tasks; never empty unless the text is blank.
    """
    # Twice: the casefold of a normal form need not be one.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", repair_text(text)).casefold())
    text = text if text.isascii() else UNSEEN.sub("", text)
    text = DECORATIVE_SPACE.sub("", " ".join(text.split()))
    return text.rstrip(SENTENCE_ENDS) or text


def _normalize_texts(texts: Sequence[str]) -> list[list[str]]:
    """What each text is known by: itself, normalised, and of a conversation also the first turn.

    A first turn too short to have near-duplicates, a greeting mostly, would join what has nothing else in common.
    """
    known: dict[str, list[str]] = {}
    for text in texts:
        if text not in known:  # texts repeat, and mending them takes longest
            whole = normalize_text(text)
            known[text] = [whole, *(turn for turn in _find_first_turn(whole) if turn != whole)]
    return [known[text] for text in texts]


def _find_first_turn(text: str) -> list[str]:
    """The first turn of a normalised conversation, or nothing."""
    if not text.startswith("[") or not (found := FIRST_TURN.match(text)):
        return []
    turn = found[1].rstrip(SENTENCE_ENDS)
    return [turn] if len(_build_shingles(turn)) >= MIN_SHINGLES else []


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
        self._sketches: dict[int, RMinHash] = {}  # by place in `_texts`

    def add(self, texts: Sequence[str]) -> None:
        """Adds texts; they are numbered on from those already there.

        Args:
            texts: Any texts; equal ones cost next to nothing.
        """
        first = len(self._texts)
        for names in _normalize_texts(texts):
            for name in names:
                if name not in self._numbers:
                    self._texts.append(name)
                self._numbers.setdefault(name, []).append(self._num_texts)
            self._num_texts += 1
        for place, sketch in _sketch(self._texts, range(first, len(self._texts))):
            self._lsh.insert(place, sketch)
            self._sketches[place] = sketch

    def __contains__(self, text: str) -> bool:
        """Whether an equal text was added, as equal as `normalize_text` says, or a conversation that begins so."""
        (names,) = _normalize_texts([text])
        return any(name in self._numbers for name in names)

    def find(self, texts: Sequence[str]) -> list[list[int]]:
        """Duplicates of each text among those added.

        Args:
            texts: Any texts, added or not. A conversation of several turns is looked for as a whole and by its first
                turn, and found by either.

        Returns:
            For each text the numbers of its duplicates, ascending: all that are equal after `normalize_text`, and the
            near-duplicates. Of very many near-duplicates of one text (`MOST_CANDIDATES`) some may be left out.
        """
        normalized = _normalize_texts(texts)
        asked = list(dict.fromkeys(name for names in normalized for name in names))
        found = {text: set(self._numbers.get(text, ())) for text in asked}
        for query, sketch in _sketch(asked, range(len(asked))):
            for place in _rank_candidates(self._lsh, self._sketches, sketch):
                if compute_similarity(asked[query], self._texts[place]) >= self.threshold:
                    found[asked[query]].update(self._numbers[self._texts[place]])
        return [sorted(set().union(*(found[name] for name in names))) for names in normalized]


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
    normalized = _normalize_texts(texts)
    unique = sorted({name for names in normalized for name in names})
    leader = list(range(len(unique)))

    def find_leader(place: int) -> int:
        """The text that stands for a text's group so far."""
        while leader[place] != place:
            leader[place] = place = leader[leader[place]]
        return place

    def join(place: int, other: int) -> None:
        """Puts two texts' groups together."""
        mine, theirs = find_leader(place), find_leader(other)
        leader[max(mine, theirs)] = min(mine, theirs)

    for place, other in _propose_pairs(unique, threshold):
        # What is joined already needs no comparison.
        known = find_leader(place) == find_leader(other)
        if not known and compute_similarity(unique[place], unique[other]) >= threshold:
            join(place, other)
    places = {text: place for place, text in enumerate(unique)}
    for names in normalized:
        for turn in names[1:]:
            join(places[names[0]], places[turn])
    leaders = [find_leader(places[whole]) for whole, *_ in normalized]
    number = {leader: number for number, leader in enumerate(sorted(set(leaders)))}
    return [number[leader] for leader in leaders]


def _propose_pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int]]:
    """Places of texts that may be near-duplicates, each with the likest of those before it."""
    lsh, sketches = _build_lsh(threshold), {}
    for place, sketch in _sketch(texts, range(len(texts))):
        for other in _rank_candidates(lsh, sketches, sketch):
            yield place, other
        lsh.insert(place, sketch)
        sketches[place] = sketch


def _rank_candidates(lsh: RMinHashLSH, sketches: Mapping[int, RMinHash], sketch: RMinHash) -> list[int]:
    """Places of the texts most like that of a sketch, of those that the table proposes, the likest first."""
    proposed = lsh.query(sketch)
    if len(proposed) <= MOST_CANDIDATES:
        return proposed
    likeness = map(sketch.jaccard, map(sketches.__getitem__, proposed))
    # Of two that are as like the later one, so that chance has no part in it.
    return [place for _, place in nlargest(MOST_CANDIDATES, zip(likeness, proposed, strict=True))]


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
