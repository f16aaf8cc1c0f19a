"""Filled templates to ids, and the tokens of each field: knows tokenizers, but neither battles nor truncation.

The ids are those of the whole string. Where the tokenizer's data prove that it may be cut (modeling/encoding/tokenizer.py), a
field is tokenised once for all templates in which it stands; otherwise every template is, whole.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

from tokenizers import Encoding as Tokens
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

# Not white space, nor what some tokenizer may take for it or for a space's stand-in: controls, U+2581 and the like.
VISIBLE = r"[^\s\x00-\x20\x7f-\xa0\u180e\u200b-\u200f\u2028-\u202f\u205f-\u206f\u2581\ufeff]"
LETTER = r"[A-Za-z0-9가-힣ぁ-ゖァ-ヺ一-龥]"
AFTER_VISIBLE = rf"(?<={VISIBLE})(?=[ \n])"
# Qwen's pre-tokens take the newlines after punctuation with them.
AFTER_LETTER = rf"(?<={VISIBLE})(?= )|(?<={LETTER})(?=\n)"
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE_TO_BAR = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def find_boundary(tokenizer: Tokenizer) -> str | None:
    """A pattern of zero width that matches only where a cut is exact; None if there is no proof for this tokenizer."""
    model = tokenizer.model
    if (
        not isinstance(model, models.BPE)
        or model.dropout
        or model.continuing_subword_prefix
        or model.end_of_word_suffix
    ):
        return None  # chance, or a spelling that depends on where a text begins and ends
    for step in _list_steps(tokenizer.post_processor, "processors"):
        if step["type"] != "TemplateProcessing" and step.get("trim_offsets", True):
            return None  # offsets without white space would count a token to another field
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None  # these look at what stands beside them
    contents = [token.content for token in added]
    normalizers = _list_steps(tokenizer.normalizer, "normalizers")
    splits = _list_steps(tokenizer.pre_tokenizer, "pretokenizers")
    if normalizers == [SPACE_TO_BAR]:
        # Nothing is left to split at, so the merges must not reach across; nor <unk>, which may fuse with another one.
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        proven = _is_uncut(splits) and not model.ignore_merges and {"▁", "\n"} <= vocabulary.keys()
        return AFTER_VISIBLE if proven and not _reaches_back([*vocabulary, *contents], " \n▁") else None
    # NFC is harmless: nothing composes with a space or a newline.
    if any(step["type"] != "NFC" for step in normalizers) or _reaches_back(contents, " \n"):
        return None
    return _find_split_boundary(splits)


def _reaches_back(entries: list[str], marks: str) -> bool:
    """Whether one of the marks stands in an entry after anything but its like."""
    entries = "\0" + "\0".join(entries)
    return any(re.search(f"{mark}(?<![{mark}\0]{mark})", entries) for mark in marks)


def _list_steps(part, name: str) -> list[dict]:
    """A normaliser's, pre-tokenizer's or post-processor's steps as plain values."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return state[name] if state["type"] == "Sequence" else [state]


def _is_uncut(splits: list[dict]) -> bool:
    """Whether a text without spaces stays in one piece."""
    return all(step["type"] == "Split" and step["pattern"] == {"String": " "} for step in splits)


