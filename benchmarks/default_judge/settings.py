"""Compares settings by the training loss of one epoch on the same battles in the same order.

    python -m benchmarks.default_judge.battles --votes battles_train.parquet --exclude battles_test.parquet \\
        --easy 1000 --hard 1500 --mixed 1500 --by_models 5000 --longest 1800 --validate 252 --output_dir outputs/choice
    accelerate launch --config_file configs/accelerate/single_gpu.yaml scripts/train.py \\
        configs/gemma3-270m/train.yaml --train_file outputs/choice/train.parquet \\
        --train_sampling_strategy sequential --logging_steps 20 --max_length 512 --learning_rate 6e-4 \\
        --output_dir outputs/choice/rate 2> rate.log
    python -m benchmarks.default_judge.settings "rate 6e-4=rate.log" ...

Each battle is read before it is trained on, so the loss is that of new battles, and two runs differ by their settings
alone. It prints the table of docs/results.md and writes benchmarks/results/default_judge_settings.json.

The runs of the table were made when the recipe had --lora_r 16 --lora_alpha 32 --freeze_layers 6. `format_rounds` makes
the table of longer runs, of three rounds over the same battles, with the command of docs/results.md and the flags that
are recorded with their losses in benchmarks/results/default_judge_rounds.json.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import REPOSITORY
from modeling.evaluation.text_report import format_estimate

RESULTS = REPOSITORY / "benchmarks" / "results" / "default_judge_settings.json"
ROUNDS = REPOSITORY / "benchmarks" / "results" / "default_judge_rounds.json"
LOSS = re.compile(r"\{'loss': '([^']+)'")
LOGGING_STEPS = 20
# First and last step of each part of the curriculum, without the steps that lie in two parts.
PARTS = {"easy pairs": (1, 120), "hard pairs": (141, 300), "mixture": (321, 560), "mixture, later": (561, 700)}
# The same of the longer runs, of 32 battles a step; their losses are of every five steps.
ROUND_PARTS = {
    "easy pairs": (1, 60),
    "hard pairs": (66, 155),
    "first round": (161, 375),
    "second": (381, 600),
    "third": (606, 825),
}


def read_losses(log: str) -> list[float]:
    """Returns the mean loss of each `LOGGING_STEPS` steps from a training log; a ValueError if there is none."""
    losses = [float(loss) for loss in LOSS.findall(log)]
    if not losses:
        raise ValueError("Log: expected losses, as in {'loss': '0.5'}; found none. Give what train.py wrote to stderr.")
    return losses


def average_part(losses: Sequence[float], first: int, last: int, every: int = LOGGING_STEPS) -> float | None:
    """Returns the mean loss from one step to another, or None if the run ended before.

    Args:
        losses: Each of `every` steps.
        first: The first step, counted from 1; it begins such a group, and `last` ends one.
    """
    part = losses[(first - 1) // every : last // every]
    return sum(part) / len(part) if len(losses) * every >= last else None


def format_settings(losses: Mapping[str, Sequence[float]]) -> str:
    """Returns a Markdown table with a row per run."""
    names = [f"{name}, steps {first} to {last}" for name, (first, last) in PARTS.items()]
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for run, values in losses.items():
        means = [average_part(values, *steps) for steps in PARTS.values()]
        lines.append(f"| {run} | {' | '.join('' if mean is None else f'{mean:.3f}' for mean in means)} |")
    return "\n".join(lines)


def format_rounds(runs: Mapping[str, Mapping]) -> str:
    """Returns a Markdown table with a row per run, by its flags: losses, and accuracies on held-out battles."""
    lines = [f"| | {' | '.join(ROUND_PARTS)} | 547 held-out votes | 252 held-out demo battles |"]
    lines.append("|---" * (3 + len(ROUND_PARTS)) + "|")
    for flags, run in runs.items():
        means = [average_part(run["losses_of_5_steps"], *steps, every=5) for steps in ROUND_PARTS.values()]
        scores = [format_estimate(run["held_out"][name]) if "held_out" in run else "" for name in ("votes", "demo")]
        cells = [f"`{flags}`", *("" if mean is None else f"{mean:.3f}" for mean in means), *scores]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="Each as <name>=<log file>.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if unnamed := [run for run in arguments.runs if "=" not in run]:
        parser.error(f"expected <name>=<log file>; found {', '.join(unnamed)}.")
    runs = [run.rpartition("=") for run in arguments.runs]
    losses = {name: read_losses(Path(log).read_text(encoding="utf-8")) for name, _, log in runs}
    print(format_settings(losses))
    arguments.output.write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
