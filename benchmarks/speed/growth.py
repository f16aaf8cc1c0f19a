"""Measures how seconds and memory grow with the number of battles and with their length, and fits exponents."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.speed.rounds import Round, run_in_rounds
from modeling.data.battles import ORIENTATIONS, TEXTS, load_battles
from modeling.encoding.encoder import BattleEncoder
from modeling.judging.judge import Judge
from modeling.judging.schedule import PassSchedule

SHORT = 48  # tokens per battle, where the number of battles grows
LENGTHS = (256, 512, 1024, 2048, 4096)  # tokens per battle
TOKENS = 16384  # in total for each length, so that only the length varies


def build_growth(judge: Sequence[str], battles: Sequence[dict], max_length: int, alone: bool) -> Round:
    """Returns a round that encodes the battles in both orders and makes one pass over them.

    Args:
        max_length: Tokens to which battles are cut.
        alone: Give each battle its own packed sequence, so that no prefix is shared.
    """
    loaded = Judge.from_pretrained(judge[:1], skip_probes=True)
    member = loaded.members[0]
    encoder = BattleEncoder(member.encoder.tokenizer, replace(member.encoder.encoding, max_length=max_length))
    plan = [(replace(member, encoder=encoder), "ab")]

    def run(number: int) -> dict:
        """Seconds of encoding and of the pass, tokens, battles."""
        start = time.perf_counter()
        encoder.encode_orders(encoder.clean_battles(battles), ORIENTATIONS)
        encoded = time.perf_counter() - start
        schedule = PassSchedule(plan, battles, tokens_per_batch=max_length if alone else None)
        start = time.perf_counter()
        schedule.read(np.full(schedule.p.shape[:2], True))
        seconds = time.perf_counter() - start
        tokens = int(schedule.lengths[..., 0].sum())
        return {"seconds": seconds, "encoding_seconds": encoded, "tokens": tokens, "battles": len(battles)}

    return run


def benchmark_growth(files: Sequence[str], judge: Sequence[str], counts: Sequence[int]) -> dict:
    """Returns a table by number of battles and one by length, with exponents: 1 is linear.

    Args:
        files: Battle files with enough battles for the largest count.
        counts: Numbers of battles to measure.

    Raises:
        ValueError: If the files have too few battles.
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
    """Exponents of seconds and of memory; where the length grows, of the seconds per battle."""
    per = {size: 1 if name == "battles" else row["battles"] for size, row in table.items()}
    exponents = {
        name: _fit_exponent(list(table), [row[name] / per[size] for size, row in table.items()])
        for name in ("seconds", "encoding_seconds")
    }
    return exponents | {"peak_memory_gb": _fit_exponent(list(table), [row["peak_memory_gb"] for row in table.values()])}


def _measure(build: partial) -> dict:
    """Results of one round in a fresh process: peak memory never falls within a process."""
    (found,) = run_in_rounds({"growth": build}, 1)["growth"]
    return found | {"peak_memory_gb": found.pop("peak_memory") / 1e9}


def _lengthen(rows: Sequence[dict], start: int, tokens: int) -> dict:
    """A battle longer than `tokens`, joined from the texts of several; no two share a prefix."""
    texts = {"prompt": "", "response_a": "", "response_b": ""}
    n = start * 37
    # Each of the three texts alone gets 3 characters per token, so that the battle is cut to exactly max_length.
    while min(map(len, texts.values())) < 3 * tokens:
        row = rows[n % len(rows)]
        texts = {name: f"{text} {row[name]}" for name, text in texts.items()}
        n += 1
    return {"id": start, **texts}


def _fit_exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of a line through the logarithms, so that values grow as size to this power."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