def _find_split_boundary(splits: list[dict]) -> str | None:
    """The boundary of a byte-level pre-tokenizer, whose pre-tokens end before white space: GPT-2's or Qwen's."""
    *front, last = splits or [{"type": None}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        return AFTER_VISIBLE if all(step["type"] == "Digits" for step in front) else None
    qwen = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    return AFTER_LETTER if front == [qwen] else None


# --- templates to ids -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A field's tokens, with those of the marker after it; `start` and `stop` bound its own, without a lone space."""

    ids: list[int]
    start: int
    stop: int


class TemplateTokenizer:
    """Tokenises marker, field, marker, field, ... with the tokenizer's Rust part.

    Example: `next(TemplateTokenizer(tokenizer, ["Q: ", "\\n\\nA: "]).read([["Why?", "Because."]]))[0]`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markers: Sequence[str]):
        self.backend = tokenizer.backend_tokenizer
        self.markers = list(markers)
        # Without <unk>: a tokenizer without byte fallback gives it for ordinary text.
        special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = special - {tokenizer.unk_token_id}

    @cached_property
    def cut(self) -> re.Pattern | None:
        """Matches up to the last exact cut of a text; None if templates must be tokenised whole."""
        boundary = find_boundary(self.backend)
        if boundary is None or len(self.tokenize([" "])[0]) != 1:
            return None
        cut = re.compile(rf"(?s:.*)(?:{boundary})")
        # A field is tokenised with the space before it, up to the newline after it.
        opened = all((found := cut.match(marker)) and marker[found.end() :] == " " for marker in self.markers)
        return cut if opened and all(marker.startswith("\n") for marker in self.markers[1:]) else None

    @property
    def method(self) -> str:
        """What `read` does, for the log."""
        return "each text tokenised once" if self.cut else "each order tokenised whole: no cut is proven exact"

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without special tokens of ours, and with none that a text spells out: `<eos>` typed is five letters."""
        return [
            self._check(tokens.ids) for tokens in self._prepare().encode_batch_fast(texts, add_special_tokens=False)
        ]

    def read(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], Callable[[], list[slice]]]]:
        """Tokenises templates together.

        Args:
            rows: The fields of each, in the template's order.

        Returns:
            Per row its ids, and a function for the span of each field among them, which only a cut battle needs.
        """
        return self._read_fields(rows) if self.cut else self._read_whole(rows)

    def _read_whole(self, rows: Sequence[Sequence[str]]) -> Iterator:
        pieces = [[piece for pair in zip(self.markers, row, strict=True) for piece in pair] for row in rows]
        found = self._prepare().encode_batch(["".join(row) for row in pieces], add_special_tokens=False)
        for row, tokens in zip(pieces, found, strict=True):
            yield self._check(tokens.ids), partial(_find_spans, row, tokens)

    def _read_fields(self, rows: Sequence[Sequence[str]]) -> Iterator:
        parts = {text: self._split(text) for text in {text for row in rows for text in row}}
        bodies = list({body for body, _ in parts.values()})
        bodies = dict(zip(bodies, self.tokenize(bodies), strict=True))
        closings = [*(marker[:-1] for marker in self.markers[1:]), ""]
        seams = list({parts[text][1] + closing for row in rows for text, closing in zip(row, closings, strict=True)})
        seams = dict(zip(seams, self._prepare().encode_batch(seams, add_special_tokens=False), strict=True))
        (opening,), (space,) = self.tokenize([self.markers[0][:-1]]), self.tokenize([" "])
        fields = {}
        for row in rows:
            for key in zip(row, closings, strict=True):
                if key not in fields:
                    body, tail = parts[key[0]]
                    fields[key] = self._join(bodies[body], tail, seams[tail + key[1]], space)
            found = [fields[key] for key in zip(row, closings, strict=True)]
            yield list(chain(opening, *(field.ids for field in found))), partial(_place, found, len(opening))

    def _split(self, text: str) -> tuple[str, str]:
        """A field with the space before it: up to the last exact cut, mostly its end, and what the marker may touch."""
        text = f" {text}"
        found = self.cut.match(text + "\n")
        end = found.end() if found else 0
        return text[:end], text[end:]

    def _join(self, body: list[int], tail: str, seam: Tokens, space: list[int]) -> Field:
        """The tokens of a field's two parts; as everywhere, a token belongs to what it ends in."""
        ends = [end for _, end in seam.offsets]
        start = int(body[:1] == space) if body else sum(end <= 1 for end in ends)
        return Field(body + self._check(seam.ids), start, len(body) + sum(end <= len(tail) for end in ends))

    def _prepare(self):
        """The Rust tokenizer in the state that transformers sets before each of its own calls."""
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        return self.backend

    def _check(self, ids: list[int]) -> list[int]:
        assert self.special_ids.isdisjoint(ids), "user text became a special token"
        return ids


def _place(fields: Sequence[Field], position: int) -> list[slice]:
    """Span of each field where they follow one another from a position on."""
    spans = []
    for field in fields:
        spans.append(slice(position + field.start, position + field.stop))
        position += len(field.ids)
    return spans


def _find_spans(pieces: Sequence[str], tokens: Tokens) -> list[slice]:
    """Token span of each field. A token belongs to the piece in which it ends: " Hi" after `<prompt>:` to the field,
    and ".\\n\\n" before a marker, where a tokenizer merges these, to the marker.

    Args:
        pieces: Marker, field, marker, field, ...: together the text that was tokenised.
        tokens: With their offsets.
    """
    offsets = tokens.offsets
    spans, token, position = [], 0, 0
    for index, piece in enumerate(pieces):
        position += len(piece)
        start = token
        while token < len(offsets) and offsets[token][1] <= position:
            token += 1
        if index % 2:
            spans.append(slice(start, token))
    assert token == len(offsets), "tokens beyond the end of the text"
    return spans
