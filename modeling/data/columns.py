"""The columns of a source: their names, the words for its winners, and one type for each. It must not know rows."""

from collections import Counter
from collections.abc import Callable, Mapping

import pyarrow as pa

from modeling.data.cells import parse_number
from modeling.data.schemas import TEXTS, WINNER_WORDS
from modeling.runtime.formats import Columns
from modeling.runtime.logs import build_logger

logger = build_logger(__name__)


def rename_columns(source: str, columns: Columns, names: Mapping[str, str], *, is_first: bool) -> Columns:
    """Returns the columns of a chunk under the names that --columns gives them.

    Args:
        source: The name of the source in messages.
        columns: The columns of a chunk.
        names: The source's name of a column by the name that it gets.
        is_first: Whether it is the first chunk. In a later one a column may be absent.

    Raises:
        ValueError: If a column is absent, or two would get the same name.
    """
    new_names = {old: new for new, old in names.items() if old in columns}
    renamed = [new_names.get(name, name) for name in columns]
    absent = [f"{new}={old}" for new, old in names.items() if old not in columns and new not in columns]
    if is_first and absent:
        raise ValueError(
            f"{source}: --columns {absent[0]}: expected a column {names[absent[0].partition('=')[0]]}; found "
            f"{', '.join(columns)}. Check the names: first the one that it gets, then the file's."
        )
    if twice := [name for name, count in Counter(renamed).items() if count > 1]:
        raise ValueError(
            f"{source}: --columns {twice[0]}={names[twice[0]]}: expected no other column {twice[0]}; found one. Rename "
            f"it too, as in --columns old_{twice[0]}={twice[0]}."
        )
    return dict(zip(renamed, columns.values(), strict=True))


def name_value(value: object) -> str:
    """Returns the text that a cell with a winner has in every format.

    Example: `name_value` of 1, 1.0, "1" and "1.0" is "1", and of True and "True" it is "true".
    """
    text = str(value)
    if text.lower() in ("true", "false"):
        return text.lower()
    number = parse_number(text)
    return str(int(number)) if number.is_integer() else text


class WinnerValues:
    """Translates the values of a column `winner` to model_a, model_b and tie, and remembers the words it read."""

    def __init__(self, values: Mapping[str, object]):
        self.asked = {name_value(value): winner for winner, value in values.items()}
        self.found: dict[str, str] = {}

    def translate(self, columns: Columns) -> None:
        """Replaces values that the user named, and words that can mean one side only, in the columns of a chunk."""
        if "winner" not in columns:
            return
        values = columns["winner"]
        if not self.asked and not any(isinstance(value, str) and value in WINNER_WORDS for value in values):
            return
        models = [columns.get(name, ()) for name in ("model_a", "model_b")]
        columns["winner"] = [
            self._translate(value, [names[number] for names in models if names]) for number, value in enumerate(values)
        ]

    def _translate(self, value: object, models: list) -> object:
        """The winner that a value means, or the value itself if it may mean either. "A" may be a model's name."""
        if self.asked and (winner := self.asked.get(name_value(value))):
            return winner
        if not isinstance(value, str) or value not in WINNER_WORDS or value in models:
            return value
        self.found[value] = WINNER_WORDS[value]
        return WINNER_WORDS[value]

    def report(self, source: str) -> None:
        """Logs the words that were read as winners."""
        if self.found:
            words = ", ".join(f"{word} as {winner}" for word, winner in sorted(self.found.items()))
            logger.warning(f"{source}: reads the winners {words}; --winner_values says otherwise")


class ColumnTypes:
    """Builds Arrow tables and keeps one type per column over all chunks of a source."""

    def __init__(self, source: str, bad_row_policy: str):
        self.source, self.bad_row_policy = source, bad_row_policy
        self.types: dict[str, pa.DataType] = {}
        self.left_out: dict[str, str] = {}  # extra columns without a common type, and Arrow's reason

    def build_table(
        self, columns: Columns, produced: tuple[str, ...], repair: Callable[[list], list] = list
    ) -> pa.Table:
        """Returns the table of one chunk.

        Args:
            columns: The values by column.
            produced: The columns that every battle gets; the others are extra.
            repair: Returns the values of a column without surrogates. Only columns that have some are given to it.

        Raises:
            ValueError: If the values of a column have no common type.
        """
        arrays = {}
        for name, values in columns.items():
            if name in self.left_out:
                continue
            try:
                try:
                    arrays[name] = self._build_array(name, values)
                except UnicodeEncodeError:
                    arrays[name] = self._build_array(name, repair(values))
            except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
                is_extra = name not in produced
                if is_extra and self.bad_row_policy == "drop":
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
