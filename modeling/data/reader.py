"""One source of battles, chunk by chunk: its schema found, every row checked, what is dropped or wrong counted."""

import re
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
    find_schema,
    hash_texts,
)
from modeling.data.text import is_blank
from modeling.runtime.choices import BAD_ROW_POLICIES, BLANK_POLICIES, TIE_POLICIES
from modeling.runtime.files import Columns

logger = get_logger(__name__)
REPEATED = "an id must stand on 1 row, because predictions are keyed by id"
BLANK = "prompt, response_a and response_b must not be null or blank"
UNLIKE_IDS = "ids must be all text or all whole numbers"
ID_WAY_OUT = "Give every row an id of one kind, or pass --bad_row_policy drop to leave these rows out."
BLANK_WAY_OUT = "Fix these rows, or pass --blank_policy drop (leaves them out) or keep (reads them as empty texts)."
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class RowPolicy:
    """What to do with rows that are no plain battles. Whatever is dropped is logged with its count.

    schema: One of `SCHEMA_NAMES`; "auto" recognises it from the columns.
    tie_policy: "keep" labels a tie [0.5, 0.5]; "drop" leaves ties out.
    blank_policy: For a null or blank text: "error", "drop", or "keep" (null becomes the empty text).
    bad_row_policy: For any other row that cannot be read: "error" or "drop"; and for a column beside the battle's own
        that has no one type.
    """

    schema: str = "auto"
    tie_policy: str = "keep"
    blank_policy: str = "error"
    bad_row_policy: str = "error"

    def __post_init__(self):
        choices = {"schema": SCHEMA_NAMES, "tie_policy": TIE_POLICIES, "blank_policy": BLANK_POLICIES}
        for name, allowed in {**choices, "bad_row_policy": BAD_ROW_POLICIES}.items():
            if (value := vars(self)[name]) not in allowed:
                raise ValueError(f"--{name}: expected one of {', '.join(allowed)}; found {value!r}.")


@dataclass
class Fault:
    """Rows with one thing wrong: the first of them, and how many."""

    way_out: str = ""
    ids: list = field(default_factory=list)
    found: dict[str, None] = field(default_factory=dict)
    count: int = 0

    def add(self, id: object, found: object) -> None:
        """Counts one more row."""
        self.count += 1
        if self.count <= 5:
            self.ids.append(id)
            self.found[repr(found)[:80]] = None

    def __str__(self) -> str:
        more = f" and {self.count - 5} more" if self.count > 5 else ""
        return f"battle{'s' * (self.count > 1)} {', '.join(map(repr, self.ids))}{more}"


