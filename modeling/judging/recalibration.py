"""Which battles a judge may be calibrated or scored on, and where its calibration is stored.

How a calibration is fitted and applied is in calibration.py.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from datasets import Dataset

from modeling.data.near_duplicates import DuplicateIndex
from modeling.data.reader import Fault
from modeling.judging.calibration import Calibration
from modeling.judging.judge import Judge, describe_members
from modeling.judging.member import JUDGE_FILE, JudgeFacts, locate_judge, read_judge, write_judge
from modeling.judging.predictions import list_pass_columns
from modeling.runtime.files import describe_file
from modeling.runtime.logs import build_logger

logger = build_logger(__name__)


def find_unscored(others: Dataset, battles: Dataset, where: str) -> list[int]:
    """Rows of the battles to calibrate on whose prompt is not a near-duplicate of a scored prompt; counts the others.

    Args:
        others: The battles to calibrate on.
        battles: The scored battles.
        where: Names `others` in messages.

    Raises:
        ValueError: If no row is left.
    """
    # By prompt, not by id: the same question under another id would still make the scored numbers too good.
    index = DuplicateIndex()
    index.add(battles["prompt"][:])
    kept, near = [], Fault()
    for row, (id, found) in enumerate(zip(others["id"][:], index.find(others["prompt"][:]), strict=True)):
        if found:
            near.add(id, None)
        else:
            kept.append(row)
    if not kept:
        raise ValueError(
            f"{where}: expected battles with other prompts than the scored battles; found none among {len(others)}. "
            "Calibrate on other battles."
        )
    if near.count:
        logger.warning(f"{where}: left out {near.count} of {len(others)} battles with a scored battle's prompt: {near}")
    return kept


def check_not_trained_on(judge: Judge, path: str) -> None:
    """Raises a ValueError if a member was trained on this file."""
    # On its training battles a member is too confident, so a calibration fitted there would keep it overconfident.
    hashed = describe_file(path)["sha256"]
    for member in judge.members:
        rows = member.facts.training.get("data", [])
        if hashed and hashed in {row.get("sha256") for row in rows if row.get("role") == "train"}:
            raise ValueError(
                f"--calibrate_battles {path}: expected battles that were not trained on; found the training file of "
                f"{member.name}. Give other battles, or out-of-fold --calibrate_predictions (predict.py --folds true)."
            )


def check_not_fitted_on(judge: Judge, path: str, flag: str) -> None:
    """Raises a ValueError if the judge was calibrated on these battles, which a flag names."""
    # A source without a hash, such as a data set on the Hub, cannot be compared and passes.
    hashed = describe_file(path)["sha256"]
    if hashed and judge.calibration and hashed == (judge.calibration.fitted_on or {}).get("sha256"):
        raise ValueError(
            f"{flag} {path}: expected other battles than the judge was calibrated on; found the same file. Score "
            "other battles, or pass --calibrated false."
        )


def check_passes(verdicts: pd.DataFrame, judge: Judge, readings: str | None, where: str) -> None:
    """Raises a ValueError if the passes in `verdicts` are not this judge's; warns if the verdicts are out-of-fold."""
    expected = {f"p_a_{member.name}_{orientation}" for member, orientation in judge.plan_passes(readings)}
    found = set(list_pass_columns(verdicts))
    if found != expected:
        raise ValueError(
            f"{where}: expected the passes of --judge ({', '.join(sorted(expected))}); found "
            f"{', '.join(sorted(found)) or 'none'}. Predict with that judge."
        )
    # In out-of-fold predictions every member has NaN for the battles that it trained on.
    if verdicts[sorted(found)].isna().to_numpy().any():
        logger.warning("Calibrating on out-of-fold predictions: each averages fewer members than the judge will")


def check_own_passes(names: Sequence[str], judge: Judge) -> None:
    """Raises a ValueError if the judge.json that would store a calibration names other --readings than the judge's."""
    folder, _ = locate_judge(names)
    stored = read_judge(folder)
    if stored and stored.readings != judge.readings:
        raise ValueError(
            f"--judge {' '.join(names)}: expected --readings {stored.readings}, as {folder / JUDGE_FILE} says; found "
            f"{judge.readings}. Name the folder {folder}, or pass --readings."
        )


def save_calibration(names: Sequence[str], judge: Judge, readings: str, calibration: Calibration) -> Path:
    """Writes judge.json beside a judge's members and returns the folder. Errors as for `locate_judge`."""
    folder, members = locate_judge(names)
    facts = calibration.to_dict() | {"members": describe_members(judge.members)}
    write_judge(folder, JudgeFacts(members, readings, facts))
    logger.info(f"Written: {folder / JUDGE_FILE}. --judge {folder} is the calibrated judge")
    return folder
