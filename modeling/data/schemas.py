"""The schemas in which battles arrive: a row in, its three texts and label out. Winner strings are known here alone.

A schema is a function and an entry in `SCHEMAS`. Which one a file has is seen from its columns.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modeling.data.text import is_blank

FIX = "Fix these rows, or pass --bad_row_policy drop to leave them out."
CONVERSATION = "must be a list of messages, each with a role and a text, in turn of user and assistant"
TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")


class RowError(ValueError):
    """Why a row is no battle: what was expected and what was found; `battles.py` adds file and id."""

    def __init__(self, expected: str, found: object, way_out: str = FIX):
        super().__init__(expected)
        self.expected, self.found, self.way_out = expected, found, way_out


def join_turns(turns: Sequence[str | None]) -> str:
    """One side of a conversation as one text: a single turn as it is, several each after "[Turn n] ".

    Example: `join_turns(["Hi", "And you?"])` is "[Turn 1] Hi\\n\\n[Turn 2] And you?".
    """
    texts = [text or "" for text in turns]
    if len(texts) == 1 or all(map(is_blank, texts)):
        return texts[0]
    return "\n\n".join(f"[Turn {number}] {text}" for number, text in enumerate(texts, 1))


def join_messages(messages: Sequence[tuple[str, str]]) -> str:
    """What was said before the two answers, as one text: a single message as it is, several after "[User] " and so on.

    Example: `join_messages([("user", "Hi"), ("assistant", "Yes?")])` is "[User] Hi\\n\\n[Assistant] Yes?".
    """
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"[{role.capitalize()}] {text}" for role, text in messages)


# --- reading them -----------------------------------------------------------------------------------------------------


def parse_list(value: object) -> object:
    """The list that a text spells in JSON, as in a cell of a csv; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return value
        return found if isinstance(found, list) else value
    return value


def parse_conversation(value: object) -> object:
    """The messages that a text spells in JSON; a text that only looks like a list, "[1, 2]" say, as it is."""
    found = parse_list(value)
    return found if isinstance(found, list) and found and all(isinstance(part, dict) for part in found) else value


def check_messages(value: object, name: str) -> list[tuple[str, str]]:
    """(role, text) of each message; a RowError about the column `name` where they are none."""
    messages = parse_list(value)
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{name} {CONVERSATION}", value)
    return [_read_message(message, name) for message in messages]


def _read_message(message: object, name: str) -> tuple[str, str]:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        content = "\n\n".join(texts) if all(isinstance(text, str) for text in texts) else None
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise RowError(f"{name} {CONVERSATION}", message)
    return role, content


def is_said(prompt: object, messages: Sequence[tuple[str, str]]) -> bool:
    """Whether a prompt beside the messages before an answer is one of them, or all of them, or nothing.

    Args:
        prompt: A text, a transcript, or a list of messages, also in JSON.
        messages: (role, text) of each.
    """
    if prompt is None or prompt == "":
        return True
    said = parse_conversation(prompt)
    if isinstance(said, str) and TRANSCRIPT_TURN.match(said):
        said = [message for message in split_transcript(said, "prompt") if message["content"]]
    if isinstance(said, list):
        return [message.get("content") for message in said] == [text for _, text in messages]
    return str(said).strip() in {text.strip() for _, text in messages} | {join_messages(messages).strip()}


def split_transcript(text: str, name: str) -> list[dict]:
    """The messages of "\\n\\nHuman: ...\\n\\nAssistant: ...", which stands in the column `name`."""
    before, *parts = TRANSCRIPT_TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not parts:
        raise RowError(f"{name} must be a transcript of Human: and Assistant:, as there is no prompt", text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[role], "content": content.strip()} for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


# --- schemas ----------------------------------------------------------------------------------------------------------

LABELS = ("a", "b")
RESPONSES = ("response_a", "response_b")
TEXTS = ("prompt", *RESPONSES)
PAIR = ("chosen", "rejected")
CONVERSATIONS = ("conversation_a", "conversation_b")
WINNERS = {"model_a": [1.0, 0.0], "model_b": [0.0, 1.0], "tie": [0.5, 0.5]}
ARENA_WINNERS = WINNERS | {"tie (bothbad)": [0.5, 0.5], "both_bad": [0.5, 0.5]}
LMSYS_WINNERS = {"winner_model_a": "model_a", "winner_model_b": "model_b", "winner_tie": "tie"}
LABEL_SUM_TOLERANCE = 1e-3
CONTRADICTED = "contradicted"  # what `read_pair` adds where a row's prompt is none of its messages


