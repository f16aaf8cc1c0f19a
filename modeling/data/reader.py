"""Reads one source of battles chunk by chunk and checks every row.

Finds the schema, and counts what is dropped, repaired or wrong. It must not know file formats (`runtime/formats.py`),
names and types of columns (`columns.py`), or how a schema makes a battle of a row (`schemas.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from accelerate import PartialState
from datasets import Dataset, DatasetInfo
from datasets.fingerprint import generate_random_fingerprint

from modeling.data.cells import FIX, RowError, is_missing, match_label
from modeling.data.columns import ColumnTypes, WinnerValues, name_value, rename_columns
from modeling.data.outcomes import LABEL_SETS, LABELS, is_tie
from modeling.data.schemas import (
    CONTRADICTED,
    OUTCOMES,
    PLAIN,
    SCHEMA_NAMES,
    SCHEMAS,
    TEXTS,
    WINNERS,
    Schema,
    find_schema,
    hash_texts,
    join_row,
    refuse_structure,
)
from modeling.data.text import has_surrogates, is_blank, replace_nested_surrogates, replace_surrogates
from modeling.runtime.choices import BAD_ROW_POLICIES, BLANK_POLICIES, TIE_POLICIES
from modeling.runtime.formats import Columns
from modeling.runtime.logs import build_logger

logger = build_logger(__name__)
REPEATED = "each id must be on 1 row, because predictions are keyed by id"
BLANK = "prompt, response_a and response_b must not be null or blank"
MIXED_IDS = "ids must be all text or all whole numbers"
RENAME_ID = "or pass --columns row_id=id, which renames the column, so that ids are made"
ID_WAY_OUT = "Give every row an id of the same type"
BLANK_WAY_OUT = "Fix these rows, or pass --blank_policy drop (leaves them out) or keep (reads them as empty texts)."
ROWS_NAMED = 5  # in a message; the others are only counted
CHECKED = "bothways"  # `info.builder_name` of a data set whose rows were checked here


@dataclass(frozen=True, kw_only=True)
class RowPolicy:
    """What to do with rows that are not plain battles. Every drop is logged with its count.

    schema: One of `SCHEMA_NAMES`; "auto" recognises the schema by the columns.
    tie_policy: "keep" labels a tie [0.5, 0.5], or [0, 0, 1] with three labels; "drop" leaves ties out.
    blank_policy: For a null or blank text: "error", "drop", or "keep" (null becomes the empty text).
    bad_row_policy: For any other unusable row: "error" or "drop". It also decides about an extra column whose values
        have no common type.
    columns: The source's name of a column by the name that it gets, as {"response_a": "answer_a"}.
    winner_values: The source's value by the winner that it means, as {"model_a": 1, "model_b": 2, "tie": 0}.
    labels: The outcomes that a label gives probabilities of, one of `LABEL_SETS`. A label of two becomes one of three
        (see `match_label`); a label of three is an unusable row where two are wanted.
    """

    schema: str = "auto"
    tie_policy: str = "keep"
    blank_policy: str = "error"
    bad_row_policy: str = "error"
    columns: Mapping[str, str] = field(default_factory=dict)
    winner_values: Mapping[str, object] = field(default_factory=dict)
    labels: Sequence[str] = LABELS

    def __post_init__(self):
        choices = {
            "labels": LABEL_SETS,
            "schema": SCHEMA_NAMES,
            "tie_policy": TIE_POLICIES,
            "blank_policy": BLANK_POLICIES,
            "bad_row_policy": BAD_ROW_POLICIES,
        }
        for name, allowed in choices.items():
            if (value := vars(self)[name]) not in allowed:
                raise ValueError(f"--{name}: expected one of {', '.join(map(str, allowed))}; found {value!r}.")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError(f"--columns: expected one name for each column; found {dict(self.columns)}.")
        values = [name_value(value) for value in self.winner_values.values()]
        if not set(self.winner_values) <= set(WINNERS) or len(set(values)) < len(values):
            raise ValueError(
                f"--winner_values: expected another value for each of {', '.join(WINNERS)}; found "
                f"{', '.join(f'{winner}={value}' for winner, value in self.winner_values.items())}."
            )


# --- faults -----------------------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """Rows with the same problem: the ids of the first few, what was found there, and the number of rows.

    Example: with 7 rows added, `str(fault)` is "battles 'x0', 'x1', 'x2', 'x3', 'x4' and 2 more".
    """

    way_out: str = ""
    ids: list = field(default_factory=list)
    found: dict[str, None] = field(default_factory=dict)  # a dict, because it keeps order and drops repeats
    count: int = 0

    def add(self, id: object, found: object) -> None:
        """Counts one more row."""
        self.count += 1
        if self.count <= ROWS_NAMED:
            self.ids.append(id)
            self.found[repr(found)[:80]] = None

    def __str__(self) -> str:
        more = f" and {self.count - ROWS_NAMED} more" if self.count > ROWS_NAMED else ""
        return f"battle{'s' * (self.count > 1)} {', '.join(map(repr, self.ids))}{more}"


class Faults:
    """Collects the rows of one source that were dropped, repaired or are errors, for one report at the end."""

    def __init__(self, policy: RowPolicy):
        self.policy = policy
        self.errors: dict[str, Fault] = {}  # by what was expected
        self.dropped: dict[tuple[str, str], Fault] = {}  # by the reason and the flag that asked for it
        self.repaired, self.contradicted = Fault(), Fault()
        self.repaired_ids: set = set()

    def leave_out(self, id: object, error: RowError) -> None:
        """Counts a row that is not a battle as dropped where the policy says so, else as an error."""
        if error.expected == BLANK and self.policy.blank_policy == "drop":
            self.drop("blank texts", "--blank_policy drop", id)
        elif error.expected != BLANK and self.policy.bad_row_policy == "drop":
            self.drop(f"a fault, {error.expected}", "--bad_row_policy drop", id)
        else:
            self.errors.setdefault(error.expected, Fault(error.way_out)).add(id, error.found)

    def repair(self, id: object) -> None:
        """Counts a row with a repaired text, once."""
        if id not in self.repaired_ids:
            self.repaired_ids.add(id)
            self.repaired.add(id, None)

    def drop(self, reason: str, flag: str, id: object) -> None:
        """Counts a row as dropped."""
        self.dropped.setdefault((reason, flag), Fault()).add(id, None)

    def report(self, source: str, num_rows: int, repeats: Mapping[object, int]) -> None:
        """Logs what was dropped and repaired, then raises a ValueError if any row is an error."""
        for (reason, flag), fault in self.dropped.items():
            logger.warning(f"{source}: dropped {fault.count} of {num_rows} battles with {reason} ({flag}): {fault}")
        if self.repaired.count:
            logger.warning(f"{source}: {self.repaired}: repaired broken Unicode (lone surrogates became U+FFFD).")
        if self.contradicted.count:
            logger.warning(f"{source}: {self.contradicted}: the prompt is not in the messages; the messages were used")
        if repeats and REPEATED in self.errors:
            # Until now it counted rows. The message names each repeated id once, with all its rows.
            self.errors[REPEATED] = Fault(self.errors[REPEATED].way_out)
            for id, times in repeats.items():
                self.errors[REPEATED].add(id, times + 1)
        # One message only: the repeated ids if there are any, else the problem that was found first.
        for expected, fault in sorted(self.errors.items(), key=lambda item: item[0] != REPEATED):
            raise ValueError(f"{source}: {fault}: {expected}; found {', '.join(fault.found)}. {fault.way_out}")


# --- columns ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Which columns a source has, and what each of them is for."""

    names: frozenset[str]  # all columns of the first chunk
    name: str  # of the schema
    schema: Schema
    in_turns: bool  # whether the texts are lists of turns, in a schema whose texts are plain
    is_forced: bool  # whether the user chose the schema, by which texts are read as they are
    id_column: str | None  # None: the ids are hashes of the texts
    needed: frozenset[str]
    produced: tuple[str, ...]  # columns that every battle gets
    consumed: frozenset[str]  # columns that are not carried along

    def check(self, source: str, columns: Columns, num_rows: int) -> None:
        """Raises a ValueError if a later chunk lacks a needed column, or has other outcome columns than the first."""
        outcomes = OUTCOMES.union(self.schema.outcomes)
        if outcomes & set(columns) != outcomes & self.names or not self.needed <= set(columns):
            raise ValueError(
                f"{source}: expected the columns {', '.join(sorted(self.names))} throughout; found "
                f"{', '.join(columns)} after row {num_rows:,}. Give every row the same columns."
            )

    def read_row(self, row: Mapping, id: object) -> dict:
        """Returns the battle of a row; a RowError if it is none."""
        battle = self.schema.read_row(row, id)
        if self.in_turns:
            return battle | join_row(row)
        if self.name in PLAIN and not self.is_forced:
            refuse_structure(battle, self.name)
        return battle


