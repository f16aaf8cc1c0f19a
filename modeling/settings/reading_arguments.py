"""The settings of the scripts that make a judge read a file: predict.py, rank.py, pseudolabel.py and select.py.

This module must not load torch or read files.
"""

import math
import re
from dataclasses import dataclass, fields
from typing import ClassVar

from modeling.data.schemas import SCHEMA_NAMES
from modeling.runtime.choices import (
    ANNOTATION_FORMATS,
    BUDGETED,
    DEFAULT_BUDGET,
    DEFAULT_RANK_METHOD,
    RANK_METHODS,
    SELECTIONS,
    SUBMISSIONS,
)
from modeling.settings.arguments import JudgeArguments, ReadingArguments, option, read_number, require

SECONDS = {"s": 1, "m": 60, "h": 3600, "": 1}


def parse_duration(flag: str, text: str) -> float:
    """Returns the seconds of a duration such as "4.75h", "30m", "90s" or "90".

    Raises:
        ValueError: If the text is not a duration above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or not (seconds := float(found[1]) * SECONDS[found[2]]):
        raise ValueError(f"{flag} {text}: expected a time above 0, such as 4.75h, 30m or 90s.")
    return seconds


@dataclass
class PredictArguments(JudgeArguments):
    """Predicts battles with a judge and writes its verdicts."""

    own_data: ClassVar[tuple[str, ...]] = (*JudgeArguments.own_data, "cascade", "blend")

    output_dir: str = option(None, "Folder for predictions.parquet and submission.csv.", group="output")
    submission: str | None = option(
        None,
        "Columns of submission.csv. wsdm: id, winner. lmsys: id, winner_model_a, winner_model_b, winner_tie. Default: "
        "lmsys if the judge predicts ties, otherwise wsdm.",
        choices=SUBMISSIONS,
    )
    tie_share: float = option(
        1 / 3, "With --submission lmsys: winner_tie of every battle, for a judge that does not predict ties."
    )
    blend: list[str] | None = option(
        None,
        "Instead of --judge: predictions.parquet files of --battles, each as <file>=<weight> or <file>, whose weighted "
        "mean is written.",
        group="data",
    )
    folds: bool = option(
        False,
        "Out-of-fold prediction: each battle is read only by members that did not train on it. --battles must be "
        "their --train_file.",
        group="passes",
    )
    hide_prompts: bool = option(
        False,
        "Read the answers alone, with every prompt replaced by '?'. evaluate.py --answers_alone compares the result.",
    )
    second_reading: float = option(
        1.0, "Share of the battles that get every pass: those whose first pass is most uncertain."
    )
    cascade: list[str] | None = option(
        None,
        "Judges in order of growing cost, each a member or judge folder. Each later judge decides the battles on which "
        "the earlier ones are most uncertain.",
        path="judge",
    )
    cascade_shares: list[float] | None = option(None, "Share of the battles that each judge of --cascade reads.")
    dry_run: bool = option(
        False, "Print the tokens and the memory that the prediction will take, then stop.", group="output"
    )
    time_budget: str | None = option(
        None,
        "Time limit from the start of the process, such as 4.75h. Passes that do not fit are skipped; a battle without "
        "any pass gets even odds.",
    )

    def __post_init__(self):
        super().__post_init__()
        require(self, "battles", *([] if self.blend else ["judge"]), "output_dir")
        self._check_output()
        if bool(self.cascade) != bool(self.cascade_shares):
            raise ValueError("--cascade and --cascade_shares: expected both or neither; found one. Give both.")
        others = (self.cascade, self.blend, self.folds, self.time_budget, self.second_reading != 1)
        if self.dry_run and any(others):
            raise ValueError(
                "--dry_run: expected without --cascade, --blend, --folds, --time_budget and --second_reading; found "
                "one of them. Leave it out."
            )
        if self.folds and self.hide_prompts:
            raise ValueError("--folds: expected without --hide_prompts, as folds go by prompt; found both.")
        if self.folds and (self.cascade or self.time_budget):
            raise ValueError("--folds: expected without --cascade and --time_budget; found one of them. Leave it out.")
        if self.time_budget:
            parse_duration("--time_budget", self.time_budget)

    @property
    def blend_weights(self) -> dict[str, float]:
        """The weight of each file of --blend.

        Raises:
            ValueError: If a weight is not a number above 0, or a file is named twice.
        """
        weights: dict[str, float] = {}
        for word in self.blend or ():
            # Only the last "=" separates: a folder's name may hold others. Without one the weight is 1.
            path, _, weight = word.rpartition("=") if "=" in word else (word, "", "1")
            number = read_number(weight)
            if not path or path in weights or not 0 < number < math.inf:
                raise ValueError(
                    f"--blend {' '.join(self.blend)}: expected <file>=<weight>, each file once and each weight above "
                    f"0; found {word!r}."
                )
            weights[path] = number
        return weights

    def _check_output(self) -> None:
        """Checks --submission, --tie_share and --blend."""
        if not 0 <= self.tie_share < 1:
            raise ValueError(f"--tie_share {self.tie_share}: expected a share from 0 to below 1.")
        defaults = {each.name: each.default for each in fields(self)}
        if self.submission != "lmsys" and self.tie_share != defaults["tie_share"]:
            raise ValueError("--tie_share: expected with --submission lmsys, the only one with ties; found without it.")
        if not self.blend:
            return
        reading = ("readings", "calibrated", "second_reading", "tokens_per_batch", "dtype", "merge", "skip_probes")
        names = ("judge", "cascade", "folds", "hide_prompts", "time_budget", *reading)
        if found := [f"--{name}" for name in names if vars(self)[name] not in (defaults[name], None)]:
            raise ValueError(f"--blend: expected no {', '.join(found)}, as no judge reads; leave it out.")
        _ = self.blend_weights  # raises if one is malformed


def read_budget(method: str, budget: float | None) -> float:
    """Returns the fraction of all pairs of answers that --method may read within --budget.

    Raises:
        ValueError: If the method is unknown or has no budget, or the budget is no share.
    """
    if method not in RANK_METHODS:
        raise ValueError(f"--method: expected one of {', '.join(RANK_METHODS)}; found {method!r}.")
    if budget is None:
        return DEFAULT_BUDGET
    if method not in BUDGETED:
        raise ValueError(
            f"--budget {budget}: expected with --method {' or '.join(BUDGETED)}, which choose their pairs within it; "
            f"found {method}. Leave it out."
        )
    if not 0 < budget <= 1:
        raise ValueError(f"--budget {budget}: expected a fraction of all pairs, above 0 and up to 1.")
    return budget


@dataclass
class RankArguments(ReadingArguments):
    """Ranks the answers to each prompt with a judge."""

    own_data: ClassVar[tuple[str, ...]] = ("input", "judge")

    input: str = option(
        None,
        "Answer sets: parquet, csv or jsonl with the columns id, prompt and responses, a list of 2 to 64 texts.",
        group="data",
        path="battles",
    )
    method: str = option(
        DEFAULT_RANK_METHOD,
        "Pairs of answers to read. all: every pair. active: a knock-out, then the most informative pairs. swiss: a "
        "knock-out, then pairs with the closest scores. knockout: winners meet winners; it finds only the best answer.",
        choices=RANK_METHODS,
        group="passes",
    )
    budget: float | None = option(
        None,
        "With active and swiss: fraction of all pairs that may be read. n answers take at least n - 1 pairs. "
        f"Default: {DEFAULT_BUDGET}.",
    )
    output_dir: str = option(None, "Folder for rankings.parquet.", group="output")

    def __post_init__(self):
        require(self, "input", "judge", "output_dir")
        _ = self.budget_or_default  # raises if --method and --budget do not go together

    @property
    def budget_or_default(self) -> float:
        """The fraction of all pairs that may be read, see `read_budget`."""
        return read_budget(self.method, self.budget)


@dataclass
class PseudolabelArguments(JudgeArguments):
    """Labels battles with a judge's probabilities, as training data."""

    output: str = option(None, "Parquet file to write: the battles with a label.", group="output")
    exclude: list[str] | None = option(
        None,
        "Training and evaluation files. Battles whose prompt is a near-duplicate of one of theirs are left out.",
        group="data",
        path="battles",
    )
    exclude_schema: str = option(
        "auto", "Schema of the --exclude files; --schema does not apply to them.", choices=SCHEMA_NAMES
    )
    rows_per_part: int = option(4096, "Battles to read, label and write at a time.", group="output")
    min_confidence: float | None = option(
        None, "Write hard labels, and only for battles whose likelier answer has at least this probability."
    )

    def __post_init__(self):
        super().__post_init__()
        require(self, "battles", "judge", "output")
        if self.min_confidence is not None and not 0.5 <= self.min_confidence <= 1:
            raise ValueError(f"--min_confidence {self.min_confidence}: expected 0.5 to 1.")
        if not self.output.endswith(".parquet"):
            raise ValueError(f"--output {self.output}: expected a file ending in .parquet; give it that ending.")
        if self.rows_per_part < 1:
            raise ValueError(f"--rows_per_part {self.rows_per_part}: expected 1 or more.")


