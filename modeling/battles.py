"""Battles as rows: reading them, checking them, their labels, their sides, their folds. No tensors, no tokenizer.

Every schema in which battles arrive is turned into one: columns id, prompt, response_a, response_b and, where the
outcome is known, label; other columns are carried along. Only this module knows winner strings, and only this
module may assume that there are two labels.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset

from modeling.files import Columns, read_columns

logger = get_logger(__name__)
LABELS = ("a", "b")
ORIENTATIONS = ("ab", "ba")
TRAINED_ORIENTATIONS = (*ORIENTATIONS, "both")  # what a member can have learned to read
RESPONSES = ("response_a", "response_b")
TEXTS = ("prompt", *RESPONSES)
WINNERS = {"model_a": [1.0, 0.0], "model_b": [0.0, 1.0], "tie": [0.5, 0.5]}
TIE_POLICIES = ("keep", "drop")
BLANK_POLICIES = ("error", "drop", "keep")
LABEL_SUM_TOLERANCE = 1e-3
SURROGATE = re.compile("[\ud800-\udfff]")


def load_battles(
    path: str | Path, *, tie_policy: str = "keep", blank_policy: str = "error", require_labels: bool = False
) -> Dataset:
    """Battles of a parquet, csv or jsonl file, checked and with labels.

    Args:
        path: File of one of the schemas of `SCHEMAS`.
        tie_policy: "keep" labels a tie [0.5, 0.5]; "drop" leaves ties out and logs how many.
        blank_policy: What to do with a null or blank text: "error", "drop" (logged with the count), or "keep" (null
            becomes the empty text).
        require_labels: Whether a file without winners or labels is an error.

    Returns:
        Rows in the file's order. Columns id (text or int), prompt, response_a, response_b (text), label (probability
        of each of `LABELS`, summing to 1; absent when the file has no outcomes), then the file's other columns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing or a row is unusable: the message names the file and the row ids.
    """
    PartialState()  # accelerate's logger needs it
    path = Path(path)
    _check_choice("tie_policy", tie_policy, TIE_POLICIES)
    _check_choice("blank_policy", blank_policy, BLANK_POLICIES)
    columns = read_columns(path)
    _check_columns(path, columns)
    _check_ids(path, columns["id"])
    _repair_surrogates(path, columns)
    columns = _apply_blank_policy(path, columns, blank_policy)
    columns = find_schema(path, columns)(path, columns)
    if require_labels and "label" not in columns:
        raise ValueError(
            f"{path}: expected a winner (or label) column with the outcomes; found {', '.join(columns)}. "
            "Training and evaluation need outcomes; give a file that has them."
        )
    if tie_policy == "drop" and "label" in columns:
        keep = [len(set(label)) > 1 for label in columns["label"]]
        columns = _drop(path, columns, keep, "ties", "--tie_policy drop")
    leading = ["id", *TEXTS, *(["label"] if "label" in columns else [])]
    return _build_dataset(path, {name: columns[name] for name in [*leading, *(c for c in columns if c not in leading)]})


# --- schemas: columns in, columns with `label` out. A further schema is one function and one row here ----------------


def _label_winners(path: Path, columns: Columns) -> Columns:
    """WSDM: `winner` is model_a, model_b or tie."""
    winners = columns.pop("winner")
    pairs = zip(columns["id"], winners, strict=True)
    _raise_for(
        path,
        {id: winner for id, winner in pairs if not isinstance(winner, str) or winner not in WINNERS},
        f"winner must be one of {', '.join(WINNERS)}",
        "Fix these rows or leave them out of the file.",
    )
    return {**columns, "label": [WINNERS[winner] for winner in winners]}


def _check_labels(path: Path, columns: Columns) -> Columns:
    """This project's own: `label` is already a probability per label."""
    _raise_for(
        path,
        {id: label for id, label in zip(columns["id"], columns["label"], strict=True) if not _is_label(label)},
        f"label must be {len(LABELS)} probabilities (of {', '.join(LABELS)}) that sum to 1",
        "Fix these rows or leave them out of the file.",
    )
    return {**columns, "label": [[float(p) / math.fsum(label) for p in label] for label in columns["label"]]}


def _leave_unlabelled(_: Path, columns: Columns) -> Columns:
    return columns


def _is_label(label: object) -> bool:
    if not isinstance(label, list) or len(label) != len(LABELS):
        return False
    # A comparison with NaN is false, so NaN fails here too.
    numbers = all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in label)
    return numbers and abs(math.fsum(label) - 1) <= LABEL_SUM_TOLERANCE


SCHEMAS: dict[tuple[str, ...], Callable[[Path, Columns], Columns]] = {
    ("winner",): _label_winners,
    ("label",): _check_labels,
    (): _leave_unlabelled,
}


def find_schema(path: Path, columns: Columns) -> Callable[[Path, Columns], Columns]:
    """The first schema whose columns the file has.

    Raises:
        ValueError: If two outcome columns contradict each other's claim to be the label.
    """
    if "winner" in columns and "label" in columns:
        raise ValueError(
            f"{path}: expected one outcome column; found both winner and label. Remove the one that is not meant."
        )
    return next(schema for names, schema in SCHEMAS.items() if all(name in columns for name in names))


# --- checks -----------------------------------------------------------------------------------------------------------


def name_rows(ids: Sequence) -> str:
    """`battle 'x'`, or the first five ids and how many more there are."""
    shown = ", ".join(repr(id) for id in ids[:5])
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"battle{'s' * (len(ids) > 1)} {shown}{more}"


