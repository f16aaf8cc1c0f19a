"""Text to ids: the only module that knows the template, the special ids, truncation and padding.

A battle becomes `<bos>` + template + `<eos>`. The whole template is tokenised as one string, so the ids are those of
reading it naturally, and each token is then attributed to the field, or the marker, in which it ends.
"""

import re
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property

import ftfy
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling.battles import TEXTS, order_responses, orient_label

logger = get_logger(__name__)

TEMPLATE = "<prompt>: {prompt}\n\n<response_a>: {first}\n\n<response_b>: {second}"
TEMPLATE_FIELDS = ("prompt", "first", "second")
TRUNCATIONS = ("balanced", "left")
ELISION = " … "  # stands where the middle of a field was cut, so that its two ends can never join into a marker
TOKENIZER_BATCH = 512
MIN_FIELD_TOKENS = 8  # of each field that is cut, ELISION included
# What ftfy leaves alone whatever its settings: printable ASCII without "&". Most English text, at a tenth of the time.
_UNTOUCHED_BY_FTFY = re.compile(r"[\t\n\x20-\x25\x27-\x7e]*")
CUT_COLUMNS = tuple(f"cut_{name}" for name in TEXTS)


@dataclass(frozen=True)
class Encoding:
    """Everything that turns a battle into the same ids again; saved with every adapter.

    `max_length` counts all tokens, special ones included. `truncation` "balanced" gives each field a share of it and
    cuts the middle of long fields; "left" cuts the whole string from the left, prompt first: the seed's way.
    """

    max_length: int
    truncation: str
    template: str
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int

    def __post_init__(self):
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"--truncation: expected one of {', '.join(TRUNCATIONS)}; found {self.truncation!r}.")

    @cached_property
    def markers(self) -> list[str]:
        """The template's text before each field."""
        parts = [(text, field) for text, field, _, _ in string.Formatter().parse(self.template)]
        if tuple(field for _, field in parts) != TEMPLATE_FIELDS:
            raise ValueError(
                f"Template {self.template!r}: expected the fields {{prompt}}, {{first}}, {{second}} in this order, "
                "and nothing after them."
            )
        return [text for text, _ in parts]

    @cached_property
    def marker_pattern(self) -> re.Pattern:
        """Finds, in user text, what would read as a marker."""
        return re.compile("|".join(re.escape(marker.strip()) for marker in self.markers))

    def to_dict(self) -> dict:
        """Plain values, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "Encoding":
        """The encoding that `to_dict` described; a ValueError if a field is missing or unknown."""
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            raise ValueError(f"Encoding: expected {', '.join(sorted(expected))}; found {', '.join(sorted(values))}.")
        return cls(**values)


def build_encoding(tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: str) -> Encoding:
    """Encoding with the seed's template and this tokenizer's special ids.

    Raises:
        ValueError: If the tokenizer has no eos, or if max_length leaves no room for the fields.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"Tokenizer {tokenizer.name_or_path}: expected an eos token, which closes a battle; found none."
        )
    # Padding is found by the attention mask alone, so any id will do where a tokenizer has no pad token.
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    encoding = Encoding(max_length, truncation, TEMPLATE, tokenizer.bos_token_id, tokenizer.eos_token_id, pad)
    BattleEncoder(tokenizer, encoding)
    return encoding


