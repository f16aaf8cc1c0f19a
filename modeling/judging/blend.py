"""Blends: weighted means of predictions files that several judges, or runs of one judge, wrote for the same battles.

Rows are matched by id. No model is loaded.
"""

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa
from datasets import Dataset

from modeling.data.outcomes import find_labels, name_winners
from modeling.evaluation.report import align_verdicts, stack_probabilities
from modeling.judging.judge import check_labels
from modeling.judging.predictions import name_probabilities, read_provenance
from modeling.runtime.files import describe_file
from modeling.runtime.logs import build_logger
from modeling.runtime.packages import find_version
from modeling.runtime.paths import check_predictions

logger = build_logger(__name__)


def blend_predictions(weights: Mapping[str, float], battles: Dataset, source: str) -> tuple[pd.DataFrame, dict]:
    """Averages p_a, calibrated where a file's judge is, over predictions files.

    Args:
        weights: Weight of each predictions file, above 0; only their ratios matter.
        battles: With id, in the order in which the verdicts are wanted.
        source: Where the battles are, as the user named it.

    Returns:
        Verdicts with the columns id, p_a, p_b, p_tie if all files have it, and winner, in the battles' order; and what
        `write_verdicts` records: `blend`, for each file its name, its weight, and its own provenance; `battles`, and
        the `bothways` version.

    Raises:
        ValueError: If a file cannot be read, its ids are not exactly those of the battles, it records that it was made
            from another file of battles than the other files, or some files predict ties and others do not.
    """
    total, probabilities, parts = sum(weights.values()), {}, []
    made_from: dict[str, str] = {}  # SHA-256 of the battles: the predictions file that records it
    for path, weight in weights.items():
        verdicts, provenance = _read(path, battles)
        probabilities[path] = weight / total * stack_probabilities(verdicts)
        if hashed := ((provenance or {}).get("battles") or {}).get("sha256"):
            made_from.setdefault(hashed, path)
        parts.append(describe_file(path) | {"weight": weight, "made_by": provenance})
    if len(made_from) > 1:
        raise ValueError(
            f"--blend: expected predictions of one file of battles; found {' and '.join(made_from.values())}, which "
            "record different files. Predict all of them from the same --battles."
        )
    if made_from and describe_file(source)["sha256"] not in made_from:
        logger.warning(
            f"--blend {next(iter(made_from.values()))} was predicted from another file than {source}: that is right "
            "only if this one holds the same answers in the same places, for example with labels added"
        )
    check_labels("--blend", {path: find_labels(p.shape[1]) for path, p in probabilities.items()})
    mean = sum(probabilities.values()).round(12)  # as a judge's mean; see average_passes
    verdicts = pd.DataFrame({"id": battles["id"][:], **name_probabilities(mean)})
    verdicts["winner"] = name_winners(verdicts["p_a"], verdicts.get("p_tie"))
    versions = {"bothways": find_version("bothways")}
    return verdicts, {"blend": parts, "battles": describe_file(source), "versions": versions}


def _read(path: str, battles: Dataset) -> tuple[pd.DataFrame, dict | None]:
    """A file's verdicts in the battles' order, and its provenance."""
    check_predictions(path)
    try:
        verdicts, provenance = pd.read_parquet(path), read_provenance(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"--blend {path}: expected a parquet file; found {error}.") from error
    return align_verdicts(verdicts, battles, f"--blend {path}"), provenance
