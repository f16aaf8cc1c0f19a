"""Loads battles from any source or object in any schema, and swaps their sides. Knows no tensors and no tokenizer.

Whatever the schema, loaded battles have the columns id, prompt, response_a, response_b and, where the outcome is known,
label. Other columns are carried along.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from modeling.data.columns import rename_columns
from modeling.data.objects import list_columns
from modeling.data.outcomes import LABELS as LABELS
from modeling.data.outcomes import mirror_label
from modeling.data.outcomes import name_winners as name_winners
from modeling.data.reader import BattleReader, RowPolicy, build_battles, is_checked
from modeling.data.schemas import ID_COLUMNS, RESPONSES
from modeling.data.schemas import TEXTS as TEXTS
from modeling.runtime.choices import ORIENTATIONS, TRAINED_ORIENTATIONS
from modeling.runtime.formats import CHUNK_ROWS
from modeling.runtime.sources import iterate_columns

NO_PROMPT = "?"  # not an empty text, which would be a bad row
DEMO_FOLDER = Path(__file__).resolve().parent / "demo"  # battles written for the demo


def load_battles(source: str | Path, *, require_labels: bool = False, **policy: str | Mapping) -> Dataset:
    """Loads the battles of a file or data set into memory, checked and labelled.

    Args:
        source: A file or data set that `iterate_columns` reads, in one of the schemas of `SCHEMAS`.
        require_labels: Whether a source without winners or labels is an error.
        policy: Fields of `RowPolicy`.

    Returns:
        Rows in the source's order. Columns: id (text or int), prompt, response_a, response_b (text), label
        (probability of each of the policy's `labels`, summing to 1; absent if the source has no outcomes), then the
        source's others.

    Raises:
        FileNotFoundError: If there is no such file or data set.
        ValueError: If a column is missing or a row is unusable: the message names the file and the row ids.
    """
    reader = BattleReader(str(source), RowPolicy(**policy), require_labels)
    parts = [part.data.table for part in _read_parts(reader, source, CHUNK_ROWS)]
    # "permissive": a column may be all null in one part, or absent from it, as jsonl rows may lack a key.
    table = pa.concat_tables(parts, promote_options="permissive")
    # A column can turn out to have no common type only after earlier parts have already included it.
    names = [name for name in table.column_names if name not in reader.types.left_out]
    return build_battles(table.select(names).combine_chunks())


def read_battles(battles: object, **policy: str | Mapping) -> Dataset:
    """Reads battles that are Python objects, checked as those of a file are.

    Args:
        battles: A table of pandas, `datasets`, Arrow or polars; a list of dicts or of tuples (prompt, response_a,
            response_b); or one such dict or tuple. Columns and keys are those of a schema of `SCHEMAS`. A prompt may
            be a list of messages.
        policy: Fields of `RowPolicy`, which are the flags that errors name.

    Returns:
        Rows in the order of the battles, with the columns id, prompt, response_a and response_b. Without ids they are
        numbered from 0. What `load_battles` returned is not checked again.

    Raises:
        ValueError: As for `load_battles`, with "Battles" in place of the file.
    """
    if is_checked(battles):
        return battles
    policy = RowPolicy(**policy)
    columns = rename_columns("Battles", list_columns(battles), policy.columns, is_first=True)
    if set(TEXTS) <= set(columns):  # others do not matter, not even an outcome that could not be read
        columns = {name: columns[name] for name in ("id", *TEXTS) if name in columns}
    if ID_COLUMNS.isdisjoint(columns):
        columns = {"id": list(range(len(next(iter(columns.values()), ())))), **columns}
    reader = BattleReader("Battles", replace(policy, columns={}))
    table = reader.read_table(columns)
    reader.finish()
    return build_battles(table.select(["id", *TEXTS]))


def iterate_battles(
    source: str | Path, *, chunk_rows: int = CHUNK_ROWS, require_labels: bool = False, **policy: str | Mapping
) -> Iterator[Dataset]:
    """Yields what `load_battles` returns in parts of at most `chunk_rows` rows, for sources larger than memory.

    After the first unusable row nothing more is yielded; the error is raised after the last row and counts them all. A
    caller that may not act on any part of a bad source must therefore iterate twice. An extra column without a common
    type is still in the parts before the row that shows it.
    """
    return _read_parts(BattleReader(str(source), RowPolicy(**policy), require_labels), source, chunk_rows)


def _read_parts(reader: BattleReader, source: str | Path, chunk_rows: int) -> Iterator[Dataset]:
    """Yields the chunks that have battles, or one empty chunk if none has any, so that columns are always known."""
    battles, has_yielded = None, False
    for columns in iterate_columns(source, chunk_rows):
        battles = reader.read(columns)
        if len(battles) and not reader.faults.errors:
            has_yielded = True
            yield battles
    reader.finish()
    if battles is not None and not has_yielded:
        yield battles


# --- sides and winners ------------------------------------------------------------------------------------------------


def order_responses(orientation: str) -> tuple[str, str]:
    """Returns the columns that an orientation shows first and second."""
    if orientation not in ORIENTATIONS:
        raise ValueError(f"orientation: expected one of {', '.join(ORIENTATIONS)}; found {orientation!r}.")
    return RESPONSES if orientation == "ab" else RESPONSES[::-1]


def list_orders(orientation: str) -> tuple[str, ...]:
    """Returns the orders in which a member of this orientation reads: its own, or both for "both"."""
    if orientation not in TRAINED_ORIENTATIONS:
        raise ValueError(f"orientation: expected one of {', '.join(TRAINED_ORIENTATIONS)}; found {orientation!r}.")
    return ORIENTATIONS if orientation == "both" else (orientation,)


def orient_label(values: Sequence, orientation: str) -> list:
    """Turns values by label (a, b, tie) into values by slot (first, second, tie). It is its own inverse."""
    order_responses(orientation)  # raises if the orientation is unknown
    return list(values) if orientation == "ab" else mirror_label(values)


def swap_responses(battles: Dataset) -> Dataset:
    """Returns the same battles with the two responses, and the label, swapped."""
    swapped = battles.rename_columns({"response_a": "response_b", "response_b": "response_a"})
    if "label" in battles.column_names:
        mirrored = [orient_label(label, "ba") for label in battles["label"]]
        swapped = swapped.remove_columns("label").add_column("label", mirrored)
    return swapped.select_columns(battles.column_names)


def hide_prompts(battles: Dataset) -> Dataset:
    """Returns the same battles with `NO_PROMPT` in place of every prompt, to see what the answers alone give away."""
    hidden = battles.remove_columns("prompt").add_column("prompt", [NO_PROMPT] * len(battles))
    return hidden.select_columns(battles.column_names)
