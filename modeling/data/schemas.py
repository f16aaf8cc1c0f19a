"""The schemas of battle files: each one turns a row into a prompt, two responses and, where known, a label.

A schema is a function and an entry in `SCHEMAS`; which one a file has is recognised by its columns. Winner strings are
read only here, and written only by `battles.name_winners`. It must not know files or other rows.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modeling.data.text import is_blank

LABELS = ("a", "b")
RESPONSES = ("response_a", "response_b")
TEXTS = ("prompt", *RESPONSES)

PAIR = ("chosen", "rejected")
CONVERSATIONS = ("conversation_a", "conversation_b")
WINNERS = {"model_a": [1.0, 0.0], "model_b": [0.0, 1.0], "tie": [0.5, 0.5]}
ARENA_WINNERS = WINNERS | {"tie (bothbad)": [0.5, 0.5], "both_bad": [0.5, 0.5]}
LMSYS_WINNERS = {"winner_model_a": "model_a", "winner_model_b": "model_b", "winner_tie": "tie"}
LABEL_SUM_TOLERANCE = 1e-3  # labels rounded to four digits may sum to 0.9996
CONTRADICTED = "contradicted"  # the key that `read_pair` adds where the row's prompt is not in its messages

FIX = "Fix these rows, or pass --bad_row_policy drop to leave them out."
CONVERSATION = "must be a list of messages, each with a role and a text, alternating between user and assistant"
TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")


class RowError(ValueError):
    """Says why a row is not a battle: expected, found and the way out. `reader.py` adds the file and the row's id."""

    def __init__(self, expected: str, found: object, way_out: str = FIX):
        super().__init__(expected)
        self.expected, self.found, self.way_out = expected, found, way_out


# --- conversations as text --------------------------------------------------------------------------------------------


def join_turns(turns: Sequence[str | None]) -> str:
    """Returns one side of a conversation as one text: a single turn as it is, several turns each after "[Turn n] ".

    Example: `join_turns(["Hi", "And you?"])` is "[Turn 1] Hi\\n\\n[Turn 2] And you?".
    """
    texts = [text or "" for text in turns]
    # Without text, the markers alone would hide that the side is blank.
    if len(texts) == 1 or all(map(is_blank, texts)):
        return texts[0]
    return "\n\n".join(f"[Turn {number}] {text}" for number, text in enumerate(texts, 1))


def join_messages(messages: Sequence[tuple[str, str]]) -> str:
    """Returns the messages before the two responses as one text: a single message as it is, several after "[Role] ".

    Example: `join_messages([("user", "Hi"), ("assistant", "Yes?")])` is "[User] Hi\\n\\n[Assistant] Yes?".
    """
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"[{role.capitalize()}] {text}" for role, text in messages)


