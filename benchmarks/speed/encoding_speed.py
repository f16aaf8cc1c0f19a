"""Battles to ids, in both orders, against the straightforward way: ftfy on every field and the tokenizer on every
filled template, row by row, once for each order.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
from transformers import PreTrainedTokenizerBase

from modeling.data.battles import ORIENTATIONS, TEXTS, load_battles, order_responses
from modeling.encoding.encoder import TEMPLATE, BattleEncoder, build_encoding
from modeling.network.base import BaseFiles, find_base, load_tokenizer

WAYS = ("straightforward", "ours")
Ids = dict[str, list[list[int]]]  # per orientation, of each battle


def benchmark_encoding(battles: str, base: str, max_length: int, repeats: int) -> dict:
    """Seconds of each turn, and what was encoded; a ValueError if the ids of a battle differ."""
    rows = load_battles(battles, blank_policy="keep").to_list()
    tokenizer = load_any_tokenizer(base)

    def encode_plainly() -> Ids:
        """The straightforward way."""
        return {
            orientation: [read_plainly(tokenizer, battle, orientation, max_length) for battle in rows]
            for orientation in ORIENTATIONS
        }

    def encode_ours() -> Ids:
        """Ours."""
        # A new encoder each time: what it finds out about the tokenizer is part of its time.
        encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, "left"))
        found = encoder.encode_orders(encoder.clean_battles(rows), ORIENTATIONS)
        return {orientation: [battle["input_ids"] for battle in reading] for orientation, reading in found.items()}

    # This untimed turn also warms the cache inside the tokenizer, for both ways alike.
    ids = encode_ours()
    num_disarmed = check_ids(encode_plainly(), ids, tokenizer, rows, max_length)
    seconds = time_in_turns(encode_plainly, encode_ours, repeats)
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, "left"))
    return {
        "battles": len(rows),
        "distinct_texts": len({battle[name] for battle in rows for name in TEXTS}) / (3 * len(rows)),
        "tokens": sum(len(reading) for readings in ids.values() for reading in readings),
        "disarmed": num_disarmed,
        "base": base,
        "max_length": max_length,
        "method": encoder.template.method,
        **seconds,
    }


def load_any_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """A base's tokenizer, or that of a folder without a model."""
    files = BaseFiles(Path(base)) if (Path(base) / "tokenizer.json").is_file() else find_base(base)
    return load_tokenizer(files.folder, **files.source)


def read_plainly(
    tokenizer: PreTrainedTokenizerBase,
    battle: dict,
    orientation: str,
    max_length: int,
    mend: Callable[[str], str] = ftfy.fix_text,
) -> list[int]:
    """One battle's ids as a notebook makes them: a string, its last tokens, bos and eos around them."""
    prompt, first, second = (mend(battle[name]) for name in ("prompt", *order_responses(orientation)))
    text = TEMPLATE.format(prompt=prompt, first=first, second=second)
    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [*opening, *ids[-(max_length - len(opening) - 1) :], tokenizer.eos_token_id]


def check_ids(
    plain: Ids, ours: Ids, tokenizer: PreTrainedTokenizerBase, battles: Sequence[dict], max_length: int
) -> int:
    """Number of readings in which we disarmed a marker that a user typed; all others must have the notebook's ids.

    Raises:
        ValueError: If ids differ, those of disarmed texts from the notebook's on the same texts.
    """
    pattern = build_encoding(tokenizer, max_length, "left").marker_pattern

    def disarm(text: str) -> str:
        """The mended text, in which no marker can be read."""
        return pattern.sub(lambda marker: marker[0].replace("<", "(").replace(">", ")"), ftfy.fix_text(text))

    num_disarmed = 0
    for orientation in ORIENTATIONS:
        for battle, expected, found in zip(battles, plain[orientation], ours[orientation], strict=True):
            if expected != found:
                if read_plainly(tokenizer, battle, orientation, max_length, disarm) != found:
                    raise ValueError(f"Battle {battle['id']!r}, {orientation}: expected the ids of its whole string.")
                num_disarmed += 1
    return num_disarmed


def time_in_turns(plain: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict:
    """Seconds of each way by turn, and how many times faster ours is: by turn, median, least and most."""
    seconds = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, call in zip(WAYS, (plain, ours), strict=True):
            start = time.perf_counter()
            call()
            seconds[way].append(time.perf_counter() - start)
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    speedup = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {"seconds": seconds, "speedup": speedup}
