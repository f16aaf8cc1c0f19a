"""Times a step against the straightforward way to do it, in turns A B A B, after checking that both give the same.

python scripts/benchmark.py                                         # configs/demo/benchmark.yaml
TOKENIZERS_PARALLELISM=false python scripts/benchmark.py --battles train.parquet --base .cache/gemma2-tokenizer

Encoding: battles to ids, in both orders. The straightforward way is a competition notebook's: ftfy on every field and
the tokenizer on every filled template, row by row, once for each order.

Streaming, `--what streaming`: a file of a million battles is read, checked, compared with prompts to leave out, encoded
in both orders and dealt out in parts, as pseudolabel.py does but for the model; seconds and the peak of memory.
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import ftfy
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from modeling.arguments import BenchmarkArguments
from modeling.bases import BaseFiles, find_base, load_tokenizer
from modeling.battles import ORIENTATIONS, TEXTS, iterate_battles, load_battles, order_responses
from modeling.duplicates import DuplicateIndex
from modeling.encoding import TEMPLATE, BattleEncoder, build_encoding
from modeling.launch import run_script
from modeling.parsing import parse_arguments
from modeling.pseudolabels import PartFolder

VERSIONS = ("bothways", "ftfy", "tokenizers", "transformers")
WAYS = ("straightforward", "ours")
Ids = dict[str, list[list[int]]]  # per orientation, of each battle


def main() -> None:
    (arguments,) = parse_arguments(BenchmarkArguments, verb="benchmark")
    measure = {"encoding": benchmark_encoding, "streaming": benchmark_streaming}[arguments.what]
    figures = {"what": arguments.what, **measure(arguments), "machine": describe_machine()}
    print(format_table(figures) if arguments.what == "encoding" else json.dumps(figures, indent=2))
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def benchmark_encoding(arguments: BenchmarkArguments) -> dict:
    """Seconds of each turn, and what was encoded; a ValueError if the ids of a battle differ."""
    battles = load_battles(arguments.battles, blank_policy="keep").to_list()
    tokenizer = load_any_tokenizer(arguments.base)

    def encode_plainly() -> Ids:
        return {
            orientation: [read_plainly(tokenizer, battle, orientation, arguments.max_length) for battle in battles]
            for orientation in ORIENTATIONS
        }

    def encode_ours() -> Ids:
        # A new encoder each time: what it finds out about the tokenizer is part of its time.
        encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, arguments.max_length, "left"))
        found = encoder.encode_orders(encoder.clean_battles(battles), ORIENTATIONS)
        return {orientation: [battle["input_ids"] for battle in reading] for orientation, reading in found.items()}

    # This untimed turn also warms the cache inside the tokenizer, for both ways alike.
    ids = encode_ours()
    num_disarmed = check_ids(encode_plainly(), ids, tokenizer, battles, arguments.max_length)
    seconds = time_in_turns(encode_plainly, encode_ours, arguments.repeats)
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, arguments.max_length, "left"))
    return {
        "battles": len(battles),
        "distinct_texts": len({battle[name] for battle in battles for name in TEXTS}) / (3 * len(battles)),
        "tokens": sum(len(reading) for readings in ids.values() for reading in readings),
        "disarmed": num_disarmed,
        "base": arguments.base,
        "max_length": arguments.max_length,
        "method": encoder.template.method,
        **seconds,
    }


def benchmark_streaming(arguments: BenchmarkArguments) -> dict:
    """Seconds of each step, battles, tokens, and the peak of this process's memory."""
    tokenizer = load_any_tokenizer(arguments.base)
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, arguments.max_length, "balanced"))
    seconds, num_tokens, count = dict.fromkeys(("check", "encode and deal out"), 0.0), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.parquet"
        write_repeated(Path(arguments.battles), pool, arguments.rows)
        start = time.perf_counter()
        checked = sum(map(len, iterate_battles(pool, blank_policy="keep")))
        seconds["check"] = time.perf_counter() - start
        excluded, parts = DuplicateIndex(), PartFolder(Path(folder) / "parts", [])
        start = time.perf_counter()
        for battles in tqdm(iterate_battles(pool, chunk_rows=4096, blank_policy="keep"), total=-(-checked // 4096)):
            excluded.find(battles["prompt"][:])
            parts.begin(battles, {})
            readings = encoder.encode_orders(encoder.clean_battles(battles), ORIENTATIONS)
            num_tokens += sum(battle["length"] for reading in readings.values() for battle in reading)
            parts.write(battles.with_format("arrow")[:], {"judge": "none"})
        count = parts.join(Path(folder) / "soft.parquet")
        seconds["encode and deal out"] = time.perf_counter() - start
        size = pool.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "battles": checked,
        "written": count,
        "tokens": num_tokens,
        "file_gb": size / 1e9,
        "seconds": seconds,
        "peak_memory_gb": peak / 1e9,
        "base": arguments.base,
    }


def write_repeated(source: Path, target: Path, rows: int) -> None:
    """A parquet file of the source's battles again and again, each with an id of its own."""
    texts = pa.table({name: load_battles(source, blank_policy="keep")[name][:] for name in TEXTS})
    with pq.ParquetWriter(target, texts.schema.append(pa.field("id", pa.int64()))) as writer:
        for start in range(0, rows, len(texts)):
            part = texts.slice(0, rows - start)
            writer.write_table(part.append_column("id", pa.array(range(start, start + len(part)), pa.int64())))


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


def describe_machine() -> dict:
    """Cores that this process may use, whether the tokenizer spreads over them, and the versions that matter."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("TOKENIZERS_PARALLELISM", "true")
    versions = {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}
    return {"cores": cores, "tokenizers_parallelism": threads, "versions": versions}


def format_table(figures: dict) -> str:
    """What was timed, the median of each way, and the ratio with its spread."""
    speedup, counts = figures["speedup"], f"{figures['battles']:,} battles, {figures['tokens']:,} tokens"
    lines = [f"{figures['what']}: {counts}, {figures['machine']['cores']} cores; {figures['method']}"]
    lines += [f"{way:<16}{statistics.median(seconds):8.2f} s" for way, seconds in figures["seconds"].items()]
    return "\n".join(
        [*lines, f"{'times faster':<16}{speedup['median']:8.1f}   ({speedup['least']:.1f} to {speedup['most']:.1f})"]
    )


if __name__ == "__main__":
    run_script(main)