class BattleEncoder:
    """Encodes battles with one tokenizer and one `Encoding`.

    Example: `encoder.encode(encoder.clean_battles(rows), "ba")[0]["input_ids"]`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoding: Encoding):
        self.tokenizer = tokenizer
        self.encoding = encoding
        self.elision = self._tokenize([ELISION])["input_ids"][0]
        assert len(self.elision) < MIN_FIELD_TOKENS, "a cut field would keep nothing"
        # Without <unk>: a tokenizer without byte fallback gives it for ordinary text.
        special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = special - {tokenizer.unk_token_id}
        empty = "".join(encoding.markers)
        self.room = encoding.max_length - len(self._tokenize([empty])["input_ids"][0]) - self._count_special()
        if self.room < (least := 3 * MIN_FIELD_TOKENS):
            raise ValueError(
                f"--max_length {encoding.max_length}: expected {encoding.max_length - self.room + least} or more: the "
                f"template and {MIN_FIELD_TOKENS} tokens of each field. Give a larger --max_length."
            )

    def clean(self, text: str) -> str:
        """Mends broken Unicode as the seed did (ftfy) and disarms field markers: `<prompt>:` becomes `(prompt):`."""
        if not _UNTOUCHED_BY_FTFY.fullmatch(text):
            text = ftfy.fix_text(text)
        # After ftfy, which may itself turn `&lt;prompt&gt;:` into a marker.
        return self.encoding.marker_pattern.sub(lambda marker: marker[0].replace("<", "(").replace(">", ")"), text)

    def clean_battles(self, battles: Sequence[Mapping]) -> list[dict[str, str]]:
        """The three texts of each battle, cleaned once for all orders in which they will be read."""
        return [{name: self.clean(battle[name]) for name in TEXTS} for battle in battles]

    def encode(self, cleaned: Sequence[Mapping[str, str]], orientation: str) -> list[dict]:
        """Ids of cleaned battles, read in one orientation.

        Returns:
            Per battle: `input_ids`, beginning with bos (where the tokenizer has one) and ending with eos, at most
            max_length; `length`, their number; `cut_prompt`, `cut_response_a`, `cut_response_b`, tokens left out.
        """
        order = ("prompt", *order_responses(orientation))
        encoded = []
        # In parts: the offsets of all tokens of a large file would not fit the memory.
        for start in range(0, len(cleaned), TOKENIZER_BATCH):
            texts = [[battle[name] for name in order] for battle in cleaned[start : start + TOKENIZER_BATCH]]
            pieces = [
                [piece for pair in zip(self.encoding.markers, row, strict=True) for piece in pair] for row in texts
            ]
            tokens = self._tokenize(["".join(row) for row in pieces], return_offsets_mapping=True)
            for row, ids, offsets in zip(pieces, tokens["input_ids"], tokens["offset_mapping"], strict=True):
                encoded.append(self._close(*self._truncate(ids, _find_spans(row, offsets)), order))
        return encoded

    def _close(self, ids: list[int], cut: list[int], order: Sequence[str]) -> dict:
        """One encoded battle: the ids between bos and eos, and what was cut by column."""
        assert self.special_ids.isdisjoint(ids), "user text became a special token"
        bos, eos = self.encoding.bos_token_id, self.encoding.eos_token_id
        ids = [*([] if bos is None else [bos]), *ids, eos]
        cuts = dict(zip((f"cut_{name}" for name in order), cut, strict=True))
        return {"input_ids": ids, "length": len(ids), **{name: cuts[name] for name in CUT_COLUMNS}}

    def _count_special(self) -> int:
        return 1 if self.encoding.bos_token_id is None else 2

    def _tokenize(self, texts: list[str], **options):
        """Ids without special tokens of ours, and with none that the text spells out: `<eos>` typed is five letters."""
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False, **options)

    def _truncate(self, ids: list[int], spans: list[slice]) -> tuple[list[int], list[int]]:
        """The ids that fit, and how many tokens each field lost."""
        limit = self.encoding.max_length - self._count_special()
        if len(ids) <= limit:
            return ids, [0, 0, 0]
        if self.encoding.truncation == "left":
            first = len(ids) - limit
            return ids[first:], [max(0, min(span.stop, first) - span.start) for span in spans]
        lengths = [span.stop - span.start for span in spans]
        shares = share_room(lengths, limit - (len(ids) - sum(lengths)))
        kept, end = [], 0
        for span, share in zip(spans, shares, strict=True):
            kept += ids[end : span.start]  # the marker
            kept += _cut_middle(ids[span], share, self.elision)
            end = span.stop
        cut = [
            max(0, length - share + len(self.elision)) if share < length else 0
            for length, share in zip(lengths, shares, strict=True)
        ]
        return kept + ids[end:], cut


def share_room(lengths: Sequence[int], room: int) -> list[int]:
    """Tokens that the prompt and the two answers may keep, all shortening where it hurts least.

    Equal shares, and what a short field leaves unused passes on to the longer ones. Where both answers are cut they
    share their room in proportion to their lengths, between 1:3 and 3:1, so that the longer stays the longer: equal
    shares would hide which one it was, and of 3,427 real battles the longer answer wins 69% of those of which both
    answers exceed their share at 384 tokens, against 53% of the others.

    Args:
        lengths: Tokens of the prompt, the first and the second answer.
        room: Tokens for all three.

    Examples: `share_room([10, 90, 300], 210)` is `[10, 90, 110]`, `share_room([10, 200, 400], 210)` `[10, 66, 133]`.
    """
    shares, left = [0] * len(lengths), room
    by_length = sorted(range(len(lengths)), key=lambda field: lengths[field])
    for rank, field in enumerate(by_length):
        shares[field] = min(lengths[field], left // (len(lengths) - rank))
        left -= shares[field]
    if all(share < length for share, length in zip(shares[1:], lengths[1:], strict=True)):
        joint, total = sum(shares[1:]), sum(lengths[1:])
        least = max(joint // 4, MIN_FIELD_TOKENS)
        shares[1:] = [min(max(joint * length // total, least), joint - least) for length in lengths[1:]]
    return shares


def _cut_middle(ids: list[int], room: int, elision: list[int]) -> list[int]:
    """The ids where they fit; else their two ends around the elision, the first one token longer when odd."""
    if len(ids) <= room:
        return ids
    kept = room - len(elision)
    tail = kept // 2
    return [*ids[: kept - tail], *elision, *ids[len(ids) - tail :]]


def _find_spans(pieces: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[slice]:
    """Token span of each field. A token belongs to the piece in which it ends: " Hi" after `<prompt>:` to the field,
    and ".\n\n" before a marker, where a tokenizer merges these, to the marker.

    Args:
        pieces: Marker, field, marker, field, ...: together the text that was tokenised.
        offsets: Start and end character of each token, in order.
    """
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


def encode_dataset(battles: Dataset, encoder: BattleEncoder, orientation: str) -> Dataset:
    """Labelled battles as a Trainer reads them: `input_ids`, `length`, and `label` by slot. Logs what was cut."""

    def encode_rows(columns: dict[str, list]) -> dict[str, list]:
        """Columns of raw battles in, columns of encoded ones out."""
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        encoded = encoder.encode(encoder.clean_battles(rows), orientation)
        labels = [orient_label(label, orientation) for label in columns["label"]]
        return {name: [row[name] for row in encoded] for name in encoded[0]} | {"label": labels}

    start = time.perf_counter()
    encoded = battles.map(
        encode_rows,
        batched=True,
        batch_size=TOKENIZER_BATCH,
        remove_columns=battles.column_names,
        desc=f"Encoding {orientation}",
    )
    tokens, cut = sum(encoded["length"]), {name: sum(encoded[name]) for name in CUT_COLUMNS}
    speed = tokens / (time.perf_counter() - start)
    cuts = ", ".join(f"{count:,} of {name}" for name, count in zip(TEXTS, cut.values(), strict=True))
    logger.info(f"Encoded {len(encoded)} battles {orientation}: {tokens:,} tokens, {speed:,.0f} tokens/s; cut {cuts}")
    return encoded.remove_columns(list(CUT_COLUMNS))


class BattleCollator:
    """Pads encoded battles to the longest of the batch.

    Example: battles of 3 and 2 ids give `input_ids` [[5, 6, 7], [5, 6, 0]], `attention_mask` [[1, 1, 1], [1, 1, 0]]
    and, where the battles have a label (by slot), `labels` of shape (battles, labels), float32.
    """

    def __init__(self, pad_token_id: int, padding_side: str = "right"):
        self.pad_token_id = pad_token_id
        self.padding_side = padding_side

    def __call__(self, battles: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        longest = max(len(battle["input_ids"]) for battle in battles)
        batch = {
            "input_ids": torch.full((len(battles), longest), self.pad_token_id),
            "attention_mask": torch.zeros((len(battles), longest), dtype=torch.int64),
        }
        for row, battle in enumerate(battles):
            length = len(battle["input_ids"])
            real = slice(0, length) if self.padding_side == "right" else slice(longest - length, longest)
            batch["input_ids"][row, real] = torch.tensor(battle["input_ids"])
            batch["attention_mask"][row, real] = 1
        if "label" in battles[0]:
            batch["labels"] = torch.tensor([battle["label"] for battle in battles], dtype=torch.float32)
        return batch
