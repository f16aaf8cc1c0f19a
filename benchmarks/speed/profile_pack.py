"""Where the time of reading goes: the operators of one pack, on one core.

    python benchmarks/profile_pack.py --judge outputs/demo/ab --battles modeling/data/demo/test.jsonl

Prints, and writes to benchmarks/profile_pack.json, each one's share, and the rate of the matrix products.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from modeling.data.battles import load_battles
from modeling.encoding.packing import pack_sequences
from modeling.judging.judge import Judge

TOKENS, TURNS = 1000, 3
KINDS = {"matrix products": ("aten::mm", "aten::addmm"), "attention": ("aten::_scaled_dot_product",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--battles", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    member = Judge.from_pretrained(arguments.judge).members[0]
    rows = load_battles(arguments.battles, blank_policy="keep").to_list()
    readings, size = [], 0
    for battle in member.encoder.encode(member.encoder.clean_battles(rows), "ab"):
        if size < TOKENS:
            readings.append(battle["input_ids"])
            size += battle["length"]
    batch, model = pack_sequences(readings, share=False).to_batch(), member.activate()
    with torch.inference_mode():
        model(**batch)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(TURNS):
                model(**batch)
    seconds = {event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
    total, found = sum(seconds.values()), {}
    for kind, names in KINDS.items():
        found[kind] = sum(value for name, value in seconds.items() if name.startswith(names))
    linear = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear))
    figures = {
        "tokens": size,
        "readings": len(readings),
        "tokens_per_second": round(TURNS * size / total),
        "shares": {kind: round(value / total, 3) for kind, value in found.items()},
        "gflops": round(2 * linear * size * TURNS / found["matrix products"] / 1e9),
    }
    print(text := json.dumps(figures, indent=1))
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
