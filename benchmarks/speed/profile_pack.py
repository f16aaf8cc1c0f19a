"""Profiles one packed sequence on one core: which operators take the time of a forward pass.

    python -m benchmarks.speed.profile_pack --judge outputs/demo/ab --battles modeling/data/demo/test.jsonl

Prints the share of each kind of operator and the rate of the matrix products, and writes them to
benchmarks/results/profile_pack.json.
"""

import argparse
import json

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import RESULTS
from modeling.data.battles import load_battles
from modeling.encoding.packing import pack_sequences
from modeling.judging.judge import Judge

TOKENS, ROUNDS = 1000, 3
KINDS = {"matrix products": ("aten::mm", "aten::addmm"), "attention": ("aten::_scaled_dot_product",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True, help="A member, or a judge whose first member is profiled.")
    parser.add_argument("--battles", required=True, help="Battle file: parquet, csv or jsonl.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    member = Judge.from_pretrained(arguments.judge).members[0]
    rows = load_battles(arguments.battles, blank_policy="keep").to_list()
    sequences, size = [], 0
    for battle in member.encoder.encode(member.encoder.clean_battles(rows), "ab"):
        if size < TOKENS:
            sequences.append(battle["input_ids"])
            size += battle["length"]
    batch, model = pack_sequences(sequences, share=False).to_batch(), member.activate()
    with torch.inference_mode():
        model(**batch)  # warms up, untimed
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(ROUNDS):
                model(**batch)
    seconds = {event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
    total, found = sum(seconds.values()), {}
    for kind, names in KINDS.items():
        found[kind] = sum(value for name, value in seconds.items() if name.startswith(names))
    linear = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear))
    results = {
        "tokens": size,
        "readings": len(sequences),
        "tokens_per_second": round(ROUNDS * size / total),
        "shares": {kind: round(value / total, 3) for kind, value in found.items()},
        "gflops": round(2 * linear * size * ROUNDS / found["matrix products"] / 1e9),
    }
    print(text := json.dumps(results, indent=1))
    (RESULTS / "profile_pack.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