def find_layout(source: str, columns: Columns, policy: RowPolicy, require_labels: bool) -> Layout:
    """Returns the layout of a source from its first chunk.

    Raises:
        ValueError: If a needed column is missing.
    """
    is_forced = policy.schema != "auto"
    name, in_turns = (policy.schema, False) if is_forced else find_schema(source, columns)
    schema = SCHEMAS[name]
    labelled = any(name in columns for name in schema.outcomes)
    id_column = next((name for name in schema.ids if name in columns), None)
    needed = [*schema.columns, *(schema.outcomes if labelled else ())]
    if missing := [name for name in dict.fromkeys([*needed, *schema.also]) if name not in columns]:
        raise ValueError(
            f"{source}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; found "
            f"{', '.join(columns) or 'no'} columns. Rename them to id, prompt, response_a, response_b and winner "
            "(or label), or say what they are called, as in --columns response_a=answer_a; docs/data.md lists the "
            "other schemas."
        )
    if require_labels and not labelled:
        raise ValueError(
            f"{source}: expected a winner (or label) column with the outcomes; found {', '.join(columns)}. "
            "Training and evaluation need outcomes; give a file that has them, or name the column, as in --columns "
            "winner=preference."
        )
    produced = ("id", *TEXTS, *(("label", *schema.adds) if labelled else ()))
    # A p_a that is not the label is carried along: it may be a judge's prediction for a battle that has a winner.
    consumed = frozenset({*produced, *needed, *OUTCOMES - {"p_a"}, id_column})
    names = frozenset(columns)
    layout = Layout(
        names, name, schema, in_turns, is_forced, id_column, frozenset([*needed, *schema.also]), produced, consumed
    )
    _explain_layout(source, layout)
    return layout


