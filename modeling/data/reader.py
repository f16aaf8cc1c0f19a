"""Reads one source of battles chunk by chunk and checks every row.

Finds the schema and the columns, counts what is dropped, repaired or wrong, and keeps one type per column. It must not
know file formats (`runtime/formats.py`) or how a schema makes a battle of a row (`schemas.py`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset

from modeling.data.schemas import (
    CONTRADICTED,
    FIX,
    LABELS,
    OUTCOMES,
    SCHEMA_NAMES,
    SCHEMAS,
    TEXTS,
    RowError,
    Schema,
    find_schema,
    hash_texts,
)
from modeling.data.text import has_surrogates, is_blank, replace_surrogates
from modeling.runtime.choices import BAD_ROW_POLICIES, BLANK_POLICIES, TIE_POLICIES
from modeling.runtime.formats import Columns

logger = get_logger(__name__)
REPEATED = "each id must be on 1 row, because predictions are keyed by id"
BLANK = "prompt, response_a and response_b must not be null or blank"
MIXED_IDS = "ids must be all text or all whole numbers"
ID_WAY_OUT = "Give every row an id of the same type, or pass --bad_row_policy drop to leave these rows out."
BLANK_WAY_OUT = "Fix these rows, or pass --blank_policy drop (leaves them out) or keep (reads them as empty texts)."
ROWS_NAMED = 5  # in a message; the others are only counted


@dataclass(frozen=True, kw_only=True)
class RowPolicy:
    """What to do with rows that are not plain battles. Every drop is logged with its count.

    schema: One of `SCHEMA_NAMES`; "auto" recognises the schema by the columns.
    tie_policy: "keep" labels a tie [0.5, 0.5]; "drop" leaves ties out.
    blank_policy: For a null or blank text: "error", "drop", or "keep" (null becomes the empty text).
    bad_row_policy: For any other unusable row: "error" or "drop". It also decides about an extra column whose values
        have no common type.
    """

    schema: str = "auto"
    tie_policy: str = "keep"
    blank_policy: str = "error"
    bad_row_policy: str = "error"

    def __post_init__(self):
        choices = {
            "schema": SCHEMA_NAMES,
            "tie_policy": TIE_POLICIES,
            "blank_policy": BLANK_POLICIES,
            "bad_row_policy": BAD_ROW_POLICIES,
        }
        for name, allowed in choices.items():
            if (value := vars(self)[name]) not in allowed:
                raise ValueError(f"--{name}: expected one of {', '.join(allowed)}; found {value!r}.")


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

    def leave_out(self, id: object, error: RowError) -> None:
        """Counts a row that is not a battle as dropped where the policy says so, else as an error."""
        if error.expected == BLANK and self.policy.blank_policy == "drop":
            self.drop("blank texts", "--blank_policy drop", id)
        elif error.expected != BLANK and self.policy.bad_row_policy == "drop":
            self.drop(f"a fault, {error.expected}", "--bad_row_policy drop", id)
        else:
            self.errors.setdefault(error.expected, Fault(error.way_out)).add(id, error.found)

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
    schema: Schema
    id_column: str | None  # None: the ids are hashes of the texts
    needed: frozenset[str]
    produced: tuple[str, ...]  # columns that every battle gets
    consumed: frozenset[str]  # columns that are not carried along

    def check(self, source: str, columns: Columns, num_rows: int) -> None:
        """Raises a ValueError if a later chunk lacks a needed column, or has other outcome columns than the first."""
        if OUTCOMES & set(columns) != OUTCOMES & self.names or not self.needed <= set(columns):
            raise ValueError(
                f"{source}: expected the columns {', '.join(sorted(self.names))} throughout; found "
                f"{', '.join(columns)} after row {num_rows:,}. Give every row the same columns."
            )


def find_layout(source: str, columns: Columns, policy: RowPolicy, require_labels: bool) -> Layout:
    """Returns the layout of a source from its first chunk.

    Raises:
        ValueError: If a needed column is missing.
    """
    name = policy.schema if policy.schema != "auto" else find_schema(source, columns)
    schema = SCHEMAS[name]
    if name != "p_a" and "p_a" in columns:
        logger.info(f"{source}: takes labels from {name}; pass --schema p_a to take them from p_a")
    if policy.schema == "auto" and name == "lmsys" and OUTCOMES.isdisjoint(columns):
        logger.warning(
            f"{source}: the texts of its first rows are lists of turns, so it is read as lmsys without outcomes; pass "
            "--schema unlabelled to read the texts as they are"
        )
    labelled = any(name in columns for name in schema.outcomes)
    id_column = next((name for name in schema.ids if name in columns), None)
    # Where there is no id and none can be made, the first of the possible id columns is reported as missing.
    id_columns = schema.ids[:1] if id_column is None and not schema.hashed_ids else ()
    needed = [*id_columns, *schema.columns, *(schema.outcomes if labelled else ())]
    if missing := [name for name in dict.fromkeys(needed) if name not in columns]:
        raise ValueError(
            f"{source}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; found "
            f"{', '.join(columns) or 'no'} columns. Rename them to id, prompt, response_a, response_b and winner "
            "(or label); README.md lists the other schemas."
        )
    if require_labels and not labelled:
        raise ValueError(
            f"{source}: expected a winner (or label) column with the outcomes; found {', '.join(columns)}. "
            "Training and evaluation need outcomes; give a file that has them."
        )
    produced = ("id", *TEXTS, *(("label",) if labelled else ()))
    # A p_a that is not the label is carried along: it may be a judge's prediction for a battle that has a winner.
    consumed = frozenset({*produced, *needed, *OUTCOMES - {"p_a"}, id_column})
    return Layout(frozenset(columns), schema, id_column, frozenset(needed), produced, consumed)


class ColumnTypes:
    """Builds Arrow tables and keeps one type per column over all chunks of a source."""

    def __init__(self, source: str, policy: RowPolicy):
        self.source, self.policy = source, policy
        self.types: dict[str, pa.DataType] = {}
        self.left_out: dict[str, str] = {}  # extra columns without a common type, and Arrow's reason

    def build_table(self, columns: Columns, produced: tuple[str, ...]) -> pa.Table:
        """Returns the table of one chunk.

        Raises:
            ValueError: If the values of a column have no common type.
        """
        arrays = {}
        for name, values in columns.items():
            if name in self.left_out:
                continue
            try:
                arrays[name] = self._build_array(name, values)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
                is_extra = name not in produced
                if is_extra and self.policy.bad_row_policy == "drop":
                    self.left_out[name] = str(error)
                    continue
                way_out = " or remove it, or pass --bad_row_policy drop to leave the column out" if is_extra else ""
                raise ValueError(
                    f"{self.source}: column {name}: expected values of one storable type in all rows; found others "
                    f"({error}). Give it one type{way_out}."
                ) from error
        if not columns["id"]:  # Arrow gives empty columns the null type, which cannot be joined to text
            arrays.update({name: pa.array([], pa.string()) for name in ("id", *TEXTS)})
        return pa.table(arrays)

    def _build_array(self, name: str, values: list) -> pa.Array:
        """Converts values to Arrow and widens the column's type; raises Arrow's error where no type fits."""
        array = pa.array(values, from_pandas=True)  # from_pandas: NaN becomes null
        fields = [pa.schema([(name, type)]) for type in (array.type, self.types.get(name, array.type))]
        # "permissive" widens integers to floats, but never turns numbers into text.
        self.types[name] = pa.unify_schemas(fields, promote_options="permissive").field(name).type
        return array

    def report(self) -> None:
        """Logs the columns that were left out."""
        for name, reason in self.left_out.items():
            logger.warning(
                f"{self.source}: left out column {name}, whose values have no common type (--bad_row_policy drop): "
                f"{reason}"
            )


# --- rows -------------------------------------------------------------------------------------------------------------


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
            raise RowError(MIXED_IDS, id, ID_WAY_OUT)

    def add(self, id: object, *, number_repeats: bool) -> object:
        """Returns an id to key predictions by: the id itself or, where repeats are numbered, the id with its number.

        Raises:
            RowError: If the id is blank, is not valid Unicode, or is already taken.
        """
        if isinstance(id, str) and (not id.strip() or has_surrogates(id)):
            raise RowError("ids must be non-blank, valid Unicode text", id, "Give every row an id.")
        if id not in self.seen:
            self.type = type(id)
            self.seen.add(id)
            return id
        self.repeats[id] += 1
        if number_repeats:
            return f"{id}-{self.repeats[id] + 1}"
        way_out = "Make the ids unique, or pass --bad_row_policy drop to keep the first row of each."
        raise RowError(REPEATED, self.repeats[id] + 1, way_out)


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
        self.ids, self.faults, self.types = RowIds(), Faults(policy), ColumnTypes(source, policy)

    def read(self, columns: Columns) -> Dataset:
        """Returns the battles of one chunk without its unusable rows, which `finish` reports.

        Raises:
            ValueError: If columns are missing, or hold values of several types.
        """
        if self.layout is None:
            self.layout = find_layout(self.source, columns, self.policy, self.require_labels)
        else:
            self.layout.check(self.source, columns, self.num_rows)
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        battles = {number: battle for number, row in enumerate(rows) if (battle := self._read_row(row, number))}
        self.num_rows += len(rows)
        read = {name: [battle[name] for battle in battles.values()] for name in self.layout.produced}
        extra = [name for name in columns if name not in self.layout.consumed and name not in self.types.left_out]
        for name in extra:
            values = (rows[number].get(name) for number in battles)
            read[name] = [
                self._repair(value, id) if isinstance(value, str) else value
                for id, value in zip(read["id"], values, strict=True)
            ]
        return Dataset(self.types.build_table(read, self.layout.produced))

    def finish(self) -> None:
        """Logs what was dropped and repaired, and raises a ValueError if any row was unusable."""
        self.types.report()
        self.faults.report(self.source, self.num_rows, self.ids.repeats)

    def _read_row(self, row: Mapping, number: int) -> dict | None:
        """Returns the battle of a row of this chunk, or None if the row is left out."""
        id = f"row {self.num_rows + number}"  # names the row in an error about its id
        is_hashed = self.layout.id_column is None
        try:
            given = hash_texts(row) if is_hashed else row[self.layout.id_column]
            self.ids.check_type(given)
            id = given
            id = self.ids.add(given, number_repeats=is_hashed)  # the same pair twice is two battles
            battle = self.layout.schema.read_row(row, id)
            if battle.pop(CONTRADICTED, False):
                self.faults.contradicted.add(id, None)
            battle |= {name: self._read_text(battle[name], name, id) for name in TEXTS}
            blank = {name: row.get(name, battle[name]) for name in TEXTS if is_blank(battle[name])}
            if blank and self.policy.blank_policy != "keep":
                raise RowError(BLANK, blank, BLANK_WAY_OUT)
        except RowError as error:
            self.faults.leave_out(id, error)
            return None
        if self.policy.tie_policy == "drop" and len(set(battle.get("label", LABELS))) == 1:
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
        if id not in self.faults.repaired.ids:
            self.faults.repaired.add(id, None)
        return replace_surrogates(text)