def _raise_for(path: Path, odd: dict, expectation: str, way_out: str) -> None:
    """Raises for the rows in `odd` (id: what was found there), if there are any."""
    if odd:
        found = list(dict.fromkeys(repr(value)[:80] for value in odd.values()))
        raise ValueError(f"{path}: {name_rows(list(odd))}: {expectation}; found {', '.join(found[:5])}. {way_out}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"--{name}: expected one of {', '.join(choices)}; found {value!r}.")


def _check_columns(path: Path, columns: Columns) -> None:
    missing = [name for name in ("id", *TEXTS) if name not in columns]
    if missing:
        raise ValueError(
            f"{path}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; found {', '.join(columns) or 'no'}"
            " columns. Rename them to id, prompt, response_a, response_b and winner (or label)."
        )


def _check_ids(path: Path, ids: list) -> None:
    kinds = {type(id) for id in ids}
    if not (kinds <= {str} or kinds <= {int}):
        odd = [(row, id) for row, id in enumerate(ids) if not isinstance(id, str | int) or isinstance(id, bool)]
        found = f"{odd[0][1]!r} in row {odd[0][0]}" if odd else "both"
        raise ValueError(
            f"{path}: ids must be all text or all whole numbers; found {found}. Give every row an id of one kind."
        )
    _raise_for(
        path,
        {id: id for id in ids if isinstance(id, str) and (not id.strip() or SURROGATE.search(id))},
        "ids must be non-blank, valid Unicode text",
        "Give every row an id.",
    )
    _raise_for(
        path,
        {id: count for id, count in Counter(ids).items() if count > 1},
        "an id must stand on 1 row, because predictions are keyed by id",
        "Make the ids unique.",
    )


def _repair_surrogates(path: Path, columns: Columns) -> None:
    """Joins surrogate pairs and replaces lone ones by U+FFFD, in place: no tokenizer and no file can hold them."""
    touched = set()
    for values in columns.values():
        for row, text in enumerate(values):
            if isinstance(text, str) and SURROGATE.search(text):
                values[row] = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                touched.add(columns["id"][row])
    if touched:
        logger.warning(
            f"{path}: {name_rows(sorted(touched))}: repaired broken Unicode (lone surrogates became U+FFFD)."
        )


def _apply_blank_policy(path: Path, columns: Columns, policy: str) -> Columns:
    for name in TEXTS:
        pairs = zip(columns["id"], columns[name], strict=True)
        _raise_for(
            path,
            {id: text for id, text in pairs if not isinstance(text, str | None) and text == text},
            f"{name} must be text",
            "Convert these rows to text.",
        )
    # NaN is what pandas writes for a missing text.
    texts = {name: [text if isinstance(text, str) else "" for text in columns[name]] for name in TEXTS}
    blank = [
        {name: columns[name][row] for name in TEXTS if not texts[name][row].strip()}
        for row in range(len(columns["id"]))
    ]
    if policy == "error":
        _raise_for(
            path,
            {id: fields for id, fields in zip(columns["id"], blank, strict=True) if fields},
            "prompt, response_a and response_b must not be null or blank",
            "Fix these rows, or pass --blank_policy drop (leaves them out) or keep (reads them as empty texts).",
        )
    columns = {**columns, **texts}
    if policy == "drop":
        columns = _drop(path, columns, [not fields for fields in blank], "blank texts", "--blank_policy drop")
    return columns


def _drop(path: Path, columns: Columns, keep: Sequence[bool], what: str, flag: str) -> Columns:
    """The rows to keep; says how many went and on whose word."""
    logger.warning(f"{path}: dropped {len(keep) - sum(keep)} of {len(keep)} battles with {what} ({flag}).")
    return {name: [value for value, kept in zip(values, keep, strict=True) if kept] for name, values in columns.items()}


def _build_dataset(path: Path, columns: Columns) -> Dataset:
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
            raise ValueError(
                f"{path}: column {name}: expected values of one storable type; found otherwise ({error}). "
                "Give it one type or remove it."
            ) from error
    if not columns["id"]:
        arrays.update({name: pa.array([], pa.string()) for name in ("id", *TEXTS)})
    return Dataset(pa.table(arrays))


# --- sides, winners, folds --------------------------------------------------------------------------------------------


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


def split_folds(battles: Dataset, num_folds: int, fold: int) -> tuple[Dataset, Dataset]:
    """Training and evaluation parts; battles of one prompt always fall on the same side.

    The fold comes from a hash of the prompt (case and white space aside), so it does not depend on the order or the
    other rows, and no prompt is both trained on and evaluated.

    Raises:
        ValueError: If the fold does not exist or one of the parts is empty.
    """
    if num_folds < 2 or not 0 <= fold < num_folds:
        raise ValueError(f"--num_folds {num_folds} --fold {fold}: expected num_folds >= 2 and 0 <= fold < num_folds.")
    digests = (hashlib.sha256(" ".join(prompt.casefold().split()).encode()).digest() for prompt in battles["prompt"])
    in_fold = [int.from_bytes(digest[:8]) % num_folds == fold for digest in digests]
    parts = [battles.select([row for row, inside in enumerate(in_fold) if inside is side]) for side in (False, True)]
    if not all(len(part) for part in parts):
        raise ValueError(
            f"--num_folds {num_folds} --fold {fold}: found {len(parts[0])} battles to train on and "
            f"{len(parts[1])} to evaluate on; expected some on both sides. Use fewer folds or another fold."
        )
    return parts[0], parts[1]
