"""Verdicts as a table: one row per battle, from what its readings gave. No models."""

from pathlib import Path

import numpy as np
import pandas as pd

from modeling.data.battles import LABELS, name_winners
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.judging.calibration import Calibration

RAW = "raw_p_a"  # the column of what p_a was before calibration


def build_verdicts(ids: list, columns: dict[str, np.ndarray], lengths: np.ndarray) -> pd.DataFrame:
    """One row per battle from what its readings gave.

    Args:
        ids: Of the battles.
        columns: Probabilities by label, shape (battles, labels), by the reading's name: member and order. NaN where
            a reading was left out; a battle that none read has even odds.
        lengths: Tokens and tokens cut of each field, shape (readings, battles, 4).

    Returns:
        The columns of `Judge.predict`.
    """
    mean = average_passes(np.array(list(columns.values())))
    verdicts = pd.DataFrame({"id": ids})
    for label, name in enumerate(LABELS):
        verdicts[f"p_{name}"] = mean[:, label]
    verdicts["winner"] = name_winners(verdicts["p_a"])
    for name, probabilities in columns.items():
        verdicts[f"p_a_{name}"] = probabilities[:, 0]
    longest = lengths.reshape(len(columns), len(ids), 1 + len(CUT_COLUMNS)).max(axis=0)
    for index, name in enumerate(("tokens", *CUT_COLUMNS)):
        verdicts[name] = longest[:, index]
    return verdicts


def average_passes(probabilities: np.ndarray) -> np.ndarray:
    """Mean over the readings that were made, shape (battles, labels), of shape (readings, battles, labels) with NaN for
    the others; even odds where there was none."""
    read = ~np.isnan(probabilities)
    counts = read.sum(axis=0)
    total = np.where(read, probabilities, 0).sum(axis=0)
    return np.where(counts, total / np.maximum(counts, 1), 1 / len(LABELS))


def calibrate_verdicts(verdicts: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """The verdicts with honest probabilities: winners stay, and raw_p_a is what p_a was."""
    p_a = calibration.apply(verdicts["p_a"].to_numpy())
    calibrated = verdicts.assign(p_a=p_a, p_b=1 - p_a)
    calibrated.insert(list(calibrated).index("p_b") + 1, RAW, verdicts["p_a"])
    return calibrated


def replace_verdicts(verdicts: pd.DataFrame, rows: np.ndarray, better: pd.DataFrame) -> pd.DataFrame:
    """The verdicts with those of another judge in some rows; both judges' readings stay, NaN where one did not read.

    Args:
        rows: Row numbers of the battles of `better`, in its order.
        better: Verdicts of a judge whose members have other names.
    """
    replaced = verdicts.copy()
    own = [name for name in better if name.startswith("p_a_")]
    at = list(replaced).index("tokens")
    for name in reversed(own):
        replaced.insert(at, name, np.nan)
    if RAW in better and RAW not in replaced:
        replaced.insert(list(replaced).index("p_b") + 1, RAW, verdicts["p_a"])
    replaced.loc[rows, own] = better[own].to_numpy()
    for name in ("p_a", "p_b", "winner"):
        replaced.loc[rows, name] = better[name].to_numpy()
    if RAW in replaced:
        replaced.loc[rows, RAW] = better[RAW if RAW in better else "p_a"].to_numpy()
    for name in ("tokens", *CUT_COLUMNS):
        replaced.loc[rows, name] = np.maximum(replaced.loc[rows, name].to_numpy(), better[name].to_numpy())
    return replaced


def write_verdicts(folder: Path, verdicts: pd.DataFrame) -> list[Path]:
    """Writes predictions.parquet (all but the winner) and submission.csv (id, winner), each beside and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "predictions.parquet", folder / "submission.csv"]
    verdicts.drop(columns="winner").to_parquet(beside := paths[0].with_suffix(".new"), index=False)
    beside.rename(paths[0])
    verdicts[["id", "winner"]].to_csv(beside := paths[1].with_suffix(".new"), index=False)
    beside.rename(paths[1])
    return paths
