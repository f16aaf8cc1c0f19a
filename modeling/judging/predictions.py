"""Verdicts as a table, one row per battle: built from passes, calibrated, combined, compared with outcomes, written.

It knows no models.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from modeling.data.battles import LABELS, name_winners
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.metrics import compute_accuracy, compute_baselines, compute_log_loss
from modeling.judging.calibration import Calibration
from modeling.runtime.files import replace_file
from modeling.runtime.text_tables import format_table

PREDICTIONS_FILE = "predictions.parquet"
PROVENANCE = b"bothways"  # the key of what `provenance.py` describes in the file's metadata
RAW = "raw_p_a"  # the column that keeps p_a as it was before calibration


def build_verdicts(ids: list, columns: dict[str, np.ndarray], lengths: np.ndarray) -> pd.DataFrame:
    """One row per battle, averaged over its passes.

    Args:
        ids: Of the battles.
        columns: Probabilities by label, shape (battles, labels), by the name of the pass: member and order. NaN where
            a pass was not run; a battle without any pass gets even odds.
        lengths: Tokens, and tokens cut from each field, shape (passes, battles, 4).

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
    """Mean over the passes that were run; even odds where there was none.

    Args:
        probabilities: Shape (passes, battles, labels), NaN where a pass was not run.

    Returns:
        Shape (battles, labels), rounded to 12 digits.
    """
    # Not np.nanmean, which warns about battles without a pass and leaves NaN there.
    run = ~np.isnan(probabilities)
    counts = run.sum(axis=0)
    total = np.where(run, probabilities, 0).sum(axis=0)
    mean = np.where(counts, total / np.maximum(counts, 1), 1 / len(LABELS))
    # A pass and its mirror image sum to 1 within 1e-16 only. Unrounded, two equal answers would get 0.5 - 1e-16, and
    # so a winner that depends on the number of passes. No model is exact to 12 digits.
    return mean.round(12)


def sort_by_uncertainty(p_a: np.ndarray) -> np.ndarray:
    """Rows by the distance of p_a from 1/2, the most uncertain first."""
    # Rounded, because the last bits depend on which battles were packed together; they must not decide.
    return np.argsort(np.abs(p_a - 0.5).round(6), kind="stable")


def list_pass_columns(verdicts: pd.DataFrame) -> list[str]:
    """Names of the columns p_a_<member>_<order>, one per pass."""
    return [name for name in verdicts if name.startswith("p_a_")]


