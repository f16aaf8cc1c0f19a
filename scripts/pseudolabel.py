"""Labels battles with a judge's probabilities, so that train.py can learn from battles that nobody voted on.

python scripts/pseudolabel.py                                       # configs/demo/pseudolabel.yaml
python scripts/pseudolabel.py --battles pool.parquet --judge outputs/demo/ab outputs/demo/ba --output soft.parquet \
    --exclude train.parquet test.parquet
accelerate launch --config_file configs/accelerate/ddp.yaml scripts/pseudolabel.py --min_confidence 0.95

The pool may be of any size: it is checked once from end to end, and then read, labelled and written in parts. The same
command, given again after a crash, goes on where it was.
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import shutil
from pathlib import Path

from accelerate import PartialState
from accelerate.logging import get_logger
from tqdm.auto import tqdm

from modeling.arguments import PseudolabelArguments, parse_arguments
from modeling.battles import iterate_battles
from modeling.duplicates import DuplicateIndex
from modeling.judge import Judge
from modeling.launch import call_on_main, run_script
from modeling.pseudolabels import PartFolder, describe_judge, label_battles

logger = get_logger("bothways.pseudolabel")


def main() -> None:
    (arguments,) = parse_arguments(PseudolabelArguments, verb="pseudolabel")
    state = PartialState(cpu=arguments.use_cpu)
    output = Path(arguments.output)
    progress = output.with_name(f".{output.name}.progress")
    num_battles = call_on_main(check_pool, arguments)
    excluded = index_prompts(arguments)
    judge = Judge.from_pretrained(arguments.judge)
    made_by = describe_judge(judge, arguments.readings)
    settings = {name: value for name, value in made_by.items() if name != "judged_on"}
    settings |= {"min_confidence": arguments.min_confidence, "tokens_per_batch": arguments.tokens_per_batch}
    parts = PartFolder(progress, call_on_main(PartFolder.list_finished, progress))
    num_excluded = 0
    pool = iterate_battles(arguments.battles, chunk_rows=arguments.rows_per_part, **arguments.row_policy)
    with tqdm(total=num_battles, unit="battles", desc="Pool", disable=not state.is_main_process) as bar:
        for battles in pool:
            found = excluded.find(battles["prompt"][:])
            kept = battles.select([row for row, duplicates in enumerate(found) if not duplicates])
            num_excluded += len(battles) - len(kept)
            if parts.begin(kept, settings):
                verdicts = judge.predict(
                    kept,
                    readings=arguments.readings,
                    tokens_per_batch=arguments.tokens_per_batch,
                    progress_dir=progress,
                )
                if state.is_main_process:
                    parts.write(label_battles(kept, verdicts, arguments.min_confidence), made_by)
            bar.update(len(battles))
    if state.is_main_process:
        count = parts.join(output)
        shutil.rmtree(progress, ignore_errors=True)
        logger.info(f"{num_excluded} of {num_battles} battles left out: their prompts stand in --exclude")
        logger.info(f"{count} of {num_battles} battles labelled: {output}")


def check_pool(arguments: PseudolabelArguments) -> int:
    """Number of battles of the pool, all of which were read and checked, so that no bad row is met after hours."""
    return sum(map(len, iterate_battles(arguments.battles, **arguments.row_policy)))


def index_prompts(arguments: PseudolabelArguments) -> DuplicateIndex:
    """The prompts that must not be among the labelled ones."""
    index = DuplicateIndex()
    for file in arguments.exclude or ():
        for battles in iterate_battles(file, blank_policy="keep"):
            index.add(battles["prompt"][:])
    return index


if __name__ == "__main__":
    run_script(main)
