"""Answer sets: a prompt with 2 to 64 answers to rank. Loads and checks them. It must not know battles of two.

Whatever the source, a checked answer set has the keys id, prompt and responses.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from modeling.data.cells import FIX, RowError, parse_list
from modeling.data.conversations import join_if_messages, parse_conversation
from modeling.data.reader import RowIds
from modeling.data.text import is_blank
from modeling.runtime.sources import iterate_columns

COLUMNS = ("id", "prompt", "responses")
LEAST_RESPONSES, MOST_RESPONSES = 2, 64
FIX_ROWS = "Fix these rows."  # here no flag leaves rows out
ID_WAY_OUT = "Give every row an id of its own, all text or all whole numbers."
ROWS_NAMED = 5  # in a message; the others are only counted


def load_answer_sets(source: str | Path) -> list[dict]:
    """Loads the answer sets of a file, folder or data set that `iterate_columns` reads.

    Returns:
        {"id", "prompt", "responses"} of each row, in the source's order. Other columns are not read.

    Raises:
        FileNotFoundError: If there is no such file or data set.
        ValueError: If a column is missing or a row is unusable: the message names the source and the row ids.
    """
    rows = []
    for columns in iterate_columns(source):
        if missing := [name for name in COLUMNS if name not in columns]:
            raise ValueError(
                f"{source}: expected the columns {', '.join(COLUMNS)}; found no {', '.join(missing)}, only "
                f"{', '.join(columns) or 'no columns'}. Rename the columns; responses is a list of texts."
            )
        rows += [dict(zip(COLUMNS, cells, strict=True)) for cells in zip(*map(columns.get, COLUMNS), strict=True)]
    return check_answer_sets(rows, str(source))


def check_answer_sets(rows: Iterable[Mapping], source: str = "Answer sets") -> list[dict]:
    """Checks answer sets; see `load_answer_sets`. Rows without an id are numbered from 0.

    Raises:
        ValueError: If a row is unusable, or an id is on two rows.
    """
    checked, faults = [], {}  # faults: by what was expected, the ids and what was found first
    ids = RowIds()
    for number, row in enumerate(rows):
        id = number
        try:
            if not isinstance(row, Mapping):
                raise RowError("an answer set must be a dict with prompt and responses", row)
            id = row.get("id", number)
            checked.append({"id": _check_id(id, ids), **_check_texts(row)})
        except RowError as error:
            faults.setdefault(error.expected, (error, []))[1].append(id)
    for error, ids in faults.values():
        more = f" and {len(ids) - ROWS_NAMED} more" if len(ids) > ROWS_NAMED else ""
        named = ", ".join(map(repr, ids[:ROWS_NAMED]))
        raise ValueError(
            f"{source}: row{'s' * (len(ids) > 1)} {named}{more}: {error.expected}; found {error.found!r:.80}. "
            f"{error.way_out.replace(FIX, FIX_ROWS)}"
        )
    return checked


def _check_id(id: object, ids: RowIds) -> str | int:
    """The id; a RowError if it is none, is on another row too, or is of another type than the others."""
    id = id.item() if isinstance(id, np.generic) else id
    if isinstance(id, int) and not -(2**63) <= id < 2**63:
        raise RowError("ids must be text or whole numbers of 64 bits", id, ID_WAY_OUT)
    try:
        ids.check_type(id)
        return ids.add(id, is_unique=True)
    except RowError as error:  # its way out names flags of other scripts
        raise RowError(error.expected, id, ID_WAY_OUT) from error


def _check_texts(row: Mapping) -> dict:
    """The prompt and the responses as texts. Each may be a list of messages, and responses a list written as text."""
    responses = row.get("responses")
    responses = responses.tolist() if isinstance(responses, np.ndarray) else parse_list(responses)
    if not isinstance(responses, Sequence) or isinstance(responses, str):
        raise RowError("responses must be a list of texts", responses)
    if not LEAST_RESPONSES <= len(responses) <= MOST_RESPONSES:
        raise RowError(
            f"responses must be {LEAST_RESPONSES} to {MOST_RESPONSES} answers",
            len(responses),
            "A single answer has no rank; of more answers, rank parts first and then the best of each. " + FIX,
        )
    responses = [join_if_messages(response, "responses") for response in responses]
    prompt = join_if_messages(parse_conversation(row.get("prompt")), "prompt")
    for text in (prompt, *responses):
        if not isinstance(text, str) or is_blank(text):
            raise RowError("prompt and each of the responses must be text, and not blank", text)
    return {"prompt": prompt, "responses": responses}
