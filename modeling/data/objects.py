"""Battles that are Python objects: a table, a list of rows or a single battle, as columns. It must not know schemas."""

from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset

from modeling.data.schemas import TEXTS
from modeling.runtime.formats import Columns

KINDS = (
    "a table (pandas, datasets, Arrow, polars), a list of dicts, a list of tuples (prompt, response_a, response_b), or "
    "one such dict or tuple"
)


def list_columns(battles: object) -> Columns:
    """Returns the columns of battles as Python lists; a column that only some of the rows have is None in the others.

    Args:
        battles: One of `KINDS`.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(battles, pd.DataFrame):
        columns = _read_frame(battles)
    elif isinstance(battles, Dataset):
        columns = battles.with_format(None).to_dict()
    elif hasattr(battles, "__arrow_c_stream__"):
        columns = pa.table(battles).to_pydict()
    else:
        rows = [_read_row(row, number) for number, row in enumerate(_list_rows(battles))]
        names = dict.fromkeys(chain.from_iterable(rows) if rows else TEXTS)
        columns = {name: [row.get(name) for row in rows] for name in names}
    return {name: [_unwrap(value) for value in values] for name, values in columns.items()}


def _read_frame(frame: pd.DataFrame) -> Columns:
    """The columns of a pandas table, with the index if that has the ids."""
    if frame.index.name == "id" and "id" not in frame:
        frame = frame.reset_index()
    if not frame.columns.is_unique:
        raise ValueError(
            f"Battles: expected distinct column names; found {', '.join(map(str, frame.columns))}. Rename or drop some."
        )
    return {name: frame[name].tolist() for name in frame}


def _list_rows(battles: object) -> Iterable:
    """The rows; one battle is one row."""
    is_row = isinstance(battles, tuple) and not any(isinstance(part, Mapping | tuple) for part in battles)
    if isinstance(battles, Mapping) or is_row:
        return [battles]
    if isinstance(battles, str | bytes) or not isinstance(battles, Iterable):
        way_out = " Read a file with load_battles." if isinstance(battles, str) else ""
        raise ValueError(f"Battles: expected {KINDS}; found {type(battles).__name__} {battles!r:.60}.{way_out}")
    return battles


def _read_row(row: object, number: int) -> Mapping:
    """A row by the names of its columns."""
    if isinstance(row, Mapping):
        return row
    if isinstance(row, tuple | list) and len(row) == len(TEXTS):
        return dict(zip(TEXTS, row, strict=True))
    raise ValueError(
        f"Battles: row {number}: expected a dict, or a tuple ({', '.join(TEXTS)}); found {type(row).__name__} "
        f"{row!r:.60}. Give one battle as a tuple or dict, several as a list of them."
    )


def _unwrap(value: object) -> object:
    """A cell as Python writes it: lists and numbers of numpy's are Python's, and pandas' missing value is None."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return None if value is pd.NA else value
