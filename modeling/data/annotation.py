"""Battles on their way to annotators and back: csv, Argilla's records and Label Studio's tasks.

Annotators see a prompt and two answers, left and right, in an order that a hash of the id draws; the file records it.
They choose left, right, tie or both_bad. Their vote becomes p_a again: 1, 0 or, for both kinds of tie, 1/2. It must not
know judges: no probability reaches an annotator.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from modeling.data.battles import order_responses
from modeling.data.reader import Fault
from modeling.data.schemas import OUTCOMES
from modeling.runtime.choices import ORIENTATIONS
from modeling.runtime.files import write_json

# p_a of each choice, for a battle that shows a on the left.
CHOICES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}
TITLES = {"left": "Left is better", "right": "Right is better", "tie": "Equally good", "both_bad": "Both are bad"}
SHOWN = ["prompt", "left", "right"]
COLUMNS = ("id", *SHOWN, "order", "winner", "annotator")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a formula may begin (OWASP, "CSV Injection")
FILES = {"csv": "battles.csv", "argilla": "argilla.json", "labelstudio": "labelstudio.json"}
CONFIG_FILE = "labelstudio.xml"


def draw_order(id: object) -> str:
    """Returns the order in which annotators see the answers of a battle: "ab" or "ba", half of the ids each."""
    # Not `schemas.is_chosen_first`: by that hash every chosen answer of a file of pairs would be on the left.
    return ORIENTATIONS[hashlib.sha256(f"shown {id}".encode("utf-8", "replace")).digest()[0] % 2]


# --- to annotators ----------------------------------------------------------------------------------------------------


def write_tasks(folder: Path, battles: Dataset, format: str) -> list[Path]:
    """Writes battles for a labelling tool; returns the paths.

    Args:
        folder: An existing folder.
        battles: With id, prompt, response_a and response_b; other columns are not written.
        format: One of `ANNOTATION_FORMATS`.
    """
    path, tasks = folder / FILES[format], [_show_battle(battle) for battle in battles]
    if format == "csv":
        table = pd.DataFrame(tasks, columns=list(COLUMNS))
        # A spreadsheet would compute "=1+1" and show an error for "- a list"; after an apostrophe both are text.
        table[SHOWN] = table[SHOWN].map(lambda text: f"'{text}" if text.startswith(FORMULA) else text)
        # Nor may it make 12 of an id 0012. The apostrophe is taken off again when the file is read.
        table["id"] = table["id"].map(lambda id: f"'{id}" if str(id).startswith((*FORMULA, "'", *"0123456789")) else id)
        # utf-8-sig: without the mark Excel reads the file in the codepage of its machine.
        table.to_csv(path, index=False, encoding="utf-8-sig")
        return [path]
    if format == "argilla":
        write_json(path, [_build_record(task) for task in tasks])
        return [path]
    # "id" would be overwritten by the task's own number in some of Label Studio's exports.
    write_json(path, [{"data": {"battle": task.pop("id"), **task}} for task in tasks])
    (folder / CONFIG_FILE).write_text(_build_config(), encoding="utf-8")
    return [path, folder / CONFIG_FILE]


def _show_battle(battle: Mapping) -> dict:
    """Returns what annotators see of a battle, with its id and order."""
    order = draw_order(battle["id"])
    left, right = (battle[name] for name in order_responses(order))
    return {"id": str(battle["id"]), "prompt": battle["prompt"], "left": left, "right": right, "order": order}


def _build_record(task: Mapping) -> dict:
    """Returns a record as Argilla 2 writes and reads it (`Record.to_dict`)."""
    fields = {name: task[name] for name in SHOWN}
    return {"id": task["id"], "fields": fields, "metadata": {"order": task["order"]}, "responses": {}}


def _build_config() -> str:
    """Returns Label Studio's labelling interface: the prompt above both answers, side by side, and one choice."""
    answers = "".join(
        f'    <View style="flex: 1"><Header value="{name.title()}"/><Text name="{name}" value="${name}"/></View>\n'
        for name in ("left", "right")
    )
    choices = "".join(f'    <Choice value="{TITLES[name]}" alias="{name}"/>\n' for name in CHOICES)
    return (
        '<View>\n  <Header value="Prompt"/>\n  <Text name="prompt" value="$prompt"/>\n'
        f'  <View style="display: flex; gap: 2em">\n{answers}  </View>\n'
        f'  <Choices name="winner" toName="prompt" choice="single" required="true">\n{choices}  </Choices>\n</View>\n'
    )


# --- and back ---------------------------------------------------------------------------------------------------------


def read_annotations(paths: Sequence[str], battles: Dataset) -> pd.DataFrame:
    """Reads what annotators filled in, in any of the formats.

    Args:
        paths: Files as `write_tasks` made them, filled in, or as Argilla or Label Studio exports them.
        battles: All battles that may be among them.

    Returns:
        One row per annotator and battle: id, annotator (text) and p_a: 1, 1/2 or 0, NaN without an answer. A task that
        nobody took up has one row with an empty annotator.

    Raises:
        ValueError: If a file is of none of the formats, or a row has an unknown battle, order or choice, or no
            annotator, or an annotator answers a battle twice, or there is no answer at all.
    """
    ids = {str(id): id for id in battles["id"]}
    rows, faults = [], {}
    for path in paths:
        for row in _read_file(path):
            if fault := _find_fault(row, ids):
                expected, found = fault
                faults.setdefault((path, expected), Fault()).add(row["id"], found)
                continue
            rows.append({"id": ids[row["id"]], "annotator": row["annotator"], "p_a": _read_vote(row)})
    votes = pd.DataFrame(rows, columns=["id", "annotator", "p_a"])
    repeated = votes[votes["p_a"].notna() & votes.duplicated(["id", "annotator"], keep=False)]
    if len(repeated):
        expected = "one answer of an annotator to a battle"
        for id, annotator in repeated[["id", "annotator"]].drop_duplicates().itertuples(index=False):
            faults.setdefault((" ".join(paths), expected), Fault()).add(id, f"several by {annotator}")
    if faults:
        lines = [
            f"{path}: expected {expected}; found {', '.join(fault.found)} in {fault.count}: {fault}."
            for (path, expected), fault in faults.items()
        ]
        raise ValueError("\n".join([*lines, "Correct these rows, or give the --battles that were labelled."]))
    if votes["p_a"].isna().all():
        raise ValueError(f"{' '.join(paths)}: expected answers of annotators; found none. Fill in the winners first.")
    return votes