@dataclass
class SelectArguments(JudgeArguments):
    """Chooses the battles that people should label next, writes them for a labelling tool, and reads the votes back."""

    own_data: ClassVar[tuple[str, ...]] = (*JudgeArguments.own_data, "predictions", "annotations")

    output_dir: str = option(
        None,
        "Folder for selected.parquet and the file for annotators or, with --annotations, for labelled.parquet and "
        "agreement.json.",
        group="output",
    )
    format: str = option("csv", "Labelling tool to write the file for.", choices=ANNOTATION_FORMATS)
    predictions: str | None = option(
        None,
        "The predictions.parquet of --battles. Without it, --judge predicts them. With --annotations: compare the "
        "annotators with it.",
        group="data",
        path="predictions",
    )
    num_battles: int = option(500, "Battles to choose.", group="selection")
    rank_by: str = option(
        "uncertainty",
        "Score to choose by: uncertainty (entropy of the verdict), disagreement (between passes), or their product.",
        choices=SELECTIONS,
    )
    annotations: list[str] | None = option(
        None,
        "Read back annotated files (csv, or JSON exports of Argilla or Label Studio) instead of choosing battles.",
        path="annotations",
    )
    draws: int = option(1000, "Bootstrap draws of prompts for the intervals of agreement.")

    def __post_init__(self):
        super().__post_init__()
        require(self, "battles", "output_dir")
        if not (self.annotations or self.predictions or self.judge):
            raise ValueError(
                "Expected --predictions or --judge, to choose battles by, or --annotations, to read back; found none."
            )
        if self.num_battles < 1 or self.draws < 100:
            found = f"--num_battles {self.num_battles} --draws {self.draws}"
            raise ValueError(f"{found}: expected 1 battle or more, and 100 draws or more.")
