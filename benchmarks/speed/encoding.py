"""Times encoding in both orders against the plain way: row by row and once per order, ftfy on every text, then the
tokenizer on the filled template.
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
Ids = dict[str, list[list[int]]]  # by orientation, the ids of each battle


def benchmark_encoding(battles: str, base: str, max_length: int, repeats: int) -> dict:
    """Returns the seconds of each round, and what was encoded.

    Raises:
        ValueError: If both ways encode a battle differently.
    """
    rows = load_battles(battles, blank_policy="keep").to_list()
    tokenizer = load_any_tokenizer(base)

    def encode_plainly() -> Ids:
        """The plain way: each battle is a filled template."""
        return {
            orientation: [encode_one_plainly(tokenizer, battle, orientation, max_length) for battle in rows]
            for orientation in ORIENTATIONS
        }

    def encode_ours() -> Ids:
        """Our way: each text is tokenised once."""
        # A new encoder each time: its checks of the tokenizer are part of its time.
        encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, "left"))
        found = encoder.encode_orders(encoder.clean_battles(rows), ORIENTATIONS)
        return {order: [battle["input_ids"] for battle in sequences] for order, sequences in found.items()}

    # This untimed round also warms the tokenizer's cache, for both ways alike.
    ids = encode_ours()
    num_disarmed = check_ids(encode_plainly(), ids, tokenizer, rows, max_length)
    seconds = time_in_rounds(encode_plainly, encode_ours, repeats)
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, "left"))
    return {
        "battles": len(rows),
        "distinct_texts": len({battle[name] for battle in rows for name in TEXTS}) / (3 * len(rows)),
        "tokens": sum(len(sequence) for sequences in ids.values() for sequence in sequences),
        "disarmed": num_disarmed,
        "base": base,
        "max_length": max_length,
        "method": encoder.template.method,
        **seconds,
    }


def load_any_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a base, or of a folder without a model."""
    files = BaseFiles(Path(base)) if (Path(base) / "tokenizer.json").is_file() else find_base(base)
    return load_tokenizer(files.folder, **files.source)


def encode_one_plainly(
    tokenizer: PreTrainedTokenizerBase,
    battle: dict,
    orientation: str,
    max_length: int,
    repair: Callable[[str], str] = ftfy.fix_text,
) -> list[int]:
    """Returns one battle's ids as a notebook makes them: the last tokens of one string, between bos and eos."""
    prompt, first, second = (repair(battle[name]) for name in ("prompt", *order_responses(orientation)))
    text = TEMPLATE.format(prompt=prompt, first=first, second=second)
    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [*opening, *ids[-(max_length - len(opening) - 1) :], tokenizer.eos_token_id]


def check_ids(
    plain: Ids, ours: Ids, tokenizer: PreTrainedTokenizerBase, battles: Sequence[dict], max_length: int
) -> int:
    """Returns how many encoded battles hold a disarmed marker; all others must have the plain way's ids.

    The encoder disarms field markers that a user typed into a text, which the plain way leaves as they are.

    Raises:
        ValueError: If ids differ for any other reason.
    """
    pattern = build_encoding(tokenizer, max_length, "left").marker_pattern

    def disarm(text: str) -> str:
        """The repaired text without markers."""
        return pattern.sub(lambda marker: marker[0].replace("<", "(").replace(">", ")"), ftfy.fix_text(text))

    num_disarmed = 0
    for orientation in ORIENTATIONS:
        for battle, expected, found in zip(battles, plain[orientation], ours[orientation], strict=True):
            if expected != found:
                if encode_one_plainly(tokenizer, battle, orientation, max_length, disarm) != found:
                    raise ValueError(
                        f"Battle {battle['id']!r}, {orientation}: expected the ids of the plain way; found others."
                    )
                num_disarmed += 1
    return num_disarmed


def time_in_rounds(plain: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict:
    """Returns each way's seconds per round, and our speedup over the rounds: median, least and most."""
    seconds = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, call in zip(WAYS, (plain, ours), strict=True):
            start = time.perf_counter()
            call()
            seconds[way].append(time.perf_counter() - start)
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    speedup = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {"seconds": seconds, "speedup": speedup}
