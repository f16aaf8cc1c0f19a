"""Times what pseudolabel.py does to a large file, without the model: it reads, checks, removes duplicates of excluded
prompts, encodes in both orders, and writes in parts. Memory must not grow with the file.
"""

import resource
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from benchmarks.speed.encoding import load_any_tokenizer
from modeling.data.battles import ORIENTATIONS, TEXTS, iterate_battles, load_battles
from modeling.data.near_duplicates import DuplicateIndex
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.judging.pseudolabels import PartFolder


def benchmark_streaming(battles: str, base: str, max_length: int, rows: int) -> dict:
    """Returns the seconds of each step, battles, tokens, and this process's peak memory."""
    tokenizer = load_any_tokenizer(base)
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, "balanced"))
    seconds, num_tokens, count = dict.fromkeys(("check", "encode and deal out"), 0.0), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.parquet"
        write_repeated(Path(battles), pool, rows)
        start = time.perf_counter()
        checked = sum(map(len, iterate_battles(pool, blank_policy="keep")))
        seconds["check"] = time.perf_counter() - start
        # The index is empty: what is timed is the hashing of every prompt, which costs most.
        excluded, parts = DuplicateIndex(), PartFolder(Path(folder) / "parts", [])
        start = time.perf_counter()
        for part in tqdm(iterate_battles(pool, chunk_rows=4096, blank_policy="keep"), total=-(-checked // 4096)):
            excluded.find(part["prompt"][:])
            parts.begin(part, {})
            encoded = encoder.encode_orders(encoder.clean_battles(part), ORIENTATIONS)
            num_tokens += sum(battle["length"] for sequences in encoded.values() for battle in sequences)
            parts.write(part.with_format("arrow")[:], {"judge": "none"})
        count = parts.join(Path(folder) / "soft.parquet")
        seconds["encode and deal out"] = time.perf_counter() - start
        size = pool.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes
    return {
        "battles": checked,
        "written": count,
        "tokens": num_tokens,
        "file_gb": size / 1e9,
        "seconds": seconds,
        "peak_memory_gb": peak / 1e9,
        "base": base,
    }


def write_repeated(source: Path, target: Path, rows: int) -> None:
    """Writes a parquet file that repeats the source's battles, each with its own id."""
    texts = pa.table({name: load_battles(source, blank_policy="keep")[name][:] for name in TEXTS})
    with pq.ParquetWriter(target, texts.schema.append(pa.field("id", pa.int64()))) as writer:
        for start in range(0, rows, len(texts)):
            part = texts.slice(0, rows - start)
            writer.write_table(part.append_column("id", pa.array(range(start, start + len(part)), pa.int64())))
