"""Where a text may be cut so that its parts, tokenised apart, give the ids of the whole: read off the tokenizer's data.

Only the cut between a visible character and a space or a newline is considered. It is exact if no added token, no
pre-token and no merge can reach across it, and if the normaliser looks at neither side.
"""

import json
import re

from tokenizers import Tokenizer, models

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
