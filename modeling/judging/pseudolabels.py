"""Pseudo-labels: labels a pool of battles with a judge's probabilities, part by part, and joins the parts.

Rows are matched by id, and each part is on disk before the next one is read. How the judge reads is not known here.
"""

import hashlib
import json
import shutil
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import Dataset

from modeling.data.battles import iterate_battles
from modeling.data.near_duplicates import DuplicateIndex
from modeling.data.outcomes import WITH_TIE
from modeling.data.reader import Fault
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.report import stack_probabilities
from modeling.judging.calibration import Calibration
from modeling.judging.judge import Judge
from modeling.runtime.files import replace_file
from modeling.settings.reading_arguments import PseudolabelArguments


def label_battles(battles: Dataset, verdicts: pd.DataFrame, min_confidence: float | None) -> pa.Table:
    """The battles, labelled by the judge.

    Args:
        battles: Rows; an existing label is replaced.
        verdicts: From `Judge.predict`, in any order; rows are matched by id.
        min_confidence: None: all battles, with the probabilities as soft labels. Otherwise only battles whose likeliest
            label has at least this probability, with hard labels.

    Returns:
        The battles' columns, `label`, and the verdicts' `tokens` and tokens cut from each field.
    """
    rows = battles.with_format("arrow")[:]
    verdicts = verdicts.set_index("id").loc[rows["id"].to_pylist()]
    p = stack_probabilities(verdicts)
    kept = np.full(len(p), True) if min_confidence is None else p.max(axis=1) >= min_confidence
    labels = p if min_confidence is None else np.eye(p.shape[1])[p.argmax(axis=1)]
    # The type is explicit because an empty part would have none, and the joined column would become fractional.
    counts = {name: pa.array(verdicts[name].to_numpy(), pa.int64()) for name in ("tokens", *CUT_COLUMNS)}
    made = {"label": pa.array(labels.tolist(), pa.list_(pa.float64())), **counts}
    carried = {name: rows[name] for name in rows.column_names if name not in made}
    return pa.table({**carried, **made}).filter(pa.array(kept))


def describe_judge(judge: Judge, readings: str | None, calibrated: bool = True) -> dict[str, str]:
    """The origin of pseudo-labels, by column: names, weights, orders read, calibration, and the date (UTC)."""
    calibration = judge.find_calibration(readings) if calibrated else None
    plan = judge.plan_passes(readings)
    return {
        "judge": "+".join(member.name for member in judge.members),
        "judge_revision": "+".join(f"{m.fingerprint}@{m.facts.base_fingerprint}" for m in judge.members),
        "judge_readings": "+".join(f"{member.name}:{orientation}" for member, orientation in plan),
        "judge_calibration": _name_calibration(calibration) if calibration else "none",
        "judged_on": datetime.now(UTC).date().isoformat(),
    }


def _name_calibration(calibration: Calibration) -> str:
    """A calibration's method, and a hash of its parameters."""
    facts = json.dumps(calibration.to_dict(), sort_keys=True)
    return f"{calibration.method}@{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def describe_training(judge: Judge) -> str:
    """The files that the members were trained and evaluated on, as they recorded it."""
    facts = [member.facts.training for member in judge.members]
    files = dict.fromkeys(
        file for training in facts for file in [*(training.get("train_file") or ()), training.get("eval_file")] if file
    )
    return ", ".join(files) or "not recorded"


