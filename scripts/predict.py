"""Predicts which answer people prefer, by averaging the members of a judge.

python scripts/predict.py                                           # configs/demo/predict.yaml
python scripts/predict.py --battles test.parquet --judge outputs/demo/ab outputs/demo/ba --output_dir outputs/p
python scripts/predict.py --battles test.parquet --blend p/predictions.parquet=2 q/predictions.parquet --output_dir r
accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 scripts/predict.py --readings own
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from modeling.runtime.startup import run_script
from modeling.settings.parsing import parse_arguments
from modeling.settings.reading_arguments import PredictArguments

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

logger = logging.getLogger("bothways.predict")

PROGRESS = ".bothways-progress"


def main() -> None:
    (arguments,) = parse_arguments(PredictArguments, verb="predict")
    # Imported here because torch and transformers take seconds; a mistake on the command line is reported before that.
    from accelerate import PartialState

    from modeling.data.battles import load_battles
    from modeling.data.outcomes import WITH_TIE
    from modeling.judging.blend import blend_predictions
    from modeling.judging.predictions import PREDICTIONS_FILE, build_submission, format_accuracy, write_verdicts
    from modeling.runtime.files import check_writable

    state = PartialState(cpu=arguments.use_cpu)
    battles = load_battles(arguments.battles, labels=WITH_TIE, **arguments.row_policy)
    output = Path(arguments.output_dir)
    if arguments.dry_run:
        needs = describe_needs(arguments, battles)
        if state.is_main_process:
            print(needs)
        return
    if arguments.blend:
        check_writable("--output_dir", output / PREDICTIONS_FILE, {"--blend": list(arguments.blend_weights)})
        verdicts, provenance = blend_predictions(arguments.blend_weights, battles, arguments.battles)
    else:
        verdicts, provenance = make_predictions(arguments, battles, output / PROGRESS)
    if state.is_main_process:
        submission = build_submission(verdicts, arguments.submission, arguments.tie_share)
        paths = write_verdicts(output, verdicts, provenance, submission)
        if not arguments.blend:  # a blend makes none: any belongs to an interrupted prediction
            shutil.rmtree(output / PROGRESS, ignore_errors=True)
        logger.info(f"Written: {', '.join(str(path) for path in paths)}")
        if "label" in battles.column_names and len(battles):
            print(format_accuracy(verdicts, battles))


def describe_needs(arguments: PredictArguments, battles: "Dataset") -> str:
    """Says what the prediction would take, without loading the judge."""
    from accelerate import PartialState

    from modeling.data.battles import hide_prompts
    from modeling.judging.dry_run import describe_prediction

    rows = (hide_prompts(battles) if arguments.hide_prompts else battles).to_list()
    settings = {name: vars(arguments)[name] for name in ("readings", "dtype", "merge", "tokens_per_batch")}
    return describe_prediction(arguments.judge, rows, PartialState().device, **settings)


def make_predictions(arguments: PredictArguments, battles: "Dataset", progress: Path) -> "tuple[DataFrame, dict]":
    """Lets the judge, or the cascade, read the battles; returns the verdicts and where they come from."""
    from modeling.data.battles import hide_prompts
    from modeling.judging.cascade import load_judges
    from modeling.judging.provenance import describe_predictions
    from modeling.judging.time_budget import TimeBudget, find_start

    if arguments.hide_prompts:
        battles = hide_prompts(battles)
    judge = load_judges(arguments.judge, arguments.cascade, arguments.cascade_shares, **arguments.loading)
    options = {
        "readings": arguments.readings,
        "calibrated": arguments.calibrated,
        "second_reading": arguments.second_reading,
        "tokens_per_batch": arguments.tokens_per_batch,
        "progress_dir": progress,
    }
    if arguments.time_budget:
        options["time_budget"] = TimeBudget.from_duration(arguments.time_budget, find_start())
    loaded = time.monotonic()
    verdicts = (judge.predict_folds if arguments.folds else judge.predict)(battles, **options)
    logger.info(f"{len(verdicts)} battles in {time.monotonic() - loaded:.1f} s")
    made = {"hide_prompts": arguments.hide_prompts}
    return verdicts, describe_predictions(judge, verdicts, arguments.battles, arguments.readings, **made)


if __name__ == "__main__":
    run_script(main)
