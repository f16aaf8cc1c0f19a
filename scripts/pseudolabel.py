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
from datasets import Dataset
from tqdm.auto import tqdm

from modeling.battles import iterate_battles
from modeling.checks import Fault
from modeling.duplicates import DuplicateIndex
from modeling.files import check_writable
from modeling.judge import Judge
from modeling.launch import call_on_main, run_script
from modeling.parsing import parse_arguments
from modeling.prediction_arguments import PseudolabelArguments
from modeling.pseudolabels import PartFolder, describe_judge, describe_training, label_battles

logger = get_logger("bothways.pseudolabel")


def main() -> None:
    (arguments,) = parse_arguments(PseudolabelArguments, verb="pseudolabel")
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
            f"says that it was made with: {describe_training(judge)}"
        )
    made_by = describe_judge(judge, arguments.readings, arguments.calibrated)
    progress = output.with_name(f".{output.name}.progress")
    parts = PartFolder(progress, call_on_main(PartFolder.list_finished, progress))
    left_out = {"have a prompt of --exclude": Fault(), "have no sure answer (--min_confidence)": Fault()}
    pool = iterate_battles(arguments.battles, chunk_rows=arguments.rows_per_part, **arguments.row_policy)
    with tqdm(total=num_battles, unit="battles", desc="Pool", disable=not state.is_main_process) as bar:
        for battles in pool:
            kept = drop_known(battles, excluded)
            label_part(arguments, judge, kept, parts, made_by)
            if state.is_main_process:
                for fault, before, after in zip(
                    left_out.values(), (battles["id"], kept["id"]), (set(kept["id"]), parts.list_ids()), strict=True
                ):
                    for id in (id for id in before if id not in after):
                        fault.add(id, None)
            bar.update(len(battles))
    if state.is_main_process:
        count = parts.join(output)
        shutil.rmtree(progress, ignore_errors=True)
        for what, fault in left_out.items():
            if fault.count:
                logger.warning(f"{arguments.battles}: left out {fault.count} of {num_battles} that {what}: {fault}")
        logger.info(f"{count} of {num_battles} battles labelled: {output}")


def check_pool(arguments: PseudolabelArguments) -> int:
    """Number of battles of the pool, all of which were read and checked, so that no bad row is met after hours."""
    return sum(map(len, iterate_battles(arguments.battles, **arguments.row_policy)))


def index_prompts(arguments: PseudolabelArguments) -> DuplicateIndex:
    """The prompts that must not be among the labelled ones."""
    index = DuplicateIndex()
    policy = {"schema": arguments.exclude_schema, "bad_row_policy": arguments.bad_row_policy, "blank_policy": "keep"}
    for file in arguments.exclude or ():
        for battles in iterate_battles(file, **policy):
            index.add(battles["prompt"][:])
    return index


def drop_known(battles: Dataset, excluded: DuplicateIndex) -> Dataset:
    """The battles whose prompts are not among the excluded ones."""
    found = excluded.find(battles["prompt"][:])
    return battles.select([row for row, duplicates in enumerate(found) if not duplicates])


def label_part(
    arguments: PseudolabelArguments, judge: Judge, battles: Dataset, parts: PartFolder, made_by: dict[str, str]
) -> None:
    """Writes the next part, unless an earlier run did."""
    settings = {name: value for name, value in made_by.items() if name != "judged_on"}
    settings |= {name: vars(arguments)[name] for name in ("min_confidence", "tokens_per_batch", "dtype", "merge")}
    if not parts.begin(battles, settings):
        return
    verdicts = judge.predict(
        battles,
        readings=arguments.readings,
        calibrated=arguments.calibrated,
        tokens_per_batch=arguments.tokens_per_batch,
        progress_dir=parts.folder,
    )
    if PartialState().is_main_process:
        parts.write(label_battles(battles, verdicts, arguments.min_confidence), made_by)


if __name__ == "__main__":
    run_script(main)