def parse_list(value: object) -> object:
    """Returns the list that a text holds as JSON, as csv cells do; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return value
        return found if isinstance(found, list) else value
    return value


def parse_conversation(value: object) -> object:
    """Returns the messages that a text holds as JSON; a text that only looks like a list, as "[1, 2]", as it is."""
    found = parse_list(value)
    return found if isinstance(found, list) and found and all(isinstance(part, dict) for part in found) else value


def check_messages(value: object, name: str) -> list[tuple[str, str]]:
    """Returns (role, text) of each message; a RowError for the column `name` if the value is not messages."""
    messages = parse_list(value)
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{name} {CONVERSATION}", value)
    return [_read_message(message, name) for message in messages]


def _read_message(message: object, name: str) -> tuple[str, str]:
    """Returns (role, text) of one message, whose content is a text or a list of text parts."""
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    # lmarena 140k has parts. One with an image is not read: the text alone would be another prompt.
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        content = "\n\n".join(texts) if all(isinstance(text, str) for text in texts) else None
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise RowError(f"{name} {CONVERSATION}", message)
    return role, content


def is_prompt_of(prompt: object, messages: Sequence[tuple[str, str]]) -> bool:
    """Returns whether the prompt column agrees with the messages before a response: one of them, all, or empty.

    Args:
        prompt: A text, a transcript, or a list of messages, as a list or as JSON.
        messages: (role, text) of each message.
    """
    if prompt is None or prompt == "":
        return True
    found = parse_conversation(prompt)
    if isinstance(found, str) and TRANSCRIPT_TURN.match(found):
        # A transcript that stops before the response ends with an empty "Assistant:".
        found = [message for message in split_transcript(found, "prompt") if message["content"]]
    if isinstance(found, list):
        return [message.get("content") for message in found] == [text for _, text in messages]
    return str(found).strip() in {text.strip() for _, text in messages} | {join_messages(messages).strip()}


def split_transcript(text: str, name: str) -> list[dict]:
    """Returns the messages of the transcript "\\n\\nHuman: ...\\n\\nAssistant: ..." in the column `name`."""
    before, *parts = TRANSCRIPT_TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not parts:
        raise RowError(f"{name} must be a transcript of Human: and Assistant:, because there is no prompt", text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[role], "content": content.strip()} for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _read_prompt(row: Mapping) -> list[tuple[str, str]]:
    """Returns the prompt column as messages; a plain text is one message of the user."""
    prompt = parse_conversation(row.get("prompt"))
    return check_messages(prompt, "prompt") if isinstance(prompt, list) else [("user", prompt)]


# --- cells as labels --------------------------------------------------------------------------------------------------


def _find_winner(winner: object, winners: Mapping[str, list[float]]) -> list[float]:
    """Returns the label of a winner string."""
    if not isinstance(winner, str) or winner not in winners:
        raise RowError(f"winner must be one of {', '.join(winners)}", winner)
    return winners[winner]


def check_label(name: str, label: object) -> list[float]:
    """Returns the probabilities, scaled to sum to 1; a RowError for the column `name` if they are no distribution."""
    if isinstance(label, list) and len(label) == len(LABELS):
        # A comparison with NaN is false, so NaN fails here too.
        numbers = all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in label)
        if numbers and abs(math.fsum(label) - 1) <= LABEL_SUM_TOLERANCE:
            return [float(p) / math.fsum(label) for p in label]
    raise RowError(f"{name} must be {len(LABELS)} probabilities (of {', '.join(LABELS)}) that sum to 1", label)


def read_probability(name: str, value: object) -> list[float] | None:
    """Returns a label from a cell with all probabilities or only that of a, or None if the cell is empty.

    Example: `read_probability("t", "0.75")` is `[0.75, 0.25]`, as is "[0.75, 0.25]"; null, NaN and "" are None.
    """
    if value is None or value != value or value == "":
        return None
    found = parse_list(value)
    p_a = _parse_number(found)
    try:
        return check_label(name, found if isinstance(found, list) else [p_a, 1 - p_a])
    except RowError as error:  # show the cell itself, not the pair made from it
        raise RowError(error.expected, value) from error


def _parse_number(value: object) -> float:
    """Returns the number, or NaN if the value is not one."""
    try:
        # float(True) is 1.0, but true in a column of probabilities is a mistake.
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


# --- ids and sides of pairs -------------------------------------------------------------------------------------------


def hash_texts(row: Mapping) -> str:
    """Returns an id for a chosen/rejected row that has none: a hash of its texts."""
    texts = json.dumps([row.get("prompt"), row["chosen"], row["rejected"]], default=str)
    return hashlib.sha256(texts.encode("utf-8", "replace")).hexdigest()[:16]


def is_chosen_first(id: object) -> bool:
    """Returns whether the chosen response of a pair is response_a, by a hash of the id.

    Never change the hash: it would swap the sides of every data set that was ever trained on.
    """
    return hashlib.sha256(str(id).encode("utf-8", "replace")).digest()[0] % 2 == 0


# --- one function per schema ------------------------------------------------------------------------------------------


def read_plain(row: Mapping, _: object) -> dict:
    """Reads this project's own columns, without an outcome."""
    return {name: row[name] for name in TEXTS}


def read_winner(row: Mapping, id: object) -> dict:
    """Reads WSDM rows: `winner` is model_a, model_b or tie, or, in pseudo-labels, the two probabilities."""
    winner = parse_list(row["winner"])
    label = check_label("winner", winner) if isinstance(winner, list) else _find_winner(winner, WINNERS)
    return {**read_plain(row, id), "label": label}


