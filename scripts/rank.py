"""Ranks the answers to each prompt with a judge: scores with intervals, and the probability of being the best.

python scripts/rank.py                                                  # configs/demo/rank.yaml
python scripts/rank.py --input answers.parquet --judge default --output_dir outputs/ranked
python scripts/rank.py --input answers.parquet --judge default --method active --budget 0.3 --output_dir outputs/ranked

An interrupted run continues with the same command: what was read is kept until the rankings are written.
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import logging
import shutil
from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.parsing import parse_arguments
from modeling.settings.reading_arguments import RankArguments

logger = logging.getLogger("bothways.rank")

PROGRESS = ".bothways-rank-progress"


def main() -> None:
    (arguments,) = parse_arguments(RankArguments, verb="rank")
    # Imported here because torch and transformers take seconds; a mistake on the command line is reported before that.
    from accelerate import PartialState

    from modeling.data.answer_sets import load_answer_sets
    from modeling.judging.judge import Judge
    from modeling.judging.provenance import describe_passes
    from modeling.judging.tournament import RANKINGS_FILE, write_rankings
    from modeling.runtime.files import check_writable

    state = PartialState(cpu=arguments.use_cpu)
    output = Path(arguments.output_dir)
    check_writable("--output_dir", output / RANKINGS_FILE, {"--input": [arguments.input]})
    answer_sets = load_answer_sets(arguments.input)
    judge = Judge.from_pretrained(arguments.judge, **arguments.loading)
    rankings = judge.rank_all(
        answer_sets,
        method=arguments.method,
        budget=arguments.budget,
        readings=arguments.readings,
        calibrated=arguments.calibrated,
        tokens_per_batch=arguments.tokens_per_batch,
        progress_dir=output / PROGRESS,
    )
    if state.is_main_process:
        calibration = judge.find_calibration(arguments.readings) if arguments.calibrated else None
        provenance = describe_passes(judge, calibration, arguments.input, arguments.readings)
        made = {"method": arguments.method, "budget": arguments.budget_or_default}
        path = write_rankings(output, rankings, provenance | made)
        shutil.rmtree(output / PROGRESS, ignore_errors=True)
        logger.info(f"{len(rankings)} rankings from {sum(each.passes for each in rankings)} passes. Written: {path}")


if __name__ == "__main__":
    run_script(main)