def _explain_layout(source: str, layout: Layout) -> None:
    """Logs what was found out about a source that its owner may want otherwise."""
    if layout.name != "p_a" and "p_a" in layout.names:
        logger.info(f"{source}: takes labels from {layout.name}; pass --schema p_a to take them from p_a")
    in_turns = layout.in_turns or (layout.name == "lmsys" and OUTCOMES.isdisjoint(layout.names))
    if in_turns and not layout.is_forced:
        how, plain = ("as lmsys without outcomes", "unlabelled") if layout.name == "lmsys" else ("so", layout.name)
        logger.warning(
            f"{source}: the texts of its first rows are lists of turns, so it is read {how}; pass --schema {plain} to "
            "read the texts as they are"
        )
    if layout.id_column is None and not layout.schema.is_public:
        logger.warning(
            f"{source}: no column id, so each battle's id is a hash of its texts; pass --columns id=<its name> if "
            "another column is the id"
        )


# --- rows -------------------------------------------------------------------------------------------------------------


def build_battles(table: pa.Table) -> Dataset:
    """Returns a table of checked rows as a data set with a mark, so that `is_checked` knows it."""
    # A random fingerprint, because the default is a hash of the content, which takes longer than reading a battle.
    return Dataset(table, DatasetInfo(builder_name=CHECKED), fingerprint=generate_random_fingerprint())


