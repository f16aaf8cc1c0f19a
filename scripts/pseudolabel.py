"""Labels battles with a judge's probabilities, so that train.py can use battles without votes.

python scripts/pseudolabel.py                                       # configs/demo/pseudolabel.yaml
python scripts/pseudolabel.py --battles pool.parquet --judge outputs/demo/ab outputs/demo/ba --output soft.parquet \
    --exclude train.parquet test.parquet
accelerate launch --config_file configs/accelerate/ddp.yaml scripts/pseudolabel.py --min_confidence 0.95

The pool may have any size: every row is checked first, and then the pool is read, labelled and written in parts. After
a crash the same command resumes at the first unfinished part.
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import logging
import shutil
from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.parsing import parse_arguments
from modeling.settings.reading_arguments import PseudolabelArguments

logger = logging.getLogger("bothways.pseudolabel")


def main() -> None:
    (arguments,) = parse_arguments(PseudolabelArguments, verb="pseudolabel")
    # Imported here because torch and transformers take seconds; a mistake on the command line is reported before that.
    from accelerate import PartialState
    from tqdm.auto import tqdm

    from modeling.data.battles import iterate_battles
    from modeling.data.outcomes import WITH_TIE
    from modeling.data.reader import Fault
    from modeling.judging.judge import Judge
    from modeling.judging.pseudolabels import (
        PartFolder,
        check_pool,
        count_left_out,
        describe_judge,
        describe_training,
        drop_known,
        index_prompts,
        label_part,
    )
    from modeling.runtime.distributed import call_on_main
    from modeling.runtime.files import check_writable, name_progress

    state = PartialState(cpu=arguments.use_cpu)
    output = Path(arguments.output)
    read = {"--battles": [arguments.battles], "--exclude": arguments.exclude or []}
    call_on_main(check_writable, "--output", output, read)
    num_battles = call_on_main(check_pool, arguments)
    excluded = index_prompts(arguments)
    judge = Judge.from_pretrained(arguments.judge, **arguments.loading)
    if not arguments.exclude:
        logger.warning(
            "--exclude: expected the training and evaluation files; found none, so no battle is left out. The judge "
            f"was trained and evaluated on: {describe_training(judge)}"
        )
    made_by = describe_judge(judge, arguments.readings, arguments.calibrated)
    progress = name_progress(output)
    parts = PartFolder(progress, call_on_main(PartFolder.list_finished, progress))
    left_out = {"have a prompt of --exclude": Fault(), "are below --min_confidence": Fault()}
    excluded_ids, unsure_ids = left_out.values()
    pool = iterate_battles(
        arguments.battles, chunk_rows=arguments.rows_per_part, labels=WITH_TIE, **arguments.row_policy
    )
    with tqdm(total=num_battles, unit="battles", desc="Pool", disable=not state.is_main_process) as bar:
        for battles in pool:
            kept = drop_known(battles, excluded)
            label_part(arguments, judge, kept, parts, made_by)
            if state.is_main_process:
                count_left_out(excluded_ids, battles["id"], set(kept["id"]))
                count_left_out(unsure_ids, kept["id"], parts.list_ids())
            bar.update(len(battles))
    if state.is_main_process:
        count = parts.join(output)
        shutil.rmtree(progress, ignore_errors=True)
        for what, fault in left_out.items():
            if fault.count:
                logger.warning(f"{arguments.battles}: left out {fault.count} of {num_battles} that {what}: {fault}")
        logger.info(f"{count} of {num_battles} battles labelled: {output}")


if __name__ == "__main__":
    run_script(main)