class BattleReader:
    """Turns the chunks of one source into battles, and remembers what it saw on the way.

    Example: `reader = BattleReader("f.csv", RowPolicy()); battles = reader.read(columns); reader.finish()`.
    """

    def __init__(self, source: str, policy: RowPolicy, require_labels: bool = False):
        PartialState()  # accelerate's logger needs it
        self.source, self.policy, self.require_labels = source, policy, require_labels
        self.num_rows, self.header = 0, None
        self.ids: set = set()
        self.repeats: Counter = Counter()
        self.faults: dict[str, Fault] = {}
        self.dropped: dict[tuple[str, str], Fault] = {}
        self.repaired, self.contradicted = Fault(), Fault()
        self.kinds: dict[str, pa.DataType] = {}  # of the columns that are carried along
        self.left_out: dict[str, str] = {}  # those that had no one type, and why

    def read(self, columns: Columns) -> Dataset:
        """The battles of one chunk of columns; those with a fault are left out.

        Raises:
            ValueError: If columns are missing, or hold values of several types.
        """
        if self.header is None:
            self._begin(columns)
        elif OUTCOMES & set(columns) != OUTCOMES & self.header or not self.needed <= set(columns):
            raise ValueError(
                f"{self.source}: expected the columns {', '.join(sorted(self.header))} throughout; found "
                f"{', '.join(columns)} after row {self.num_rows:,}. Give every row the same columns."
            )
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        battles = {}
        for number, row in enumerate(rows):
            if (id := self._read_id(row, self.num_rows + number)) is None:
                continue
            battle = self._read_row(row, id)
            if battle is not None:
                battles[number] = {"id": id, **battle}
        self.num_rows += len(rows)
        made = {name: [battle[name] for battle in battles.values()] for name in self.made}
        carried = [name for name in columns if name not in self.used]
        return self._build(made | {name: [rows[number].get(name) for number in battles] for name in carried})

    def finish(self) -> None:
        """Logs what was dropped and repaired, and raises a ValueError for the rows that had a fault."""
        for (what, flag), fault in self.dropped.items():
            logger.warning(
                f"{self.source}: dropped {fault.count} of {self.num_rows} battles with {what} ({flag}): {fault}"
            )
        if self.repaired.count:
            logger.warning(f"{self.source}: {self.repaired}: repaired broken Unicode (lone surrogates became U+FFFD).")
        for name, why in self.left_out.items():
            logger.warning(
                f"{self.source}: left out column {name}, whose values have no one type (--bad_row_policy drop): {why}"
            )
        if self.contradicted.count:
            logger.warning(
                f"{self.source}: {self.contradicted}: the prompt is not what the messages say; took the messages"
            )
        if self.repeats and REPEATED in self.faults:
            odd = self.faults[REPEATED] = Fault(self.faults[REPEATED].way_out)
            for id, times in self.repeats.items():
                odd.add(id, times + 1)
        for expected, fault in sorted(self.faults.items(), key=lambda item: item[0] != REPEATED):
            raise ValueError(f"{self.source}: {fault}: {expected}; found {', '.join(fault.found)}. {fault.way_out}")

    def _begin(self, columns: Columns) -> None:
        """Finds schema and id column, and checks that all columns they need are there."""
        self.header = set(columns)
        name = self.policy.schema if self.policy.schema != "auto" else find_schema(self.source, columns)
        self.schema = SCHEMAS[name]
        if name != "p_a" and "p_a" in columns:
            logger.info(f"{self.source}: labels come from {name}; --schema p_a would take them from p_a")
        if self.policy.schema == "auto" and name == "lmsys" and OUTCOMES.isdisjoint(columns):
            logger.warning(
                f"{self.source}: the texts of its first rows are lists of turns, so it is read as lmsys without "
                "outcomes; --schema unlabelled would take the texts as they are"
            )
        labelled = any(name in columns for name in self.schema.outcomes)
        self.id_column = next((name for name in self.schema.ids if name in columns), None)
        unidentified = self.id_column is None and not self.schema.hashed_ids
        needed = [*self.schema.ids[:unidentified], *self.schema.columns, *self.schema.outcomes * labelled]
        self.needed = set(needed)
        if missing := [name for name in dict.fromkeys(needed) if name not in columns]:
            raise ValueError(
                f"{self.source}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; found "
                f"{', '.join(columns) or 'no'} columns. Rename them to id, prompt, response_a, response_b and winner "
                "(or label); README.md lists the other schemas."
            )
        if self.require_labels and not labelled:
            raise ValueError(
                f"{self.source}: expected a winner (or label) column with the outcomes; found {', '.join(columns)}. "
                "Training and evaluation need outcomes; give a file that has them."
            )
        self.made = ["id", *TEXTS, *["label"] * labelled]
        # p_a may also be what a judge said of a battle that has a winner.
        self.used = {*self.made, *self.needed, *OUTCOMES - {"p_a"}, self.id_column}

    def _read_id(self, row: Mapping, number: int) -> object:
        """The row's id, or None where it has none that can key predictions."""
        id = hash_texts(row) if self.id_column is None else row[self.id_column]
        is_kind = isinstance(id, str | int) and not isinstance(id, bool)
        if not is_kind or type(id) is not type(next(iter(self.ids), id)):
            return self._leave_out(f"row {number}", RowError(UNLIKE_IDS, id, ID_WAY_OUT))
        if isinstance(id, str) and (not id.strip() or SURROGATE.search(id)):
            return self._leave_out(
                id, RowError("ids must be non-blank, valid Unicode text", id, "Give every row an id.")
            )
        if id not in self.ids:
            self.ids.add(id)
            return id
        self.repeats[id] += 1
        if self.id_column is None:  # the same pair once more
            return f"{id}-{self.repeats[id] + 1}"
        way_out = "Make the ids unique, or pass --bad_row_policy drop to keep the first row of each."
        return self._leave_out(id, RowError(REPEATED, self.repeats[id] + 1, way_out))

    def _read_row(self, row: Mapping, id: object) -> dict | None:
        """Texts and label of a row, or None if it is left out."""
        try:
            battle = self.schema.read_row(row, id)
            if battle.pop(CONTRADICTED, False):
                self.contradicted.add(id, None)
            battle |= {name: self._read_text(battle[name], name, id) for name in TEXTS}
        except RowError as error:
            return self._leave_out(id, error)
        blank = {name: row.get(name, battle[name]) for name in TEXTS if is_blank(battle[name])}
        if blank and self.policy.blank_policy != "keep":
            return self._leave_out(id, RowError(BLANK, blank, BLANK_WAY_OUT))
        if self.policy.tie_policy == "drop" and len(set(battle.get("label", LABELS))) == 1:
            self.dropped.setdefault(("ties", "--tie_policy drop"), Fault()).add(id, None)
            return None
        return battle

    def _read_text(self, text: object, name: str, id: object) -> str:
        """The text as a tokenizer and a file can hold it: null is empty, surrogate pairs joined, lone ones U+FFFD."""
        if text is None or text != text:  # NaN is what pandas writes for a missing text
            return ""
        if not isinstance(text, str):
            raise RowError(f"{name} must be text", text, f"Convert these rows to text. {FIX}")
        if text.isascii() or not SURROGATE.search(text):
            return text
        if id not in self.repaired.ids:
            self.repaired.add(id, None)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _leave_out(self, id: object, error: RowError) -> None:
        """Notes why a row is no battle: dropped where a policy says so, else a fault."""
        if error.expected == BLANK and self.policy.blank_policy == "drop":
            self.dropped.setdefault(("blank texts", "--blank_policy drop"), Fault()).add(id, None)
        elif error.expected != BLANK and self.policy.bad_row_policy == "drop":
            self.dropped.setdefault((f"a fault, {error.expected}", "--bad_row_policy drop"), Fault()).add(id, None)
        else:
            self.faults.setdefault(error.expected, Fault(error.way_out)).add(id, error.found)

    def _build(self, columns: Columns) -> Dataset:
        """A table of the columns, each of one type."""
        arrays = {}
        for name, values in columns.items():
            if name in self.left_out:
                continue
            try:
                arrays[name] = self._build_column(name, values, columns["id"])
            except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
                carried = name not in self.made
                if carried and self.policy.bad_row_policy == "drop":
                    self.left_out[name] = str(error)
                    continue
                way_out = " or remove it, or pass --bad_row_policy drop to leave the column out" if carried else ""
                raise ValueError(
                    f"{self.source}: column {name}: expected values of one storable type throughout; found otherwise "
                    f"({error}). Give it one type{way_out}."
                ) from error
        if not columns["id"]:
            arrays.update({name: pa.array([], pa.string()) for name in ("id", *TEXTS)})
        return Dataset(pa.table(arrays))

    def _build_column(self, name: str, values: list, ids: list) -> pa.Array:
        """Arrow's array of the values; its error if they have no one type among them, or with those of other chunks."""
        if name not in self.made:
            pairs = zip(ids, values, strict=True)
            values = [self._read_text(value, name, id) if isinstance(value, str) else value for id, value in pairs]
        array = pa.array(values, from_pandas=True)
        kinds = [pa.schema([(name, kind)]) for kind in (array.type, self.kinds.get(name, array.type))]
        self.kinds[name] = pa.unify_schemas(kinds, promote_options="permissive").field(name).type
        return array