def _find_fault(row: Mapping, ids: Mapping) -> tuple[str, object] | None:
    """Returns what was expected of a row and what was found, or None if it is right."""
    if row["id"] not in ids:
        return "a battle of --battles", row["id"]
    if row["order"] not in ORIENTATIONS:
        return f"an order, {' or '.join(ORIENTATIONS)}, as it was written", row["order"]
    if row["winner"] and not (isinstance(row["winner"], str) and row["winner"] in CHOICES):
        return f"a winner, {', '.join(CHOICES)}, or nothing", row["winner"]
    if row["winner"] and not row["annotator"]:
        return "an annotator for each winner", ""
    return None


def _read_vote(row: Mapping) -> float:
    """Returns p_a of a row's choice; NaN without one."""
    if not row["winner"]:
        return np.nan
    left = CHOICES[row["winner"]]
    return left if row["order"] == "ab" else 1 - left


def _read_file(path: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a file: id, order, winner (empty without an answer) and annotator, all of them text."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{path}: expected text in UTF-8; found other bytes ({error}). Save it as "CSV UTF-8".'
        ) from error
    if not text.lstrip().startswith(("[", "{")):
        yield from _read_csv(path, text)
        return
    try:
        tasks = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected a JSON file; found an error in it: {error}. Export it again.") from error
    for task in tasks if isinstance(tasks, list) else [tasks]:
        try:
            rows = list(_read_record(task) if "responses" in task else _read_task(task))
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected tasks or records as select.py wrote them; found {str(task)[:80]}. Export from "
                "Label Studio as JSON (not JSON-MIN), from Argilla with to_json."
            ) from error
        yield from rows


def _read_csv(path: str, text: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a csv file, whose separator may be what a spreadsheet made of the comma."""
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    names = ("id", "order", "winner", "annotator")
    if missing := set(names) - set(rows.fieldnames or ()):
        raise ValueError(
            f"{path}: expected the columns {', '.join(names)}; found no {' and no '.join(sorted(missing))}. Keep the "
            "header that select.py wrote."
        )
    for row in rows:
        cells = {name: (row[name] or "").strip() for name in names}
        yield cells | {"id": cells["id"].removeprefix("'")}


def _read_record(record: Mapping) -> Iterator[dict[str, str]]:
    """Yields the votes on one of Argilla's records."""
    row = {"id": str(record["id"]), "order": record["metadata"].get("order")}
    responses = record["responses"].get("winner") or [{"value": "", "user_id": ""}]
    for response in responses:
        # Drafts and discarded records may have a value too.
        submitted = response.get("status") in (None, "submitted")
        yield row | {
            "winner": (response["value"] or "") if submitted else "",
            "annotator": str(response["user_id"] or ""),
        }


def _read_task(task: Mapping) -> Iterator[dict[str, str]]:
    """Yields the votes on one of Label Studio's tasks."""
    row = {"id": str(task["data"]["battle"]), "order": task["data"].get("order")}
    if not task.get("annotations"):
        yield row | {"winner": "", "annotator": ""}
    for annotation in task.get("annotations") or ():
        by = annotation.get("completed_by")
        by = by.get("email") or by.get("id") if isinstance(by, dict) else by
        chosen = [result["value"]["choices"][0] for result in annotation["result"] if result["from_name"] == "winner"]
        winner = "" if annotation.get("was_cancelled") else "".join(chosen[:1])
        yield row | {"winner": winner, "annotator": "" if by is None else str(by)}


# --- labels -----------------------------------------------------------------------------------------------------------


def label_battles(battles: Dataset, votes: pd.DataFrame) -> Dataset:
    """Returns the battles that have votes, labelled by them: training data for train.py.

    Args:
        battles: Battles; an outcome of their own is replaced.
        votes: What `read_annotations` returned for them.

    Returns:
        The battles in their order with the columns label (the share of votes for each answer; a tie is half a vote),
        num_votes and annotators.
    """
    given = votes.dropna(subset="p_a").sort_values(["id", "annotator"]).groupby("id", sort=False)
    table = given.agg(p_a=("p_a", "mean"), num_votes=("p_a", "size"), annotators=("annotator", list))
    rows = [row for row, id in enumerate(battles["id"]) if id in table.index]
    table = table.loc[[battles["id"][row] for row in rows]]
    outcomes = {*OUTCOMES, "num_votes", "annotators"}
    labelled = battles.select(rows).remove_columns([name for name in battles.column_names if name in outcomes])
    labels = [[p_a, 1 - p_a] for p_a in table["p_a"]]
    for name, column in (("label", labels), ("num_votes", table["num_votes"]), ("annotators", table["annotators"])):
        labelled = labelled.add_column(name, list(column))
    return labelled