def calibrate_verdicts(verdicts: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """The verdicts with calibrated probabilities and the column raw_p_a; every winner stays."""
    p_a = calibration.apply(verdicts["p_a"].to_numpy())
    calibrated = verdicts.assign(p_a=p_a, p_b=1 - p_a)
    calibrated.insert(list(calibrated).index("p_b") + 1, RAW, verdicts["p_a"])
    return calibrated


def take_raw(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The verdicts as they were before calibration, without raw_p_a."""
    if RAW not in verdicts:
        return verdicts
    return verdicts.assign(p_a=verdicts[RAW], p_b=1 - verdicts[RAW]).drop(columns=RAW)


def replace_verdicts(verdicts: pd.DataFrame, rows: np.ndarray, better: pd.DataFrame) -> pd.DataFrame:
    """The verdicts with another judge's in some rows. The passes of both judges stay, NaN where one did not run.

    Args:
        rows: Row numbers of the battles of `better`, in its order.
        better: Verdicts of a judge whose members have other names.
    """
    replaced = verdicts.copy()
    own = list_pass_columns(better)
    at = list(replaced).index("tokens")
    for name in reversed(own):
        replaced.insert(at, name, np.nan)
    if RAW in better and RAW not in replaced:
        replaced.insert(list(replaced).index("p_b") + 1, RAW, verdicts["p_a"])
    replaced.loc[rows, own] = better[own].to_numpy()
    for name in ("p_a", "p_b", "winner"):
        replaced.loc[rows, name] = better[name].to_numpy()
    if RAW in replaced:
        # If only one of the two judges is calibrated, the other's p_a is its raw one too.
        replaced.loc[rows, RAW] = better[RAW if RAW in better else "p_a"].to_numpy()
    for name in ("tokens", *CUT_COLUMNS):
        replaced.loc[rows, name] = np.maximum(replaced.loc[rows, name].to_numpy(), better[name].to_numpy())
    return replaced


def format_accuracy(verdicts: pd.DataFrame, battles: Dataset) -> str:
    """A text table of accuracy and log loss: the judge, cut and whole battles, each pass, and the baselines.

    Args:
        verdicts: What `Judge.predict` returned for the battles.
        battles: With labels, in the verdicts' order.
    """
    labels = np.array(battles["label"][:])
    p = verdicts[[f"p_{label}" for label in LABELS]].to_numpy()
    everything = np.full(len(p), True)
    parts = [("judge", p, everything)]
    if RAW in verdicts:
        parts.append(("judge, not calibrated", _complete(verdicts[RAW]), everything))
    cut = verdicts.reindex(columns=CUT_COLUMNS, fill_value=0).to_numpy().any(axis=1)  # a blend has none of them
    if cut.any() and not cut.all():
        parts += [("judge, cut battles", p, cut), ("judge, whole battles", p, ~cut)]
    for name in list_pass_columns(verdicts):
        parts.append((name, _complete(verdicts[name]), verdicts[name].notna().to_numpy()))
    rows = [("", "accuracy [95%]", "log loss [95%]")]
    for name, each, part in parts:
        rows.append((name, compute_accuracy(each[part], labels[part]), compute_log_loss(each[part], labels[part])))
    baselines = compute_baselines(battles["response_a"], battles["response_b"], labels)
    return format_table([*rows, *((name, accuracy, "") for name, accuracy in baselines.items())])


def _complete(p_a: pd.Series) -> np.ndarray:
    """Probabilities of both labels, shape (battles, 2)."""
    return np.column_stack([p_a, 1 - p_a])


def write_predictions(path: Path, verdicts: pd.DataFrame, provenance: Mapping) -> None:
    """Writes all columns but the winner, with the predictions' provenance as metadata of the parquet file."""
    table = pa.Table.from_pandas(verdicts.drop(columns="winner"), preserve_index=False)
    stored = json.dumps(provenance, ensure_ascii=False, allow_nan=False)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, PROVENANCE: stored}), path)


def read_provenance(path: str) -> dict | None:
    """The provenance in a predictions file; None if it was not written by `write_predictions`."""
    stored = (pq.read_schema(path).metadata or {}).get(PROVENANCE)
    return stored and json.loads(stored)


def build_submission(verdicts: pd.DataFrame, kind: str = "wsdm", tie_share: float = 1 / 3) -> pd.DataFrame:
    """The columns of a contest's submission, in the verdicts' order.

    Args:
        verdicts: With id, p_a and winner.
        kind: "wsdm": id and winner. "lmsys": id, winner_model_a, winner_model_b and winner_tie, which sum to 1.
        tie_share: winner_tie of every battle. A judge knows no ties: p_a is the share of a among the other outcomes.
    """
    if kind == "wsdm":
        return verdicts[["id", "winner"]]
    decided = 1 - tie_share
    p_a = verdicts["p_a"].to_numpy()
    columns = {"winner_model_a": decided * p_a, "winner_model_b": decided * (1 - p_a), "winner_tie": tie_share}
    return pd.DataFrame({"id": verdicts["id"], **columns})


def write_verdicts(
    folder: Path, verdicts: pd.DataFrame, provenance: Mapping, submission: pd.DataFrame | None = None
) -> list[Path]:
    """Writes predictions.parquet (see `write_predictions`) and submission.csv; returns their paths.

    Args:
        submission: From `build_submission`; None writes id and winner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / PREDICTIONS_FILE, folder / "submission.csv"]
    with replace_file(paths[0]) as beside:
        write_predictions(beside, verdicts, provenance)
    with replace_file(paths[1]) as beside:
        (build_submission(verdicts) if submission is None else submission).to_csv(beside, index=False)
    return paths
