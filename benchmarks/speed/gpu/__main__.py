"""Checks and times everything that needs a GPU, in under six minutes on one card of 80 GB, without network or files.

    python -m benchmarks.speed.gpu --output benchmarks/results/gpu.json
    python -m benchmarks.speed.gpu --output gpu.json --parts correctness,attention
    python -m benchmarks.speed.gpu --output gpu.json --dry_run true    # every line, on a CPU, with tiny models

Models have random weights in the shapes of Gemma-2-9B, Gemma-2-2B and Gemma-3-270M. The results are rewritten after
each measurement. One that fails leaves its error there, and the next one runs. "The notebook" is the
pipeline that this project re-implements.
"""

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path

START = time.time()  # before torch is imported: the time limit includes that

# Seconds of each part, after which it starts no further measurement.
BOXES = {
    "machine": 10,
    "correctness": 45,
    "attention": 40,
    "prediction": 110,
    "training": 90,
    "t4": 30,
    "small": 30,
}
# Parts whose measurements need no warm-up from an earlier one: they go on after the one in which the device failed.
RESUMABLE = ("correctness", "attention")


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write.")
    parser.add_argument(
        "--parts", default=",".join(BOXES), help="Parts to run, separated by commas; machine comes first in any case."
    )
    parser.add_argument("--seconds", type=float, default=320, help="After these, no further measurement starts.")
    switch = {"nargs": "?", "const": "true", "choices": ("true", "false"), "default": "false"}
    parser.add_argument("--dry_run", help="Tiny models on the CPU.", **switch)
    # A process that CUDA has failed in is replaced by a new one, which continues the results.
    parser.add_argument("--since", type=float, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    flags.parts = flags.parts.split(",") if flags.parts else []
    if unknown := [part for part in flags.parts if part not in BOXES]:
        parser.error(f"--parts: expected some of {', '.join(BOXES)}; found {', '.join(unknown)}.")
    if flags.since is None and "machine" not in flags.parts:
        flags.parts.insert(0, "machine")  # its rate of products is what the others are compared with
    return flags


def main() -> None:
    flags = parse_flags()
    # Imported here because they load torch and transformers, which takes seconds; a mistyped flag is answered first.
    import torch
    from accelerate import PartialState

    from benchmarks.speed.gpu import kernels, passes, steps
    from benchmarks.speed.gpu.measuring import Clock, Setting, is_alive, run_part
    from benchmarks.speed.gpu.tables import compare_results, format_results
    from modeling.runtime.files import write_json

    parts = {
        "machine": kernels.measure_machine,
        "correctness": kernels.check_kernels,
        "attention": kernels.time_kernels,
        "prediction": passes.measure_prediction,
        "training": steps.measure_training,
        "t4": passes.measure_t4,
        "small": steps.measure_small,
    }
    gc.freeze()  # what the imports made stays: each later collection would go through it, for 0.1 s
    dry_run = flags.dry_run == "true"
    if dry_run:
        torch.set_num_threads(1)  # tiny products: several threads wait for each other wherever a core is busy
    if not dry_run and not torch.cuda.is_available():
        raise ValueError("benchmarks.speed.gpu: expected a GPU; found none. Pass --dry_run true to run it on the CPU.")
    setting = Setting(PartialState(cpu=dry_run).device, dry_run)
    clock = Clock(flags.since or START, flags.seconds)
    results: dict[str, dict] = json.loads(flags.output.read_text(encoding="utf-8")) if flags.since else {}
    flags.output.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        """Writes all results so far."""
        compare_results(results)
        write_json(flags.output, results)

    for number, name in enumerate(flags.parts):
        clock.say(f"part {name}")
        run_part(parts[name](setting), BOXES[name], results.setdefault(name, {}), clock, save, setting.device)
        if not is_alive(setting.device):
            clock.say("The device has failed in this process: a new one continues")
            again = name in RESUMABLE and "error" not in results[name]
            restart(flags, flags.parts[number + (not again) :], clock.start)
    print(format_results(results), flush=True)


def restart(flags: argparse.Namespace, parts: list[str], start: float) -> None:
    """Replaces this process by one that runs the remaining parts, and prints the results if there are none."""
    command = [sys.executable, "-m", "benchmarks.speed.gpu", "--output", str(flags.output)]
    command += ["--parts", ",".join(parts), "--seconds", str(flags.seconds), "--dry_run", flags.dry_run]
    command += ["--since", str(start)]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    from modeling.runtime.startup import run_script

    run_script(main)