@dataclass(frozen=True)
class Schema:
    """How the rows of one kind of file are read.

    A file that has all `signs` is of this schema, but see `find_schema`. `columns` must be there; `outcomes`, which
    make the label, all of them or, in a file without labels, none. `ids` are the columns that may hold the id, the
    first one present; where `hashed_ids`, a file that has none of them gets ids made of its texts. `read_row` takes a
    row and its id.
    """

    signs: tuple[str, ...]
    columns: tuple[str, ...]
    outcomes: tuple[str, ...]
    read_row: Callable[[Mapping, object], dict]
    ids: tuple[str, ...] = ("id",)
    hashed_ids: bool = False


# --- one function per schema ------------------------------------------------------------------------------------------


def read_plain(row: Mapping, _: object) -> dict:
    """This project's own columns, without an outcome."""
    return {name: row[name] for name in TEXTS}


def read_winner(row: Mapping, id: object) -> dict:
    """WSDM: `winner` is model_a, model_b or tie; or, in pseudo-labels, the two probabilities."""
    winner = parse_list(row["winner"])
    label = check_label("winner", winner) if isinstance(winner, list) else _find_winner(winner, WINNERS)
    return {**read_plain(row, id), "label": label}


def read_label(row: Mapping, id: object) -> dict:
    """This project's own: `label` is a probability per label."""
    return {**read_plain(row, id), "label": check_label("label", parse_list(row["label"]))}


def read_p_a(row: Mapping, id: object) -> dict:
    """`p_a` is the probability that a wins."""
    found = row["p_a"]
    p_a = _parse_number(found)
    if not 0 <= p_a <= 1:
        raise RowError("p_a must be a probability, from 0 to 1", found)
    return {**read_plain(row, id), "label": [p_a, 1 - p_a]}


def read_lmsys(row: Mapping, _: object) -> dict:
    """LMSYS 55k: texts are JSON lists with an entry per turn, and one of three columns is 1."""
    turns = {name: parse_list(row[name]) for name in TEXTS}
    for name, texts in turns.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str | None) for text in texts):
            raise RowError(f"{name} must be a JSON list of at least one text per turn", row[name])
    if len(set(map(len, turns.values()))) > 1:
        found = ", ".join(f"{len(texts)} in {name}" for name, texts in turns.items())
        raise RowError("prompt, response_a and response_b must have equally many turns", found)
    battle = {name: join_turns(texts) for name, texts in turns.items()}
    flags = {winner: row.get(column) for column, winner in LMSYS_WINNERS.items()}
    if any(column in row for column in LMSYS_WINNERS):
        numbers = [float(flag) if isinstance(flag, bool) else _parse_number(flag) for flag in flags.values()]
        if sorted(numbers) != [0, 0, 1]:
            raise RowError(f"one of {', '.join(LMSYS_WINNERS)} must be 1 and the others 0", list(flags.values()))
        battle["label"] = WINNERS[list(flags)[numbers.index(1)]]
    return battle


