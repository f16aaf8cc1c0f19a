"""The pool that pseudolabel.py labels: checked from end to end, cleared of known prompts, labelled part by part."""

from accelerate import PartialState
from datasets import Dataset

from modeling.battles import iterate_battles
from modeling.duplicates import DuplicateIndex
from modeling.judge import Judge
from modeling.prediction_arguments import PseudolabelArguments
from modeling.pseudolabels import PartFolder, label_battles


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
