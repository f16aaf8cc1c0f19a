"""The settings of evaluate.py, whose `help` texts are what --help prints.

Combinations of flags are checked here, with messages that name the flags as typed. This module must not load torch or
read files.
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from modeling.runtime.choices import BENCHMARKS, CALIBRATIONS, HIGHER_IS_BETTER, METRICS
from modeling.settings.arguments import BattleArguments, JudgeArguments, option, parse_pairs, read_number, require


@dataclass
class EvaluateArguments(JudgeArguments):
    """Scores predictions against outcomes: metrics with intervals, an HTML report, and plots."""

    own_data: ClassVar[tuple[str, ...]] = (*JudgeArguments.own_data, "predictions", "benchmark")

    output_dir: str = option(None, "Folder for report.json, report.html and figures/.", group="output")
    benchmark: str | None = option(
        None,
        f"Score a public benchmark by its authors' rules, in place of --battles: {', '.join(BENCHMARKS)}.",
        choices=tuple(BENCHMARKS),
        group="data",
    )
    benchmark_file: str | None = option(
        None,
        "File or folder of --benchmark, as its authors publish it (.json too), or a Hub data set. Default: the "
        "authors' data set on the Hub.",
        path="benchmark",
    )
    predictions: str | None = option(
        None,
        "The predictions.parquet of --battles. Without it, --judge predicts them.",
        group="data",
        path="predictions",
    )
    against: str | None = option(
        None, "Another judge's predictions.parquet of the same battles, to compare with.", path="predictions"
    )
    votes: str | None = option(
        None,
        "People's votes on a random part of --battles: labelled battles with the same ids. Accuracy and all other "
        "metrics are then those on the votes; win rates and ratings use the judge's verdicts on all --battles too.",
        path="battles",
    )
    train_file: str | None = option(
        None, "The judge's training battles, for baselines that need training.", path="battles"
    )
    answers_alone: str | None = option(
        None,
        "Add the judge without the prompts as a baseline: its predictions.parquet by predict.py --hide_prompts true, "
        "or the word judge, which makes --judge read the battles a second time.",
    )
    by: list[str] | None = option(None, "Further columns of --battles to tabulate accuracy and log loss by.")
    style_control: bool = option(
        False,
        "Also write style_controlled.parquet, probabilities with the effect of length and markdown removed, and score "
        "them.",
    )
    draws: int = option(1000, "Bootstrap draws of prompts for the intervals.", group="report")
    seed: int = option(0, "Seed of the bootstrap.")
    fail_under: list[str] | None = option(
        None,
        "Exit with code 1 after writing the report if a metric is worse than its bound, each as <metric>=<bound>: "
        f"accuracy=0.6 log_loss=0.69. Metrics: {', '.join(METRICS)}; except for {' and '.join(HIGHER_IS_BETTER)}, "
        "worse means higher.",
    )
    show_battles: int = option(0, "Number of worst-predicted battles to show in report.html, with their texts.")
    calibrate: str | None = option(
        None, "Calibrate on --calibrate_battles before scoring.", choices=CALIBRATIONS, group="calibration"
    )
    calibrate_ties: bool = option(
        False,
        "With --calibrate: let a judge of two labels predict ties, by one number that is fitted on the ties among "
        "--calibrate_battles. A judge of three labels predicts them anyway.",
    )
    calibrate_battles: str | None = option(
        None,
        "Battles to calibrate on. They must not be training battles; those with a scored battle's prompt are left out.",
        path="battles",
    )
    calibrate_predictions: str | None = option(
        None,
        "Predictions of --calibrate_battles, such as those of predict.py --folds true. Default: predicted by --judge.",
        path="predictions",
    )
    save_calibration: bool = option(
        False,
        "Save the calibration to judge.json in the folder of the --judge members, which makes it a calibrated judge.",
    )

    def __post_init__(self):
        super().__post_init__()
        require(self, *([] if self.benchmark else ["battles"]), "output_dir")
        self._check_benchmark()
        if not self.predictions and not self.judge:
            raise ValueError("Expected --predictions or --judge; found neither. scripts/predict.py writes predictions.")
        if self.answers_alone == "judge" and not self.judge:
            raise ValueError("--answers_alone judge: expected a --judge to read them; found none. Name it.")
        self._check_calibration()
        self.read_bounds()  # raises if one is malformed
        if self.draws < 100 or self.show_battles < 0:
            found = f"--draws {self.draws} --show_battles {self.show_battles}"
            raise ValueError(f"{found}: expected 100 draws or more, and no fewer battles than 0.")

    @property
    def source(self) -> str:
        """The battles, or the file or data set of the benchmark, that are scored."""
        return self.battles or self.benchmark_file or BENCHMARKS[self.benchmark]

    def _check_benchmark(self) -> None:
        """Raises a ValueError for flags that do not go with --benchmark."""
        if self.benchmark_file and not self.benchmark:
            raise ValueError("--benchmark_file: expected --benchmark too; found none. Say whose rules to score it by.")
        names = ["battles", "votes"] + [field.name for field in fields(BattleArguments)]
        defaults = {field.name: field.default for field in fields(self)}
        found = [f"--{name}" for name in names if vars(self)[name] != defaults[name]]
        if self.benchmark and found:
            raise ValueError(
                f"--benchmark: expected no {', '.join(found)}, as the benchmark says which rows it has and what they "
                "mean; found them. Leave them out, and name a local copy with --benchmark_file."
            )

    def read_bounds(self) -> dict[str, float]:
        """Returns the bounds of --fail_under by metric."""
        given = f"--fail_under {' '.join(self.fail_under or ())}"
        pairs = parse_pairs("--fail_under", self.fail_under or ())
        if unknown := [name for name in pairs if name not in METRICS]:
            raise ValueError(
                f"{given}: expected metrics among {', '.join(METRICS)}; found {', '.join(unknown)}. Correct the name."
            )
        bounds = {name: read_number(text) for name, text in pairs.items()}
        if wrong := [f"{name}={pairs[name]}" for name, bound in bounds.items() if not math.isfinite(bound)]:
            raise ValueError(
                f"{given}: expected a number for each metric; found {', '.join(wrong)}. Write accuracy=0.6."
            )
        return bounds

    def _check_calibration(self) -> None:
        if bool(self.calibrate) != bool(self.calibrate_battles):
            raise ValueError("--calibrate and --calibrate_battles: expected both or neither; found one. Give both.")
        if self.calibrate and not (self.calibrate_predictions or self.judge):
            raise ValueError("--calibrate: expected --calibrate_predictions or a --judge; found neither. Give one.")
        if (self.calibrate_predictions or self.save_calibration or self.calibrate_ties) and not self.calibrate:
            raise ValueError(
                "--calibrate_predictions, --calibrate_ties and --save_calibration: expected --calibrate too; found "
                "none."
            )
        if self.save_calibration and not self.judge:
            raise ValueError("--save_calibration: expected the --judge to keep it in; found none. Name it.")
