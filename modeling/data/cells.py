"""Reads single cells: lists that are written as text, probabilities, numbers. Knows no schemas and no files.

A table saved as csv holds its lists as text: as JSON, as Python's `str(list)`, or as numpy writes an array, without
commas. All three are read; text that only begins like one is told apart.
"""

import ast
import io
import json
import math
import re
import tokenize
import warnings
from collections.abc import Iterator, Sequence

from modeling.data.outcomes import LABEL_SETS, LABELS, WITH_TIE, is_tie

LABEL_SUM_TOLERANCE = 1e-3  # labels rounded to four digits may sum to 0.9996

FIX = "Fix these rows, or pass --bad_row_policy drop to leave them out."
LIST = re.compile(r"\s*(\[|array\()")
MESSAGES = re.compile(r"""\s*(array\()?\[\s*\{\s*['"](role|content)['"]\s*:""")
CONSTANTS = ("None", "True", "False", "nan")


class RowError(ValueError):
    """Says why a row is not a battle: expected, found and the way out. `reader.py` adds the file and the row's id."""

    def __init__(self, expected: str, found: object, way_out: str = FIX):
        super().__init__(expected)
        self.expected, self.found, self.way_out = expected, found, way_out


# --- lists as text ----------------------------------------------------------------------------------------------------


def parse_list(value: object) -> object:
    """Returns the list that a text holds as JSON, or as Python or numpy writes it; anything else as it is."""
    if isinstance(value, str) and LIST.match(value):
        for parse in (json.loads, parse_python_list):
            try:
                found = parse(value)
            except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
                continue  # MemoryError: what Python's parser raises for text that is too deeply nested
            return found if isinstance(found, list) else value
    return value


def begins_like_messages(value: object) -> bool:
    """Returns whether a text begins like a list of messages in JSON, or as Python or numpy writes it."""
    return isinstance(value, str) and bool(MESSAGES.match(value))


def parse_python_list(text: str) -> object:
    """Returns what Python's or numpy's text of a list spells, without evaluating anything.

    Example: `parse_python_list("['a' 'b']")` is `["a", "b"]`, as numpy writes it; for Python it would be one text.

    Raises:
        ValueError: If the text is another expression, or SyntaxError and TokenError if it is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in a text that is none of these lists
        return _convert(ast.parse("".join(_add_commas(text)), mode="eval").body)


def _add_commas(text: str) -> Iterator[str]:
    """The tokens of a text, with a comma between values that only white space separates, as in numpy's."""
    separators: list[set[str]] = [set()]  # of each bracket that is open
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
        if token.type == tokenize.ERRORTOKEN:
            raise ValueError(f"no list: {token.string!r}")
        if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            continue
        if _ends_value(before) and _begins_value(token):
            separators[-1].add(" ")
            yield ","
        if token.string in ("[", "{", "("):
            separators.append(set())
        elif token.string in ("]", "}", ")") and len(separators) > 1:
            separators.pop()
        elif token.string == ",":
            separators[-1].add(",")
        if len(separators[-1]) > 1:  # somebody's own code, in which 'a' 'b' is one text
            raise ValueError("no list: some values have commas between them, others none")
        yield token.string + " "
        before = token.string


def _ends_value(token: str) -> bool:
    """Whether a value may end with this token."""
    return token in CONSTANTS or token[-1:] in ("]", "}", ")", "'", '"', ".") or token[-1:].isdigit()


def _begins_value(token: tokenize.TokenInfo) -> bool:
    """Whether a value may begin with this token."""
    return token.type in (tokenize.STRING, tokenize.NUMBER) or token.string in ("[", "{", "-", "array", *CONSTANTS)


def _convert(node: ast.expr) -> object:
    """The value of a part of a list; a ValueError if it is neither a constant nor made of constants."""
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id="nan"):
            return None
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_convert(part) for part in parts]
        case ast.Dict(keys=keys, values=values) if all(keys):
            return {_convert(key): _convert(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        # array([...], dtype=object), and np.float64(0.5) in a list of numpy's numbers.
        case ast.Call(func=ast.Name(id="array") | ast.Attribute(value=ast.Name(id="np")), args=[value, *_]):
            return _convert(value)
    raise ValueError(f"no list: {ast.unparse(node)[:60]}")


# --- numbers and labels -----------------------------------------------------------------------------------------------


def check_label(name: str, label: object) -> list[float]:
    """Returns the probabilities, scaled to sum to 1; a RowError for the column `name` if they are no distribution."""
    if isinstance(label, list) and len(label) in map(len, LABEL_SETS):
        # A comparison with NaN is false, so NaN fails here too.
        numbers = all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in label)
        if numbers and abs(math.fsum(label) - 1) <= LABEL_SUM_TOLERANCE:
            return [float(p) / math.fsum(label) for p in label]
    with_ties = f"{len(WITH_TIE)} (of {', '.join(WITH_TIE)})"
    expected = f"{len(LABELS)} probabilities (of {', '.join(LABELS)}) or {with_ties} that sum to 1"
    raise RowError(f"{name} must be {expected}", label)


def match_label(label: list[float], labels: Sequence[str]) -> list[float]:
    """Returns a label with a probability for each of `labels`; a RowError if it knows ties and they are not among them.

    An even label of two is a tie, and becomes [0, 0, 1]; any other gets 0 for the tie.
    """
    if len(label) == len(labels):
        return label
    if len(label) > len(labels):
        raise RowError(
            f"a label for a model of {len(labels)} labels must be {len(labels)} probabilities (of {', '.join(labels)})",
            label,
            f"Train on a base with {len(WITH_TIE)} labels (quantize.py --num_labels {len(WITH_TIE)}), or give half of "
            "each tie's probability to either answer.",
        )
    return [0.0, 0.0, 1.0] if is_tie(label) else [*label, 0.0]


def read_probability(name: str, value: object, num_labels: int = len(LABELS)) -> list[float] | None:
    """Returns a label from a cell with all probabilities or only that of a, or None if the cell is empty.

    Example: `read_probability("t", "0.75")` is `[0.75, 0.25]`, as is "[0.75, 0.25]"; null, NaN and "" are None.

    Raises:
        RowError: If the cell holds anything else, or not `num_labels` probabilities.
    """
    if is_missing(value):
        return None
    found = parse_list(value)
    p_a = parse_number(found)
    try:
        label = check_label(name, found if isinstance(found, list) else [p_a, 1 - p_a])
    except RowError as error:  # show the cell itself, not the pair made from it
        raise RowError(error.expected, value) from error
    if len(label) != num_labels:  # a prediction of two labels does not say how likely a tie is
        raise RowError(f"{name} must be {num_labels} probabilities that sum to 1", value)
    return label


def is_missing(value: object) -> bool:
    """Returns whether a cell is empty: null, NaN or the empty text."""
    return value is None or value != value or value == ""


def parse_number(value: object) -> float:
    """Returns the number, or NaN if the value is not one."""
    try:
        # float(True) is 1.0, but true in a column of probabilities is a mistake.
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