class PartFolder:
    """The finished parts of an output, each named by a hash of what it was made from.

    Parts are renamed into place, so an existing part is complete. Other battles or another judge give another name, so
    a restart never resumes the wrong part.
    """

    def __init__(self, folder: Path, finished: Sequence[str]):
        """
        Args:
            finished: From `list_finished`, called on the main process alone: a process that lists the folder later
                would see parts of this run, skip them, and leave the others waiting.
        """
        self.folder, self.finished = folder, set(finished)
        self.parts: list[Path] = []

    @staticmethod
    def list_finished(folder: Path) -> list[str]:
        """Names of the finished parts in a folder."""
        return sorted(path.name for path in folder.glob("part-*.parquet"))

    def begin(self, battles: Dataset, settings: Mapping) -> bool:
        """Starts the next part; False if it is finished already, from the same battles with the same settings."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for battle in battles:
            # All columns, since they are carried into the output: a corrected one must not be resumed with old values.
            digest.update(json.dumps(battle, default=repr).encode())
        self.parts.append(self.folder / f"part-{len(self.parts):06}-{digest.hexdigest()[:16]}.parquet")
        return self.parts[-1].name not in self.finished

    def write(self, rows: pa.Table, made_by: Mapping[str, str]) -> None:
        """Writes the part that was started last, with one more column for each item of `made_by`."""
        facts = {name: pa.array([value] * len(rows), pa.string()) for name, value in made_by.items()}
        carried = {name: rows[name] for name in rows.column_names if name not in facts}
        self.folder.mkdir(parents=True, exist_ok=True)
        with replace_file(self.parts[-1]) as beside:
            pq.write_table(pa.table({**carried, **facts}), beside)

    def list_ids(self) -> set:
        """Ids of the battles in the part that was started last, once it is written."""
        return set(pq.read_table(self.parts[-1], columns=["id"])["id"].to_pylist())

    def join(self, output: Path) -> int:
        """Writes all parts as one parquet file; returns its number of rows."""
        # A column may be missing, or of a narrower type, in parts whose source rows had no value for it.
        schemas = [pq.read_schema(part).remove_metadata() for part in self.parts]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        count = 0
        output.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(output) as beside, pq.ParquetWriter(beside, schema) as writer:
            for part in self.parts:
                table = pq.read_table(part)
                empty = {name: pa.nulls(len(table), schema.field(name).type) for name in schema.names}
                columns = {**empty, **dict(zip(table.column_names, table.columns, strict=True))}
                writer.write_table(pa.table({name: columns[name] for name in schema.names}).cast(schema))
                count += len(table)
        return count


def check_pool(arguments: PseudolabelArguments) -> int:
    """Number of battles in the pool. Reads and checks every row, so that a bad one is found now and not after hours."""
    return sum(map(len, iterate_battles(arguments.battles, labels=WITH_TIE, **arguments.row_policy)))


def index_prompts(arguments: PseudolabelArguments) -> DuplicateIndex:
    """An index of the prompts that must not be labelled."""
    index = DuplicateIndex()
    policy = {
        "labels": WITH_TIE,
        "schema": arguments.exclude_schema,
        "bad_row_policy": arguments.bad_row_policy,
        "blank_policy": "keep",
    }
    for file in arguments.exclude or ():
        for battles in iterate_battles(file, **policy):
            index.add(battles["prompt"][:])
    return index


def drop_known(battles: Dataset, excluded: DuplicateIndex) -> Dataset:
    """The battles whose prompts are not near-duplicates of excluded ones."""
    found = excluded.find(battles["prompt"][:])
    return battles.select([row for row, duplicates in enumerate(found) if not duplicates])


def count_left_out(left_out: Fault, before: Iterable, after: Container) -> None:
    """Adds the ids in `before` that are missing from `after`."""
    for id in before:
        if id not in after:
            left_out.add(id, None)


def label_part(
    arguments: PseudolabelArguments, judge: Judge, battles: Dataset, parts: PartFolder, made_by: dict[str, str]
) -> None:
    """Labels and writes the next part, unless an earlier run has."""
    # Without the date: a run that is resumed on the next day keeps its parts.
    settings = {name: value for name, value in made_by.items() if name != "judged_on"}
    settings |= {name: vars(arguments)[name] for name in ("min_confidence", "tokens_per_batch", "dtype", "merge")}
    if not parts.begin(battles, settings):
        return
    progress = parts.parts[-1].with_suffix("")  # of this part alone: other processes may begin the next one meanwhile
    verdicts = judge.predict(
        battles,
        readings=arguments.readings,
        calibrated=arguments.calibrated,
        tokens_per_batch=arguments.tokens_per_batch,
        progress_dir=progress,
    )
    if PartialState().is_main_process:
        parts.write(label_battles(battles, verdicts, arguments.min_confidence), made_by)
        shutil.rmtree(progress, ignore_errors=True)
