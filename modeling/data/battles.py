"""Battles as rows: loading them from any source in any schema, exchanging their sides. No tensors, no tokenizer.

Whatever the schema, what comes out has the columns id, prompt, response_a, response_b and, where the outcome is known,
label; other columns are carried along. Only this module and `schemas.py` may assume that there are two labels.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from modeling.data.reader import BattleReader, RowPolicy
from modeling.data.schemas import LABELS as LABELS
from modeling.data.schemas import RESPONSES
from modeling.data.schemas import TEXTS as TEXTS
from modeling.runtime.choices import ORIENTATIONS, TRAINED_ORIENTATIONS
from modeling.runtime.files import CHUNK_ROWS, iterate_columns

DEMO_FOLDER = Path(__file__).resolve().parent / "demo"  # the battles that were written for the demo


def load_battles(source: str | Path, *, require_labels: bool = False, **policy: str) -> Dataset:
    """Battles of a file or data set, checked and with labels, held in memory.

    Args:
        source: See `iterate_columns`; of one of the schemas of `SCHEMAS`.
        require_labels: Whether a source without winners or labels is an error.
        policy: Fields of `RowPolicy`.

    Returns:
        Rows in the source's order. Columns id (text or int), prompt, response_a, response_b (text), label (probability
        of each of `LABELS`, summing to 1; absent when there are no outcomes), then the source's other columns.

    Raises:
        FileNotFoundError: If there is no such file or data set.
        ValueError: If a column is missing or a row is unusable: the message names the file and the row ids.
    """
    reader = BattleReader(str(source), RowPolicy(**policy), require_labels)
    parts = [part.data.table for part in _read_parts(reader, source, CHUNK_ROWS)]
    # A column may be null throughout one part, and be absent from another where a jsonl leaves it out.
    table = pa.concat_tables(parts, promote_options="permissive")
    return Dataset(table.select([name for name in table.column_names if name not in reader.left_out]).combine_chunks())


def iterate_battles(
    source: str | Path, *, chunk_rows: int = CHUNK_ROWS, require_labels: bool = False, **policy: str
) -> Iterator[Dataset]:
    """`load_battles` in parts of at most `chunk_rows` rows, for sources that do not fit the memory.

    Nothing is yielded from the first unusable row on; the error, after the last row, counts them all. Whoever may not
    act on a part before the rest is checked goes through the source twice. A column that is left out because its values
    have no one type is in the parts before it was seen.
    """
    return _read_parts(BattleReader(str(source), RowPolicy(**policy), require_labels), source, chunk_rows)


def _read_parts(reader: BattleReader, source: str | Path, chunk_rows: int) -> Iterator[Dataset]:
    battles, found = None, False
    for columns in iterate_columns(source, chunk_rows):
        battles = reader.read(columns)
        if len(battles) and not reader.faults:
            found = True
            yield battles
    reader.finish()
    if battles is not None and not found:
        yield battles


# --- sides and winners ------------------------------------------------------------------------------------------------


def order_responses(orientation: str) -> tuple[str, str]:
    """The columns that an orientation reads first and second."""
    if orientation not in ORIENTATIONS:
        raise ValueError(f"orientation: expected one of {', '.join(ORIENTATIONS)}; found {orientation!r}.")
    return RESPONSES if orientation == "ab" else RESPONSES[::-1]


def list_orders(orientation: str) -> tuple[str, ...]:
    """The orders in which a member of this orientation reads: its own, or for "both" ab and ba."""
    if orientation not in TRAINED_ORIENTATIONS:
        raise ValueError(f"orientation: expected one of {', '.join(TRAINED_ORIENTATIONS)}; found {orientation!r}.")
    return ORIENTATIONS if orientation == "both" else (orientation,)


def orient_label(values: Sequence, orientation: str) -> list:
    """Turns values by label (a, b) into values by slot (first, second), and back: it is its own inverse."""
    order_responses(orientation)
    return list(values) if orientation == "ab" else list(values)[::-1]


def swap_responses(battles: Dataset) -> Dataset:
    """The same battles with the two answers, and the label, exchanged."""
    swapped = battles.rename_columns({"response_a": "response_b", "response_b": "response_a"})
    if "label" in battles.column_names:
        mirrored = [orient_label(label, "ba") for label in battles["label"]]
        swapped = swapped.remove_columns("label").add_column("label", mirrored)
    return swapped.select_columns(battles.column_names)


def name_winners(p_a: Iterable[float]) -> list[str]:
    """The winner strings of a submission: model_a where a is at least as likely."""
    return ["model_a" if p >= 0.5 else "model_b" for p in p_a]
