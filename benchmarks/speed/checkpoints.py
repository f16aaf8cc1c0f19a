"""Measures what a checkpoint and a restart cost on the demo base, in seconds and megabytes, several times each.

    python -m benchmarks.speed.checkpoints              # after `make demo`; writes benchmarks/results/checkpoints.json

A start is timed from the command to the first logged loss; fresh starts and resumed ones alternate.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import REPOSITORY, RESULTS

ROUNDS = 3
TRAIN = ["--orientation", "ab", "--logging_steps", "1", "--save_strategy", "steps", "--max_length", "128"]


def time_first_loss(output: Path, *flags: str) -> tuple[float, str]:
    """Returns the seconds until the first loss is logged, and the command's whole output."""
    command = [sys.executable, "-u", "scripts/train.py", *TRAIN, "--output_dir", str(output), *flags]
    start, first, lines = time.perf_counter(), None, []
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout:
            lines.append(line)
            if first is None and "'loss'" in line:
                first = time.perf_counter() - start
    if run.returncode:
        raise SystemExit("".join(lines))
    return first, "".join(lines)


def main() -> None:
    fresh, resumed, saves, sizes = [], [], [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "ab"
            seconds, output_text = time_first_loss(output, "--max_steps", "4", "--save_steps", "2")
            fresh.append(seconds)
            for size, save in re.findall(r"([\d.]+) MB in ([\d.]+) s", output_text):
                sizes.append(float(size))
                saves.append(float(save))
            # The finished run's last checkpoint goes, so that the same command resumes from step 2.
            shutil.rmtree(Path(folder) / "ab.checkpoints" / "checkpoint-4")
            resumed.append(time_first_loss(output, "--max_steps", "4", "--save_steps", "2")[0])
    results = {
        "checkpoint_mb": statistics.median(sizes),
        "checkpoint_seconds": saves,
        "first_loss_fresh_seconds": fresh,
        "first_loss_resumed_seconds": resumed,
        "median_seconds": {
            "checkpoint": statistics.median(saves),
            "first_loss_fresh": statistics.median(fresh),
            "first_loss_resumed": statistics.median(resumed),
        },
    }
    text = json.dumps(results, indent=2)
    (RESULTS / "checkpoints.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
