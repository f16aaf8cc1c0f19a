"""Settings of the scripts that read battles with a judge: predict.py, pseudolabel.py and evaluate.py.

Only scripts import this module, as modeling/arguments.py.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from modeling.choices import CALIBRATIONS
from modeling.options import ReadingArguments, option, require
from modeling.schemas import SCHEMA_NAMES

SECONDS = {"s": 1, "m": 60, "h": 3600, "": 1}


def parse_duration(flag: str, text: str) -> float:
    """Seconds of a duration such as "4.75h", "30m", "90s" or "90"; a ValueError if it is none, or not above 0."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or not (seconds := float(found[1]) * SECONDS[found[2]]):
        raise ValueError(f"{flag} {text}: expected a time above 0, such as 4.75h, 30m or 90s.")
    return seconds


@dataclass
class PredictArguments(ReadingArguments):
    """Reads battles with a judge and writes its verdicts."""

    own_data: ClassVar[tuple[str, ...]] = (*ReadingArguments.own_data, "cascade")

    output_dir: str = option(None, "Folder for predictions.parquet and submission.csv.", group="output")
    folds: bool = option(
        False,
        "Each battle by the members that did not train on it: --battles is what they had as --train_file.",
        group="passes",
    )
    second_reading: float = option(
        1.0, "Share of the battles that get all readings: those whose first one is nearest 1/2."
    )
    cascade: list[str] | None = option(
        None,
        "Judges of growing cost, each a member or a judge folder: they decide where those before are in doubt.",
        path="judge",
    )
    cascade_shares: list[float] | None = option(None, "Share of the battles that each judge of --cascade reads.")
    time_budget: str | None = option(
        None, "Such as 4.75h: as many second readings and later judges as there is time for, from the script's start."
    )

    def __post_init__(self):
        require(self, "battles", "judge", "output_dir")
        if bool(self.cascade) != bool(self.cascade_shares):
            raise ValueError("--cascade and --cascade_shares: expected both or neither; found one. Give both.")
        if self.folds and (self.cascade or self.time_budget):
            raise ValueError("--folds: expected without --cascade and --time_budget; found one of them. Leave it out.")
        if self.time_budget:
            parse_duration("--time_budget", self.time_budget)


@dataclass
class PseudolabelArguments(ReadingArguments):
    """Labels battles with a judge's probabilities, to train on."""

    output: str = option(None, "Parquet file to write: the battles, with a label.", group="output")
    exclude: list[str] | None = option(
        None,
        "Training and evaluation files: battles with nearly one of their prompts are left out.",
        group="data",
        path="battles",
    )
    exclude_schema: str = option(
        "auto", "Schema of the files of --exclude, which --schema is not about.", choices=SCHEMA_NAMES
    )
    rows_per_part: int = option(4096, "Battles that are read, labelled and written at a time.", group="output")
    min_confidence: float | None = option(
        None, "Hard labels instead, for the battles whose likelier answer has at least this probability; no others."
    )

    def __post_init__(self):
        require(self, "battles", "judge", "output")
        if self.min_confidence is not None and not 0.5 <= self.min_confidence <= 1:
            raise ValueError(f"--min_confidence {self.min_confidence}: expected 0.5 to 1.")
        if not self.output.endswith(".parquet"):
            raise ValueError(f"--output {self.output}: expected a file ending in .parquet; give it that ending.")
        if self.rows_per_part < 1:
            raise ValueError(f"--rows_per_part {self.rows_per_part}: expected 1 or more.")


@dataclass
class EvaluateArguments(ReadingArguments):
    """Scores predictions against outcomes: a report with intervals, a page, and pictures."""

    own_data: ClassVar[tuple[str, ...]] = (*ReadingArguments.own_data, "predictions")

    output_dir: str = option(None, "Folder for report.json, report.html and figures/.", group="output")
    predictions: str | None = option(
        None,
        "The predictions.parquet of --battles; a --judge reads them anew instead.",
        group="data",
        path="predictions",
    )
    against: str | None = option(
        None, "Another judge's predictions.parquet of the same battles, to compare with.", path="predictions"
    )
    train_file: str | None = option(
        None, "Battles that the judge was trained on, for the baselines that learn.", path="battles"
    )
    draws: int = option(1000, "Draws of the bootstrap of prompts that the intervals come from.", group="report")
    seed: int = option(0, "Seed of the draws.")
    show_battles: int = option(0, "So many of the most wrong battles are shown, with their texts, in report.html.")
    calibrate: str | None = option(
        None, "Calibrate on --calibrate_battles before scoring.", choices=CALIBRATIONS, group="calibration"
    )
    calibrate_battles: str | None = option(
        None,
        "The battles to calibrate on: not trained on; those with a scored one's prompt are left out.",
        path="battles",
    )
    calibrate_predictions: str | None = option(
        None,
        "Their predictions, such as out-of-fold ones (predict.py --folds true); a --judge reads them if left out.",
        path="predictions",
    )
    save_calibration: bool = option(
        False, "Keep it in the judge.json around the members of --judge: their folder is then a calibrated judge."
    )

    def __post_init__(self):
        require(self, "battles", "output_dir")
        if not self.predictions and not self.judge:
            raise ValueError("Expected --predictions or --judge; found neither. scripts/predict.py writes predictions.")
        self._check_calibration()
        if self.draws < 100 or self.show_battles < 0:
            found = f"--draws {self.draws} --show_battles {self.show_battles}"
            raise ValueError(f"{found}: expected 100 draws or more, and no fewer battles than 0.")

    def _check_calibration(self) -> None:
        if bool(self.calibrate) != bool(self.calibrate_battles):
            raise ValueError("--calibrate and --calibrate_battles: expected both or neither; found one. Give both.")
        if self.calibrate and not (self.calibrate_predictions or self.judge):
            raise ValueError("--calibrate: expected --calibrate_predictions or a --judge; found neither. Give one.")
        if (self.calibrate_predictions or self.save_calibration) and not self.calibrate:
            raise ValueError("--calibrate_predictions and --save_calibration: expected --calibrate too; found none.")
        if self.save_calibration and not self.judge:
            raise ValueError("--save_calibration: expected the --judge to keep it in; found none. Name it.")