def read_lmarena(row: Mapping, _: object) -> dict:
    """lmarena 33k, 100k, 140k: two conversations of the same user; `winner` also says that both were bad."""
    turns = {}
    for side in LABELS:
        messages = check_messages(row[f"conversation_{side}"], f"conversation_{side}")
        system = [text for role, text in messages if role == "system"]
        talk = [message for message in messages if message[0] != "system"]
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
    """Chosen and rejected answers, as texts, message lists, or transcripts that hold the prompt (hh-rlhf).

    The chosen one is a or b by a hash of the id: half and half, and the same every time.
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
    (prompt, chosen), (other, rejected) = answers.values()
    if prompt != other:
        raise RowError("chosen and rejected must have the same messages before the last", [len(prompt), len(other)])
    texts = [chosen, rejected] if is_chosen_first(id) else [rejected, chosen]
    label = [1.0, 0.0] if is_chosen_first(id) else [0.0, 1.0]
    battle = {"prompt": join_messages(prompt), **dict(zip(RESPONSES, texts, strict=True)), "label": label}
    return battle if messages is None or is_said(row.get("prompt"), prompt) else battle | {CONTRADICTED: True}


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
    """Name of the first schema whose signs are there.

    Where there is no other outcome, one of LMSYS's columns is sign enough, and so are texts that are, all three and in
    every row, lists of equally many turns: a test file has no outcomes, and who reads it as it is reads JSON.

    Args:
        source: Names the file.
        columns: Of its first rows.

    Raises:
        ValueError: If two outcome columns contradict each other's claim to be the label, or most texts are lists of
            turns but not all.
    """
    if "winner" in columns and "label" in columns:
        raise ValueError(
            f"{source}: expected one outcome column; found both winner and label. Remove the one that is not meant, or "
            "pass --schema winner or --schema label (of an --exclude file: --exclude_schema)."
        )
    found = next(name for name, schema in SCHEMAS.items() if set(schema.signs) <= set(columns))
    if found != "unlabelled":
        return found
    rows = list(zip(*(columns.get(name, ()) for name in TEXTS), strict=False))
    num_turned = sum(map(_is_turns, rows))
    if not set(LMSYS_WINNERS).isdisjoint(columns) or 0 < num_turned == len(rows):
        return "lmsys"
    if num_turned > len(rows) / 2:
        raise ValueError(
            f"{source}: expected texts, or lists of equally many turns; found the lists in {num_turned} of its first "
            f"{len(rows)} rows. Pass --schema lmsys to read turns, or --schema unlabelled to take texts as they are."
        )
    return found


def _is_turns(texts: Sequence[object]) -> bool:
    """Whether the texts of a row are lists of equally many turns."""
    lists = [parse_list(text) for text in texts]
    if not all(isinstance(turns, list) and turns for turns in lists) or len(set(map(len, lists))) > 1:
        return False
    return all(isinstance(turn, str | None) for turns in lists for turn in turns)


# --- ids and sides ----------------------------------------------------------------------------------------------------


def hash_texts(row: Mapping) -> str:
    """An id for a row that has none, from what it says."""
    said = json.dumps([row.get("prompt"), row["chosen"], row["rejected"]], default=str)
    return hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:16]


def is_chosen_first(id: object) -> bool:
    """Whether the chosen answer of a pair is response_a."""
    return hashlib.sha256(str(id).encode("utf-8", "replace")).digest()[0] % 2 == 0


# --- checks of values -------------------------------------------------------------------------------------------------


def _find_winner(winner: object, winners: Mapping[str, list[float]]) -> list[float]:
    if not isinstance(winner, str) or winner not in winners:
        raise RowError(f"winner must be one of {', '.join(winners)}", winner)
    return winners[winner]


def check_label(name: str, label: object) -> list[float]:
    """The probabilities, summing to 1 exactly; a RowError about the column `name` where they are none."""
    if isinstance(label, list) and len(label) == len(LABELS):
        # A comparison with NaN is false, so NaN fails here too.
        numbers = all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in label)
        if numbers and abs(math.fsum(label) - 1) <= LABEL_SUM_TOLERANCE:
            return [float(p) / math.fsum(label) for p in label]
    raise RowError(f"{name} must be {len(LABELS)} probabilities (of {', '.join(LABELS)}) that sum to 1", label)


def read_probability(name: str, value: object) -> list[float] | None:
    """Probabilities from a cell that has them all, has that of a, or says nothing; in a csv it is a text.

    Example: `read_probability("t", "0.75")` is `[0.75, 0.25]`, as is "[0.75, 0.25]"; null, NaN and "" are None.
    """
    if value is None or value != value or value == "":
        return None
    found = parse_list(value)
    p_a = _parse_number(found)
    try:
        return check_label(name, found if isinstance(found, list) else [p_a, 1 - p_a])
    except RowError as error:
        raise RowError(error.expected, value) from error


def _parse_number(value: object) -> float:
    """The number, NaN where it is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _read_prompt(row: Mapping) -> list[tuple[str, str]]:
    prompt = parse_conversation(row.get("prompt"))
    return check_messages(prompt, "prompt") if isinstance(prompt, list) else [("user", prompt)]
