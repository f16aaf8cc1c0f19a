"""Predicts which answer people prefer, by averaging the members of a judge.

python scripts/predict.py                                           # configs/demo/predict.yaml
python scripts/predict.py --battles test.parquet --judge outputs/demo/ab outputs/demo/ba --output_dir outputs/p
accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 scripts/predict.py --readings own
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import logging
import shutil
import time
from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.arguments import PredictArguments
from modeling.settings.parsing import parse_arguments

logger = logging.getLogger("bothways.predict")

PROGRESS = ".bothways-progress"


def main() -> None:
    start = time.monotonic()
    (arguments,) = parse_arguments(PredictArguments, verb="predict")
    # Imported here because torch and transformers take seconds; a mistake on the command line is reported before that.
    from accelerate import PartialState

    from modeling.data.battles import hide_prompts, load_battles
    from modeling.judging.cascade import load_judges
    from modeling.judging.predictions import format_accuracy, write_verdicts
    from modeling.judging.provenance import describe_predictions
    from modeling.judging.time_budget import TimeBudget

    state = PartialState(cpu=arguments.use_cpu)
    battles = load_battles(arguments.battles, **arguments.row_policy)
    if arguments.hide_prompts:
        battles = hide_prompts(battles)
    judge = load_judges(arguments.judge, arguments.cascade, arguments.cascade_shares, **arguments.loading)
    output = Path(arguments.output_dir)
    options = {
        "readings": arguments.readings,
        "calibrated": arguments.calibrated,
        "second_reading": arguments.second_reading,
        "tokens_per_batch": arguments.tokens_per_batch,
        "progress_dir": output / PROGRESS,
    }
    if arguments.time_budget:
        options["time_budget"] = TimeBudget.from_duration(arguments.time_budget, start)
    loaded = time.monotonic()
    verdicts = (judge.predict_folds if arguments.folds else judge.predict)(battles, **options)
    seconds = time.monotonic() - loaded
    if state.is_main_process:
        logger.info(f"{len(verdicts)} battles in {seconds:.1f} s")
        provenance = describe_predictions(
            judge, verdicts, arguments.battles, arguments.readings, hide_prompts=arguments.hide_prompts
        )
        paths = write_verdicts(output, verdicts, provenance)
        shutil.rmtree(output / PROGRESS, ignore_errors=True)
        if "label" in battles.column_names and len(battles):
            print(format_accuracy(verdicts, battles))
        logger.info(f"Written: {', '.join(str(path) for path in paths)}")


if __name__ == "__main__":
    run_script(main)
