"""How seconds and memory grow with the number of battles and with their length, and the exponents of that growth."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.speed.turns import Turn, run_in_turns
from modeling.data.battles import ORIENTATIONS, TEXTS, load_battles
from modeling.encoding.encoder import BattleEncoder
from modeling.judging.judge import Judge
from modeling.judging.schedule import PassSchedule

SHORT = 48  # tokens of a battle where their number grows
LENGTHS = (256, 512, 1024, 2048, 4096)
TOKENS = 16384  # of all battles of a length


def build_growth(judge: Sequence[str], battles: Sequence[dict], max_length: int, whole: bool) -> Turn:
    """A turn encodes the battles in both orders and reads them in one, cut to so many tokens.

    Args:
        whole: Each battle is a pack of its own, so that none shares a beginning with another.
    """
    loaded = Judge.from_pretrained(judge[:1], skip_probes=True)
    member = loaded.members[0]
    encoder = BattleEncoder(member.encoder.tokenizer, replace(member.encoder.encoding, max_length=max_length))
    plan = [(replace(member, encoder=encoder), "ab")]

    def run(turn: int) -> dict:
        """Seconds of encoding and of reading, tokens, battles."""
        start = time.perf_counter()
        encoder.encode_orders(encoder.clean_battles(battles), ORIENTATIONS)
        encoded = time.perf_counter() - start
        made = PassSchedule(plan, battles, tokens_per_batch=max_length if whole else None)
        start = time.perf_counter()
        made.read(np.full(made.p.shape[:2], True))
        seconds = time.perf_counter() - start
        tokens = int(made.lengths[..., 0].sum())
        return {"seconds": seconds, "encoding_seconds": encoded, "tokens": tokens, "battles": len(battles)}

    return run


def benchmark_growth(files: Sequence[str], judge: Sequence[str], counts: Sequence[int]) -> dict:
    """Tables by number of battles and by length, with exponents: 1 is linear.

    Args:
        files: Battles, enough for the largest count.
        counts: Numbers of battles.
    """
    rows = [row for file in files for row in load_battles(file, blank_policy="keep").select_columns(["id", *TEXTS])]
    rows = [{**row, "id": n} for n, row in enumerate(rows)]
    np.random.default_rng(0).shuffle(rows)
    if len(rows) < max(counts):
        raise ValueError(f"--battles: expected {max(counts)} battles for the largest of --counts; found {len(rows)}.")
    tables = {"battles": {}, "length": {}}
    for count in counts:
        tables["battles"][count] = _measure(partial(build_growth, judge, rows[:count], SHORT, False))
    for length in LENGTHS:
        long = [_lengthen(rows, n, length) for n in range(TOKENS // length)]
        tables["length"][length] = _measure(partial(build_growth, judge, long, length, True))
    return {"tables": tables, "exponents": {name: _fit_exponents(name, table) for name, table in tables.items()}}


def _fit_exponents(name: str, table: dict[int, dict]) -> dict[str, float]:
    """Of seconds, those of a battle where its length grows, and of memory."""
    per = {size: 1 if name == "battles" else row["battles"] for size, row in table.items()}
    exponents = {
        figure: _fit_exponent(list(table), [row[figure] / per[size] for size, row in table.items()])
        for figure in ("seconds", "encoding_seconds")
    }
    return exponents | {"peak_memory_gb": _fit_exponent(list(table), [row["peak_memory_gb"] for row in table.values()])}


def _measure(build: partial) -> dict:
    """Figures of one turn in a process of its own."""
    (found,) = run_in_turns({"growth": build}, 1)["growth"]
    return found | {"peak_memory_gb": found.pop("peak_memory") / 1e9}


def _lengthen(rows: Sequence[dict], start: int, tokens: int) -> dict:
    """A battle of more than so many tokens, made of the texts of several; no two begin alike."""
    texts = {"prompt": "", "response_a": "", "response_b": ""}
    n = start * 37
    while min(map(len, texts.values())) < 3 * tokens:
        row = rows[n % len(rows)]
        texts = {name: f"{text} {row[name]}" for name, text in texts.items()}
        n += 1
    return {"id": start, **texts}


def _fit_exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of a line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
