"""What a checkpoint and a restart cost on the demo base: seconds and bytes, each measured several times.

    python benchmarks/checkpoints.py                    # after `make demo`; writes benchmarks/checkpoints.json

A start is timed from the command to the first logged loss, fresh and from a checkpoint in turn.
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

REPOSITORY = Path(__file__).resolve().parent.parent
TURNS = 3
TRAIN = ["--orientation", "ab", "--logging_steps", "1", "--save_strategy", "steps", "--max_length", "128"]


def time_first_loss(output: Path, *flags: str) -> tuple[float, str]:
    """Seconds until the first loss is logged, and all that the command said."""
    command = [sys.executable, "-u", "scripts/train.py", *TRAIN, "--output_dir", str(output), *flags]
    start, first, said = time.perf_counter(), None, []
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout:
            said.append(line)
            if first is None and "'loss'" in line:
                first = time.perf_counter() - start
    if run.returncode:
        raise SystemExit("".join(said))
    return first, "".join(said)


def main() -> None:
    fresh, resumed, saves, sizes = [], [], [], []
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "ab"
            seconds, said = time_first_loss(output, "--max_steps", "4", "--save_steps", "2")
            fresh.append(seconds)
            for size, save in re.findall(r"([\d.]+) MB in ([\d.]+) s", said):
                sizes.append(float(size))
                saves.append(float(save))
            shutil.rmtree(Path(folder) / "ab.checkpoints" / "checkpoint-4")
            resumed.append(time_first_loss(output, "--max_steps", "4", "--save_steps", "2")[0])
    figures = {
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
    text = json.dumps(figures, indent=2)
    (REPOSITORY / "benchmarks" / "checkpoints.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