def read_label(row: Mapping, id: object) -> dict:
    """Reads this project's own columns with `label`, a probability for each of `LABELS`."""
    return {**read_plain(row, id), "label": check_label("label", parse_list(row["label"]))}


def read_p_a(row: Mapping, id: object) -> dict:
    """Reads this project's own columns with `p_a`, the probability that a wins."""
    found = row["p_a"]
    p_a = _parse_number(found)
    if not 0 <= p_a <= 1:
        raise RowError("p_a must be a probability, from 0 to 1", found)
    return {**read_plain(row, id), "label": [p_a, 1 - p_a]}


def read_lmsys(row: Mapping, _: object) -> dict:
    """Reads LMSYS 55k rows: texts are JSON lists with one entry per turn, and one of three winner columns is 1."""
    turns = {name: parse_list(row[name]) for name in TEXTS}
    for name, texts in turns.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str | None) for text in texts):
            raise RowError(f"{name} must be a JSON list of at least one text per turn", row[name])
    if len(set(map(len, turns.values()))) > 1:
        found = ", ".join(f"{len(texts)} in {name}" for name, texts in turns.items())
        raise RowError("prompt, response_a and response_b must have equally many turns", found)
    battle = {name: join_turns(texts) for name, texts in turns.items()}
    flags = {winner: row.get(column) for column, winner in LMSYS_WINNERS.items()}
    if any(column in row for column in LMSYS_WINNERS):  # one that is missing counts as null, an error below
        numbers = [float(flag) if isinstance(flag, bool) else _parse_number(flag) for flag in flags.values()]
        if sorted(numbers) != [0, 0, 1]:
            raise RowError(f"one of {', '.join(LMSYS_WINNERS)} must be 1 and the others 0", list(flags.values()))
        battle["label"] = WINNERS[list(flags)[numbers.index(1)]]
    return battle