def is_checked(battles: object) -> bool:
    """Returns whether these are battles of `build_battles`, or some of their rows.

    `datasets` keeps the mark when it changes columns or joins data sets, so they are looked at as far as that costs
    little: missing columns, nulls and repeated ids.
    """
    if not isinstance(battles, Dataset) or battles.info.builder_name != CHECKED:
        return False
    if not {"id", *TEXTS} <= set(battles.column_names):
        return False
    # Of the whole table, though the data set may be some of its rows: a fault elsewhere only costs a second check.
    if any(battles.data[name].null_count for name in TEXTS):
        return False
    return pc.count_distinct(battles.data["id"]).as_py() == len(battles.data)


class RowIds:
    """The ids of a source so far: all text or all whole numbers, each on one row."""

    def __init__(self):
        self.type: type | None = None  # of the first id
        self.seen: set = set()
        self.repeats: Counter = Counter()  # rows of each id beyond its first

    def check_type(self, id: object) -> None:
        """Raises a RowError if an id is not of the first id's type."""
        # bool is a subclass of int, but True is not an id.
        is_key = isinstance(id, str | int) and not isinstance(id, bool)
        if not is_key or type(id) is not (self.type or type(id)):
            raise RowError(MIXED_IDS, id, f"{ID_WAY_OUT}, {RENAME_ID}." if is_missing(id) else f"{ID_WAY_OUT}.")

    def add(self, id: object, *, is_unique: bool, first_number: int = 1) -> object:
        """Returns an id to key predictions by: the id itself or, if it is taken and may be, the id with a number.

        Args:
            id: The id as it is in the source.
            is_unique: Whether each id must be on one row.
            first_number: The number of an id's first repeat.

        Raises:
            RowError: If the id is blank, is not valid Unicode, or is taken and must not be.
        """
        if isinstance(id, str) and (not id.strip() or has_surrogates(id)):
            way_out = f"Give every row an id, {RENAME_ID}."
            raise RowError("ids must be non-blank, valid Unicode text", id, way_out)
        self.type = type(id)
        key = id if is_unique else str(id)  # a number behind it makes it text, and all ids have one type
        if key in self.seen:
            self.repeats[key] += 1
            if is_unique:
                way_out = "Make the ids unique. If they are of prompts, pass --columns prompt_id=id. Then ids are made."
                raise RowError(REPEATED, self.repeats[key] + 1, way_out)
            number = self.repeats[key] + first_number - 1
            while f"{key}-{number}" in self.seen:  # an id of the source may look like one that was made
                number += 1
            key = f"{key}-{number}"
        self.seen.add(key)
        return key

    def report(self, source: str, column: str | None) -> None:
        """Logs how many rows of an id column got a number."""
        if column not in (None, "id") and self.repeats:
            example = next(iter(self.repeats))
            logger.warning(
                f"{source}: {column} is the same on several rows, so {self.repeats.total()} ids got a number, as "
                f"{example}-1 after {example}"
            )


