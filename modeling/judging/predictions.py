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

from modeling.data.outcomes import WITH_TIE, find_labels, halve_ties, match_labels, name_winners
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.metrics import compute_accuracy, compute_baselines, compute_log_loss
from modeling.evaluation.report import PASS_PREFIX, TIE_PREFIX, read_passes, stack_probabilities
from modeling.judging.calibration import Calibration
from modeling.runtime.files import replace_file
from modeling.runtime.text_tables import format_table

PREDICTIONS_FILE = "predictions.parquet"
PROVENANCE = b"bothways"  # the key of what `provenance.py` describes in the file's metadata
RAW, RAW_TIE = "raw_p_a", "raw_p_tie"  # the columns that keep p_a and p_tie as they were before calibration


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
    verdicts = pd.DataFrame({"id": ids, **name_probabilities(mean)})
    verdicts["winner"] = name_winners(verdicts["p_a"], verdicts.get("p_tie"))
    for name, probabilities in columns.items():
        verdicts[f"{PASS_PREFIX}{name}"] = probabilities[:, 0]
        if mean.shape[1] == len(WITH_TIE):
            verdicts[f"{TIE_PREFIX}{name}"] = probabilities[:, 2]
    longest = lengths.reshape(len(columns), len(ids), 1 + len(CUT_COLUMNS)).max(axis=0)
    for index, name in enumerate(("tokens", *CUT_COLUMNS)):
        verdicts[name] = longest[:, index]
    return verdicts


