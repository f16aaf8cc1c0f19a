"""Battles on their way to annotators and back, from a judge's verdicts to labelled training data: what select.py does.

Which battles are chosen is decided in selection.py, and how files look is in data/annotation.py.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from modeling.data.annotation import label_battles, read_annotations, write_tasks
from modeling.data.near_duplicates import group_texts
from modeling.data.reader import Fault
from modeling.evaluation.agreement import measure_agreement
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.report import group_battles, halve_passes, read_passes
from modeling.evaluation.text_report import format_agreement
from modeling.judging.judge import Judge
from modeling.judging.predictions import PREDICTIONS_FILE, share_wins, write_predictions
from modeling.judging.provenance import describe_predictions
from modeling.judging.scoring import read_verdicts, run_judge
from modeling.judging.selection import score_battles, select_battles
from modeling.runtime.distributed import call_on_main
from modeling.runtime.files import check_writable, name_progress, replace_file, replace_folder, write_json
from modeling.runtime.logs import build_logger
from modeling.settings.reading_arguments import SelectArguments

logger = build_logger(__name__)

SELECTED_FILE, LABELLED_FILE, AGREEMENT_FILE = "selected.parquet", "labelled.parquet", "agreement.json"


def choose_battles(arguments: SelectArguments, battles: Dataset, is_main_process: bool) -> None:
    """Writes the battles with the highest scores, for the labelling tool and with their scores."""

    output = Path(arguments.output_dir)
    call_on_main(check_choice, arguments, output, len(battles))
    judge = None if arguments.predictions else Judge.from_pretrained(arguments.judge, **arguments.loading)
    verdicts = run_judge(arguments, judge, battles) if judge else read_verdicts(arguments.predictions, battles)
    if not is_main_process:
        return
    passes = list(halve_passes(read_passes(verdicts)).values())
    p_a = share_wins(verdicts)  # a tie is half a win, so that the choice does not depend on which answer is a
    scores = score_battles(p_a, np.reshape(passes, (len(passes), len(p_a))).T, arguments.rank_by)
    groups = group_texts(battles["prompt"][:])
    rows = select_battles(scores["score"].to_numpy(), battles["id"][:], groups, arguments.num_battles)
    chosen = battles.select(rows)
    with replace_folder(output, SELECTED_FILE) as folder:
        names = [path.name for path in write_tasks(folder, chosen, arguments.format)]
        if judge:
            provenance = describe_predictions(judge, verdicts, arguments.battles, arguments.readings)
            write_predictions(folder / PREDICTIONS_FILE, verdicts, provenance)
        table = chosen.to_pandas().drop(columns="label", errors="ignore")
        added = scores.iloc[rows].reset_index(drop=True).assign(rank=range(1, len(rows) + 1))
        if replaced := [name for name in added if name in table]:
            logger.warning(f"{SELECTED_FILE}: the columns {', '.join(replaced)} replace those of --battles")
        table.drop(columns=replaced).join(added).to_parquet(folder / SELECTED_FILE, index=False)
    shutil.rmtree(name_progress(output), ignore_errors=True)
    logger.info(f"{len(rows)} of {len(battles)} battles, from {len({groups[row] for row in rows})} groups of prompts")
    logger.info(f"Written: {', '.join(str(output / name) for name in (SELECTED_FILE, *names))}")


def check_choice(arguments: SelectArguments, output: Path, num_battles: int) -> None:
    """Raises a ValueError if there are too few battles, or the folder holds files, such as an earlier choice."""
    if arguments.num_battles > num_battles:
        raise ValueError(
            f"--num_battles {arguments.num_battles}: expected at most the {num_battles} battles of "
            f"{arguments.battles}; found more. Choose fewer."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"--output_dir {output}: expected a new or empty folder, because annotators may have filled in the files "
            "of an earlier choice; found files. Name another folder."
        )


def read_back(arguments: SelectArguments, battles: Dataset) -> None:
    """Writes the battles labelled by votes, and the annotators' agreement."""

    output = Path(arguments.output_dir)
    paths = output / LABELLED_FILE, output / AGREEMENT_FILE
    for path in paths:
        inputs = {"--battles": [arguments.battles], "--annotations": arguments.annotations}
        check_writable("--output_dir", path, inputs)
    votes = read_annotations(arguments.annotations, battles)
    labelled = label_battles(battles, votes)
    ids = labelled["id"][:]
    table = votes.dropna(subset="p_a").pivot(index="id", columns="annotator", values="p_a").loc[ids]
    judge = None
    if arguments.predictions:
        verdicts = read_verdicts(arguments.predictions, battles)
        judge = pd.Series(share_wins(verdicts), battles["id"][:]).loc[ids].to_numpy()
    resampler = Resampler(group_battles(labelled)[0], arguments.draws)
    agreement = measure_agreement(table.to_numpy(), list(table), resampler, judge)
    unanswered = Fault()
    for id in dict.fromkeys(votes["id"][~votes["id"].isin(ids)]):
        unanswered.add(id, None)
    agreement["unanswered"] = unanswered.count
    output.mkdir(parents=True, exist_ok=True)
    with replace_file(paths[0]) as beside:
        labelled.to_parquet(beside)
    with replace_file(paths[1]) as beside:
        write_json(beside, agreement)
    if unanswered.count:
        logger.warning(f"{' '.join(arguments.annotations)}: no answer to {unanswered.count}: {unanswered}")
    print(format_agreement(agreement))
    logger.info(f"Written: {', '.join(map(str, paths))}")