class BattleReader:
    """Turns the chunks of one source into battles.

    Example: `reader = BattleReader("f.csv", RowPolicy()); battles = reader.read(columns); reader.finish()`.

    Args:
        source: The name of the source in messages.
        policy: What to do with rows that are not plain battles.
        require_labels: Whether a source without outcomes is an error.
    """

    def __init__(self, source: str, policy: RowPolicy, require_labels: bool = False):
        PartialState()  # accelerate's logger needs it
        self.source, self.policy, self.require_labels = source, policy, require_labels
        self.num_rows = 0
        self.layout: Layout | None = None
        self.ids, self.faults, self.types = RowIds(), Faults(policy), ColumnTypes(source, policy.bad_row_policy)
        self.winners = WinnerValues(policy.winner_values)

    def read(self, columns: Columns) -> Dataset:
        """Returns the battles of one chunk without its unusable rows, which `finish` reports. See `read_table`."""
        return build_battles(self.read_table(columns))

    def read_table(self, columns: Columns) -> pa.Table:
        """Returns the table that `read` makes a data set of.

        Raises:
            ValueError: If columns are missing, or hold values of several types.
        """
        columns = rename_columns(self.source, columns, self.policy.columns, is_first=self.layout is None)
        self.winners.translate(columns)
        if self.layout is None:
            self.layout = find_layout(self.source, columns, self.policy, self.require_labels)
        else:
            self.layout.check(self.source, columns, self.num_rows)
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        battles = {number: battle for number, row in enumerate(rows) if (battle := self._read_row(row, number))}
        self.num_rows += len(rows)
        read = {name: [battle[name] for battle in battles.values()] for name in self.layout.produced}
        extra = [name for name in columns if name not in self.layout.consumed and name not in self.types.left_out]
        read |= {name: [rows[number].get(name) for number in battles] for name in extra}
        return self.types.build_table(read, self.layout.produced, lambda values: self._mend(read["id"], values))

    def finish(self) -> None:
        """Logs what was dropped and repaired, and raises a ValueError if any row was unusable."""
        self.types.report()
        self.winners.report(self.source)
        self.ids.report(self.source, self.layout and self.layout.id_column)
        self.faults.report(self.source, self.num_rows, self.ids.repeats)

    def _read_row(self, row: Mapping, number: int) -> dict | None:
        """Returns the battle of a row of this chunk, or None if the row is left out."""
        id = f"row {self.num_rows + number}"  # names the row in an error about its id
        column, schema = self.layout.id_column, self.layout.schema
        try:
            given = row[column] if column else hash_texts(row, schema.hashed)
            self.ids.check_type(given)
            id = given
            # The same texts twice are two battles; their hash has had the number 2 from the beginning.
            id = self.ids.add(given, is_unique=column == "id", first_number=1 if column else 2)
            battle = self.layout.read_row(row, id)
            if "label" in battle:
                battle["label"] = match_label(battle["label"], self.policy.labels)
            if battle.pop(CONTRADICTED, False):
                self.faults.contradicted.add(id, None)
            battle |= {name: self._read_text(battle[name], name, id) for name in TEXTS}
            blank = {name: row.get(name, battle[name]) for name in TEXTS if is_blank(battle[name])}
            if blank and self.policy.blank_policy != "keep":
                raise RowError(BLANK, blank, BLANK_WAY_OUT)
        except RowError as error:
            self.faults.leave_out(id, error)
            return None
        if self.policy.tie_policy == "drop" and "label" in battle and is_tie(battle["label"]):
            self.faults.drop("ties", "--tie_policy drop", id)
            return None
        return {"id": id, **battle}

    def _read_text(self, text: object, name: str, id: object) -> str:
        """Returns a text that a tokenizer and a file can hold; null is the empty text."""
        if text is None or text != text:  # NaN is what pandas writes for a missing text
            return ""
        if not isinstance(text, str):
            raise RowError(f"{name} must be text", text, f"Convert these rows to text. {FIX}")
        return self._repair(text, id)

    def _repair(self, text: str, id: object) -> str:
        """Returns the text without surrogates, and counts the row if it had any."""
        if not has_surrogates(text):
            return text
        self.faults.repair(id)
        return replace_surrogates(text)

    def _mend(self, ids: list, values: list) -> list:
        """The values of a carried column without surrogates, at any depth; counts the rows that had some."""
        mended = [replace_nested_surrogates(value) for value in values]
        for id, value, whole in zip(ids, values, mended, strict=True):
            if value is not whole and value != whole:  # NaN is no other than itself
                self.faults.repair(id)
        return mended