def name_probabilities(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """The columns p_a, p_b and, if there are three labels, p_tie, from an array of shape (battles, labels)."""
    labels = find_labels(probabilities.shape[1])
    return {f"p_{label}": column for label, column in zip(labels, probabilities.T, strict=True)}


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
    mean = np.where(counts, total / np.maximum(counts, 1), 1 / probabilities.shape[-1])
    # A pass and its mirror image sum to 1 within 1e-16 only. Unrounded, two equal answers would get 0.5 - 1e-16, and
    # so a winner that depends on the number of passes. No model is exact to 12 digits.
    return mean.round(12)


def sort_by_uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """Rows by the lead of the likeliest label over the next, the most uncertain first.

    Args:
        probabilities: Shape (battles, labels).
    """
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    # Rounded, because the last bits depend on which battles were packed together; they must not decide.
    return np.argsort(((first - second) / 2).round(6), kind="stable")


def list_pass_columns(verdicts: pd.DataFrame, *, ties: bool = False) -> list[str]:
    """Names of the columns p_a_<member>_<order>, one per pass; with `ties` also of p_tie_<member>_<order>."""
    return [name for name in verdicts if name.startswith(PASS_PREFIX) or (ties and name.startswith(TIE_PREFIX))]


def calibrate_verdicts(verdicts: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """The verdicts with calibrated probabilities, and with the columns raw_p_a and, with three labels, raw_p_tie.

    Without ties every winner stays.
    """
    p = calibration.apply_to_labels(stack_probabilities(verdicts))
    raw = {RAW_TIE: verdicts["p_tie"]} if "p_tie" in verdicts else {}
    raw = {RAW: verdicts["p_a"], **raw}
    columns = {"id": verdicts["id"], **name_probabilities(p), **raw}
    others = {name: verdicts[name] for name in verdicts if name not in columns}
    calibrated = pd.DataFrame({**columns, **others})
    return _rename_winners(calibrated) if "p_tie" in calibrated and "winner" in calibrated else calibrated


def take_raw(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The verdicts as they were before calibration, without raw_p_a and raw_p_tie."""
    if RAW not in verdicts:
        return verdicts
    had_ties = "p_tie" in verdicts
    if RAW_TIE in verdicts:
        raw = verdicts.assign(p_tie=verdicts[RAW_TIE], p_a=verdicts[RAW], p_b=1 - verdicts[RAW] - verdicts[RAW_TIE])
    else:  # of two labels, so any p_tie came from the calibration
        raw = verdicts.assign(p_a=verdicts[RAW], p_b=1 - verdicts[RAW]).drop(columns=["p_tie"] * had_ties)
    raw = raw.drop(columns=[name for name in (RAW, RAW_TIE) if name in raw])
    return _rename_winners(raw) if had_ties and "winner" in raw else raw


def share_wins(verdicts: pd.DataFrame) -> np.ndarray:
    """The expected score of a in each battle, from 0 to 1, shape (battles,): p_a + p_tie / 2, or p_a without ties."""
    return halve_ties(stack_probabilities(verdicts))[:, 0]


def halve_verdicts(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The verdicts without ties: half of each one's probability is added to either answer's."""
    p = halve_ties(stack_probabilities(verdicts))
    return verdicts.drop(columns="p_tie", errors="ignore").assign(**name_probabilities(p))


def _rename_winners(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The verdicts with the winners that their probabilities give."""
    return verdicts.assign(winner=name_winners(verdicts["p_a"], verdicts.get("p_tie")))


def replace_verdicts(verdicts: pd.DataFrame, rows: np.ndarray, better: pd.DataFrame) -> pd.DataFrame:
    """The verdicts with another judge's in some rows. The passes of both judges stay, NaN where one did not run.

    Args:
        rows: Row numbers of the battles of `better`, in its order.
        better: Verdicts of a judge whose members have other names.
    """
    if ("p_tie" in verdicts) != ("p_tie" in better):
        # A calibration with ties was not applied to the one of them that lacks passes, so it is taken off the other.
        verdicts, better = take_raw(verdicts), take_raw(better)
    replaced = verdicts.copy()
    own = list_pass_columns(better, ties=True)
    at = list(replaced).index("tokens")
    for name in reversed(own):
        replaced.insert(at, name, np.nan)
    # If only one of the two judges is calibrated, the other's probabilities are its raw ones too.
    raw = {RAW: "p_a", **({RAW_TIE: "p_tie"} if "p_tie" in replaced else {})}
    raw = raw if RAW in better or RAW in replaced else {}
    for name, calibrated in raw.items():
        if name not in replaced:
            replaced.insert(list(replaced).index("winner"), name, verdicts[calibrated])
    replaced.loc[rows, own] = better[own].to_numpy()
    for name in ("p_a", "p_b", *(["p_tie"] if "p_tie" in replaced else []), "winner"):
        replaced.loc[rows, name] = better[name].to_numpy()
    for name, calibrated in raw.items():
        replaced.loc[rows, name] = better[name if name in better else calibrated].to_numpy()
    for name in ("tokens", *CUT_COLUMNS):
        replaced.loc[rows, name] = np.maximum(replaced.loc[rows, name].to_numpy(), better[name].to_numpy())
    return replaced


def format_accuracy(verdicts: pd.DataFrame, battles: Dataset) -> str:
    """A text table of accuracy and log loss: the judge, cut and whole battles, each pass, and the baselines.

    Args:
        verdicts: What `Judge.predict` returned for the battles.
        battles: With labels, in the verdicts' order.
    """
    p = stack_probabilities(verdicts)
    everything = np.full(len(p), True)
    parts = [("judge", p, everything)]
    if RAW in verdicts:
        parts.append(("judge, not calibrated", stack_probabilities(take_raw(verdicts)), everything))
    cut = verdicts.reindex(columns=CUT_COLUMNS, fill_value=0).to_numpy().any(axis=1)  # a blend has none of them
    if cut.any() and not cut.all():
        parts += [("judge, cut battles", p, cut), ("judge, whole battles", p, ~cut)]
    for name, each in read_passes(verdicts).items():
        parts.append((f"{PASS_PREFIX}{name}", each, ~np.isnan(each[:, 0])))
    labels, rows = np.array(battles["label"][:]), [("", "accuracy [95%]", "log loss [95%]")]
    for name, each, part in parts:
        known = match_labels(labels[part], each.shape[1])
        rows.append((name, compute_accuracy(each[part], known), compute_log_loss(each[part], known)))
    known = match_labels(labels, p.shape[1])
    baselines = compute_baselines(battles["response_a"], battles["response_b"], known)
    return format_table([*rows, *((name, accuracy, "") for name, accuracy in baselines.items())])


def write_predictions(path: Path, verdicts: pd.DataFrame, provenance: Mapping) -> None:
    """Writes all columns but the winner, with the predictions' provenance as metadata of the parquet file."""
    table = pa.Table.from_pandas(verdicts.drop(columns="winner"), preserve_index=False)
    stored = json.dumps(provenance, ensure_ascii=False, allow_nan=False)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, PROVENANCE: stored}), path)


def read_provenance(path: str) -> dict | None:
    """The provenance in a predictions file; None if it was not written by `write_predictions`."""
    stored = (pq.read_schema(path).metadata or {}).get(PROVENANCE)
    return stored and json.loads(stored)


def build_submission(verdicts: pd.DataFrame, kind: str | None = None, tie_share: float = 1 / 3) -> pd.DataFrame:
    """The columns of a contest's submission, in the verdicts' order.

    Args:
        verdicts: With id, p_a, winner and, if the judge predicts ties, p_tie.
        kind: "wsdm": id and winner, which is never a tie. "lmsys": id, winner_model_a, winner_model_b and winner_tie,
            which sum to 1. None: lmsys if the judge predicts ties, else wsdm.
        tie_share: winner_tie of every battle if the judge predicts no ties: p_a is then the share of a among the other
            outcomes.
    """
    p = stack_probabilities(verdicts)
    if (kind or ("lmsys" if "p_tie" in verdicts else "wsdm")) == "wsdm":
        if "p_tie" in verdicts:
            verdicts = verdicts.assign(winner=name_winners(halve_ties(p)[:, 0].round(12)))
        return verdicts[["id", "winner"]]
    if "p_tie" not in verdicts:
        p = np.column_stack([(1 - tie_share) * p, np.full(len(p), tie_share)])
    columns = zip(("winner_model_a", "winner_model_b", "winner_tie"), p.T, strict=True)
    return pd.DataFrame({"id": verdicts["id"], **dict(columns)})


def write_verdicts(
    folder: Path, verdicts: pd.DataFrame, provenance: Mapping, submission: pd.DataFrame | None = None
) -> list[Path]:
    """Writes predictions.parquet (see `write_predictions`) and submission.csv; returns their paths.

    Args:
        submission: From `build_submission`; None writes what it builds by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / PREDICTIONS_FILE, folder / "submission.csv"]
    with replace_file(paths[0]) as beside:
        write_predictions(beside, verdicts, provenance)
    with replace_file(paths[1]) as beside:
        (build_submission(verdicts) if submission is None else submission).to_csv(beside, index=False)
    return paths