def read_lmarena(row: Mapping, _: object) -> dict:
    """Reads lmarena 33k, 100k and 140k rows: two conversations of the same user. `winner` may be "both bad", a tie."""
    turns = {}
    for side in LABELS:
        messages = check_messages(row[f"conversation_{side}"], f"conversation_{side}")
        system = [text for role, text in messages if role == "system"]
        talk = [message for message in messages if message[0] != "system"]
        # The pattern also refuses an odd number of messages: the assistant must have the last word.
        if not talk or [role for role, _ in talk] != ["user", "assistant"] * (len(talk) // 2):
            raise RowError(f"conversation_{side} {CONVERSATION}", [role for role, _ in messages])
        turns[side] = system, [text for _, text in talk[::2]], [text for _, text in talk[1::2]]
    if turns["a"][:2] != turns["b"][:2]:
        numbers = " and ".join(f"{len(turns[side][1])} turns in conversation_{side}" for side in LABELS)
        raise RowError("conversation_a and conversation_b must have the same user turns", numbers)
    system, asked, _ = turns["a"]
    prompt = "\n\n".join([*(f"[System] {text}" for text in system), join_turns(asked)])
    battle = {"prompt": prompt, **{f"response_{side}": join_turns(turns[side][2]) for side in LABELS}}
    if "winner" in row:
        battle["label"] = _find_winner(row["winner"], ARENA_WINNERS)
    return battle


def read_pair(row: Mapping, id: object) -> dict:
    """Reads chosen and rejected responses: texts, message lists, or transcripts that include the prompt (hh-rlhf).

    A hash of the id puts the chosen one on side a or b: half of them on each side, and always the same.
    """
    answers, messages = {}, None
    for name in PAIR:
        value = parse_conversation(row[name])
        if isinstance(value, str) and (row.get("prompt") is None or TRANSCRIPT_TURN.match(value)):
            value = split_transcript(value, name)
        if isinstance(value, list):
            messages = check_messages(value, name)
            if messages[-1][0] != "assistant":
                raise RowError(f"{name} must end with the assistant's message", messages[-1][0])
            answers[name] = messages[:-1] or _read_prompt(row), messages[-1][1]
        else:
            answers[name] = _read_prompt(row), value
    (prompt, chosen), (other_prompt, rejected) = answers.values()
    if prompt != other_prompt:
        lengths = [len(prompt), len(other_prompt)]
        raise RowError("chosen and rejected must have the same messages before the last", lengths)
    texts = [chosen, rejected] if is_chosen_first(id) else [rejected, chosen]
    label = [1.0, 0.0] if is_chosen_first(id) else [0.0, 1.0]
    battle = {"prompt": join_messages(prompt), **dict(zip(RESPONSES, texts, strict=True)), "label": label}
    return battle if messages is None or is_prompt_of(row.get("prompt"), prompt) else battle | {CONTRADICTED: True}


# --- the table of schemas ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schema:
    """How to recognise and read the rows of one kind of file."""

    signs: tuple[str, ...]  # columns that show this schema; `find_schema` knows the exceptions
    columns: tuple[str, ...]  # columns that must be there
    outcomes: tuple[str, ...]  # columns that make the label: all of them or, in a file without labels, none
    read_row: Callable[[Mapping, object], dict]  # takes a row and its id
    ids: tuple[str, ...] = ("id",)  # columns that may hold the id; the first one present does
    hashed_ids: bool = False  # whether a file without an id column gets hashes of its texts as ids


# In the order in which `find_schema` tries them.
SCHEMAS = {
    "chosen_rejected": Schema(PAIR, PAIR, PAIR, read_pair, ids=("id", "prompt_id"), hashed_ids=True),
    "lmarena": Schema(CONVERSATIONS, CONVERSATIONS, ("winner",), read_lmarena, ids=("id", "question_id")),
    "lmsys": Schema(tuple(LMSYS_WINNERS), TEXTS, tuple(LMSYS_WINNERS), read_lmsys),
    "winner": Schema(("winner",), (*TEXTS, "winner"), ("winner",), read_winner),
    "label": Schema(("label",), (*TEXTS, "label"), ("label",), read_label),
    "p_a": Schema(("p_a",), (*TEXTS, "p_a"), ("p_a",), read_p_a),
    "unlabelled": Schema((), TEXTS, (), read_plain),
}
SCHEMA_NAMES = ("auto", *SCHEMAS)
OUTCOMES = {name for schema in SCHEMAS.values() for name in schema.outcomes}


def find_schema(source: str, columns: Mapping[str, Sequence]) -> str:
    """Returns the name of the first schema whose signs are all there.

    A file without outcome columns may still be LMSYS's: if it has one of LMSYS's winner columns, or if the three texts
    of every row are lists of equally many turns, as in its test file. Otherwise models would read raw JSON.

    Args:
        source: The name of the file in messages.
        columns: The columns of its first rows.

    Raises:
        ValueError: If the file has two outcome columns, or if most but not all rows are lists of turns.
    """
    if "winner" in columns and "label" in columns:
        raise ValueError(
            f"{source}: expected one outcome column; found both winner and label. Remove one of them, or pass --schema "
            "winner or --schema label (for an --exclude file: --exclude_schema)."
        )
    found = next(name for name, schema in SCHEMAS.items() if set(schema.signs) <= set(columns))
    if found != "unlabelled":
        return found
    rows = list(zip(*(columns.get(name, ()) for name in TEXTS), strict=False))
    num_lists = sum(map(_is_turns, rows))
    if not set(LMSYS_WINNERS).isdisjoint(columns) or 0 < num_lists == len(rows):
        return "lmsys"
    # A few texts may be JSON by chance, but with most of them either reading would be a guess.
    if num_lists > len(rows) / 2:
        raise ValueError(
            f"{source}: expected either texts or lists of equally many turns; found lists in {num_lists} of its first "
            f"{len(rows)} rows. Pass --schema lmsys to read turns, or --schema unlabelled to read texts as they are."
        )
    return found


def _is_turns(texts: Sequence[object]) -> bool:
    """Returns whether the texts of a row are lists of equally many turns."""
    lists = [parse_list(text) for text in texts]
    if not all(isinstance(turns, list) and turns for turns in lists) or len(set(map(len, lists))) > 1:
        return False
    return all(isinstance(turn, str | None) for turns in lists for turn in turns)
