"""The schemas of battle files: each one turns a row into a prompt, two responses and, where known, a label.

A schema is a function and an entry in `SCHEMAS`; which one a file has is recognised by its columns. Winner strings are
read only here, and written only by `battles.name_winners`. It must not know files or other rows.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modeling.data.cells import (
    FIX,
    RowError,
    begins_like_messages,
    check_label,
    is_missing,
    parse_list,
    parse_number,
)
from modeling.data.conversations import (
    CONVERSATION,
    TRANSCRIPT_TURN,
    check_messages,
    is_prompt_of,
    join_if_messages,
    join_messages,
    join_turns,
    parse_conversation,
    read_prompt,
    refuse_messages,
    split_transcript,
)
from modeling.data.outcomes import LABELS

RESPONSES = ("response_a", "response_b")
TEXTS = ("prompt", *RESPONSES)

PAIR = ("chosen", "rejected")
SCORES = ("score_chosen", "score_rejected")
CONVERSATIONS = ("conversation_a", "conversation_b")
HELPSTEER_TEXTS = ("context", "response1", "response2")
SHP_TEXTS = ("history", "human_ref_A", "human_ref_B")
WINNERS = {"model_a": [1.0, 0.0], "model_b": [0.0, 1.0], "tie": [0.5, 0.5]}
BOTH_BAD = ("tie (bothbad)", "both_bad")
# "tie (inconsistent)": MT-Bench's GPT-4, whose verdict changed with the order of the answers.
ARENA_WINNERS = WINNERS | dict.fromkeys((*BOTH_BAD, "tie (inconsistent)"), WINNERS["tie"])
# Other words for a winner that mean one side only, unlike 0 and 1.
WINNER_WORDS = {
    **dict.fromkeys(("a", "A", "model_1"), "model_a"),
    **dict.fromkeys(("b", "B", "model_2"), "model_b"),
}
LMSYS_WINNERS = {"winner_model_a": "model_a", "winner_model_b": "model_b", "winner_tie": "tie"}
LARGEST_PREFERENCE = 3  # of HelpSteer3: "much better"
CONTRADICTED = "contradicted"  # the key that `read_pair` adds where the row's prompt is not in its messages


# --- winners ----------------------------------------------------------------------------------------------------------


def _find_winner(winner: object, winners: Mapping[str, list[float]]) -> list[float]:
    """Returns the label of a winner string."""
    if not isinstance(winner, str) or winner not in winners:
        way_out = FIX
        if not math.isnan(parse_number(winner)) or isinstance(winner, bool):
            way_out = (
                "A number may mean either side; say which one: --winner_values model_a=<its value> model_b=<its "
                f"value> tie=<its value>. {FIX}"
            )
        raise RowError(f"winner must be one of {', '.join(winners)}", winner, way_out)
    return winners[winner]


def read_flags(row: Mapping) -> list[float]:
    """Returns the label from LMSYS's three winner columns, one of which is 1."""
    flags = {winner: row.get(column) for column, winner in LMSYS_WINNERS.items()}  # one that is missing is an error
    numbers = [float(flag) if isinstance(flag, bool) else parse_number(flag) for flag in flags.values()]
    if sorted(numbers) != [0, 0, 1]:
        raise RowError(f"one of {', '.join(LMSYS_WINNERS)} must be 1 and the others 0", list(flags.values()))
    return WINNERS[list(flags)[numbers.index(1)]]


# --- ids and sides of pairs -------------------------------------------------------------------------------------------


def hash_texts(row: Mapping, names: Sequence[str]) -> str:
    """Returns an id for a row that has none: a hash of its texts, which are in the columns `names`."""
    texts = json.dumps([row.get(name) for name in names], default=str)
    return hashlib.sha256(texts.encode("utf-8", "replace")).hexdigest()[:16]


def is_chosen_first(id: object) -> bool:
    """Returns whether the chosen response of a pair is response_a, by a hash of the id.

    Never change the hash: it would swap the sides of every data set that was ever trained on.
    """
    return hashlib.sha256(str(id).encode("utf-8", "replace")).digest()[0] % 2 == 0


# --- one function per schema ------------------------------------------------------------------------------------------


def read_plain(row: Mapping, _: object) -> dict:
    """Reads this project's own columns, without an outcome."""
    return {name: join_if_messages(row[name], name) for name in TEXTS}


def refuse_structure(battle: Mapping, schema: str) -> None:
    """Raises a RowError if a plain text is a list of messages, which csv files hold as text."""
    for name in TEXTS:
        if begins_like_messages(text := battle[name]) and text.rstrip().endswith(("]", ")")):
            way_out = f"Save prompts and answers as plain texts, or pass --schema {schema} to read them as they are."
            raise RowError(f"{name} must be a text, and no list of messages written as text", text, way_out)


def read_winner(row: Mapping, id: object) -> dict:
    """Reads WSDM rows: `winner` is model_a, model_b or tie, or, in pseudo-labels, the probabilities."""
    winner = parse_list(row["winner"])
    label = check_label("winner", winner) if isinstance(winner, list) else _find_winner(winner, WINNERS)
    return {**read_plain(row, id), "label": label}


def read_label(row: Mapping, id: object) -> dict:
    """Reads this project's own columns with `label`, a probability for each of `LABELS` or of `WITH_TIE`."""
    return {**read_plain(row, id), "label": check_label("label", parse_list(row["label"]))}


def read_p_a(row: Mapping, id: object) -> dict:
    """Reads this project's own columns with `p_a`, the probability that a wins."""
    found = row["p_a"]
    p_a = parse_number(found)
    if not 0 <= p_a <= 1:
        raise RowError("p_a must be a probability, from 0 to 1", found)
    return {**read_plain(row, id), "label": [p_a, 1 - p_a]}


def join_row(row: Mapping) -> dict:
    """Returns the three texts of a row whose columns hold lists with one entry per turn, as lists or as text."""
    turns = {name: parse_list(row[name]) for name in TEXTS}
    for name, texts in turns.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str | None) for text in texts):
            raise RowError(f"{name} must be a JSON list of at least one text per turn", row[name])
    if len(set(map(len, turns.values()))) > 1:
        found = ", ".join(f"{len(texts)} in {name}" for name, texts in turns.items())
        raise RowError("prompt, response_a and response_b must have equally many turns", found)
    return {name: join_turns(texts) for name, texts in turns.items()}


def read_lmsys(row: Mapping, _: object) -> dict:
    """Reads LMSYS 55k rows: texts are JSON lists with one entry per turn, and one of three winner columns is 1."""
    battle = join_row(row)
    return {**battle, "label": read_flags(row)} if any(column in row for column in LMSYS_WINNERS) else battle


def read_winner_columns(row: Mapping, id: object) -> dict:
    """Reads this project's own columns with LMSYS's three winner columns."""
    return {**read_plain(row, id), "label": read_flags(row)}


def read_lmarena(row: Mapping, _: object) -> dict:
    """Reads lmarena and MT-Bench rows: two conversations of the same user.

    `winner` may be "both bad", which is a tie. The column both_bad keeps it apart from a tie of good answers.
    """
    battle = _join_conversations(row)
    if "winner" not in row:
        return battle
    winner = row["winner"]
    return {**battle, "label": _find_winner(winner, ARENA_WINNERS), "both_bad": winner in BOTH_BAD}


def _join_conversations(row: Mapping) -> dict:
    """The texts of two conversations, up to the turn that was judged."""
    turns = {}
    for side in LABELS:
        messages = check_messages(row[f"conversation_{side}"], f"conversation_{side}")
        system = [text for role, text in messages if role == "system"]
        talk = [message for message in messages if message[0] != "system"]
        # The pattern also refuses an odd number of messages: the assistant must have the last word.
        if not talk or [role for role, _ in talk] != ["user", "assistant"] * (len(talk) // 2):
            raise RowError(f"conversation_{side} {CONVERSATION}", [role for role, _ in messages])
        end = None if is_missing(row.get("turn")) else 2 * _find_judged_turn(row)
        turns[side] = system, [text for _, text in talk[:end:2]], [text for _, text in talk[1:end:2]]
    if turns["a"][:2] != turns["b"][:2]:
        numbers = " and ".join(f"{len(turns[side][1])} turns in conversation_{side}" for side in LABELS)
        raise RowError("conversation_a and conversation_b must have the same user turns", numbers)
    system, asked, _ = turns["a"]
    prompt = "\n\n".join([*(f"[System] {text}" for text in system), join_turns(asked)])
    return {"prompt": prompt, **{f"response_{side}": join_turns(turns[side][2]) for side in LABELS}}


def _find_judged_turn(row: Mapping) -> int:
    """The last turn that was judged: MT-Bench has verdicts on the first of two turns. In lmarena it is the last one."""
    turn = parse_number(row["turn"])
    if not turn >= 1 or turn % 1:
        raise RowError("turn must be a whole number from 1, the last turn that was judged", row["turn"])
    return int(turn)


def read_comparia(row: Mapping, _: object) -> dict:
    """Reads compar:IA's votes: two conversations, and the name of the chosen model or that both are equal."""
    battle = _join_conversations(row)
    if "chosen_model_name" not in row:
        return battle
    chosen, is_tie = row["chosen_model_name"], str(row["both_equal"]).lower() in ("true", "1", "1.0")
    models = [row["model_a_name"], row["model_b_name"]]
    if is_tie != is_missing(chosen) or (not is_tie and models.count(chosen) != 1):
        raise RowError(
            "chosen_model_name must be model_a_name or model_b_name, or null where both_equal is true",
            {"chosen_model_name": chosen, "both_equal": row["both_equal"]},
        )
    winner = "tie" if is_tie else ("model_a", "model_b")[models.index(chosen)]
    return {**battle, "label": WINNERS[winner]}


def read_helpsteer(row: Mapping, _: object) -> dict:
    """Reads HelpSteer3-Preference rows: overall_preference from -3, response1 is much better, to 3, response2 is.

    The label is linear between them, so that 0 is a tie and -1 is [2/3, 1/3].
    """
    prompt = join_messages(check_messages(row["context"], "context"))
    battle = dict(zip(TEXTS, (prompt, row["response1"], row["response2"]), strict=True))
    if "overall_preference" not in row:
        return battle
    preference = parse_number(row["overall_preference"])
    if not abs(preference) <= LARGEST_PREFERENCE or preference % 1:
        raise RowError("overall_preference must be a whole number from -3 to 3", row["overall_preference"])
    p_b = 0.5 + preference / (2 * LARGEST_PREFERENCE)
    return {**battle, "label": [1 - p_b, p_b]}


def read_shp(row: Mapping, _: object) -> dict:
    """Reads SHP rows: a post and two comments, of which the one with the higher score is preferred."""
    battle = dict(zip(TEXTS, (row[name] for name in SHP_TEXTS), strict=True))
    if "score_A" not in row:
        return battle
    margin = parse_number(row["score_A"]) - parse_number(row["score_B"])
    if math.isnan(margin):
        raise RowError("score_A and score_B must be numbers", [row["score_A"], row["score_B"]])
    return {**battle, "label": WINNERS["model_a" if margin > 0 else "model_b" if margin else "tie"]}


def read_pair(row: Mapping, id: object) -> dict:
    """Reads chosen and rejected responses: texts, message lists, or transcripts that include the prompt (hh-rlhf).

    A hash of the id puts the chosen one on side a or b: half of them on each side, and always the same.
    """
    answers, messages = {}, None
    for name in PAIR:
        value = parse_conversation(row[name])
        if isinstance(value, str) and (row.get("prompt") is None or TRANSCRIPT_TURN.match(value)):
            value = split_transcript(value, name)
        refuse_messages(value, name)
        if isinstance(value, list):
            messages = check_messages(value, name)
            if messages[-1][0] != "assistant":
                raise RowError(f"{name} must end with the assistant's message", messages[-1][0])
            answers[name] = messages[:-1] or read_prompt(row), messages[-1][1]
        else:
            answers[name] = read_prompt(row), value
    (prompt, chosen), (other_prompt, rejected) = answers.values()
    if prompt != other_prompt:
        lengths = [len(prompt), len(other_prompt)]
        raise RowError("chosen and rejected must have the same messages before the last", lengths)
    texts = [chosen, rejected] if is_chosen_first(id) else [rejected, chosen]
    label = [1.0, 0.0] if is_chosen_first(id) else [0.0, 1.0]
    battle = {"prompt": join_messages(prompt), **dict(zip(RESPONSES, texts, strict=True)), "label": label}
    return battle if messages is None or is_prompt_of(row.get("prompt"), prompt) else battle | {CONTRADICTED: True}


def read_score_margin(row: Mapping, id: object) -> dict:
    """Reads pairs with UltraFeedback's scores: the label is soft, 1 / (1 + exp(score_rejected - score_chosen)).

    Source: Bradley and Terry 1952, with the scores as log strengths. Equal scores are a tie.
    """
    margin = parse_number(row["score_chosen"]) - parse_number(row["score_rejected"])
    if math.isnan(margin):
        raise RowError("score_chosen and score_rejected must be numbers", [row[name] for name in SCORES])
    p = 1 / (1 + math.exp(-max(margin, -700)))  # beyond 709 exp overflows
    battle = read_pair(row, id)
    return battle | {"label": [p, 1 - p] if battle["label"][0] else [1 - p, p]}


# --- the table of schemas ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schema:
    """How to recognise and read the rows of one kind of file."""

    signs: tuple[str, ...]  # columns that show this schema; `find_schema` knows the exceptions
    columns: tuple[str, ...]  # columns that must be there
    outcomes: tuple[str, ...]  # columns that make the label: all of them or, in a file without labels, none
    read_row: Callable[[Mapping, object], dict]  # takes a row and its id
    ids: tuple[str, ...] = ("id",)  # columns that may hold the id; the first one present does
    hashed: tuple[str, ...] = TEXTS  # columns whose hash is the id where there is none
    also: tuple[str, ...] = ()  # further columns that must be there; they are carried along as well
    adds: tuple[str, ...] = ()  # further columns that a labelled battle gets
    is_public: bool = False  # whether there are public data sets of this schema without ids


VOTE = ("chosen_model_name", "both_equal")
# In the order in which `find_schema` tries them.
SCHEMAS = {
    "chosen_rejected": Schema(PAIR, PAIR, PAIR, read_pair, ("id", "prompt_id"), ("prompt", *PAIR), is_public=True),
    "score_margin": Schema(
        PAIR, PAIR, PAIR, read_score_margin, ("id", "prompt_id"), ("prompt", *PAIR), SCORES, is_public=True
    ),
    "comparia": Schema(
        (*CONVERSATIONS, *VOTE),
        CONVERSATIONS,
        VOTE,
        read_comparia,
        ("id", "conversation_pair_id"),
        CONVERSATIONS,
        ("model_a_name", "model_b_name"),
    ),
    "lmarena": Schema(
        CONVERSATIONS,
        CONVERSATIONS,
        ("winner",),
        read_lmarena,
        ("id", "question_id"),
        CONVERSATIONS,
        adds=("both_bad",),
    ),
    "helpsteer3": Schema(
        HELPSTEER_TEXTS,
        HELPSTEER_TEXTS,
        ("overall_preference",),
        read_helpsteer,
        hashed=HELPSTEER_TEXTS,
        is_public=True,
    ),
    "shp": Schema(SHP_TEXTS, SHP_TEXTS, ("score_A", "score_B"), read_shp, ("id", "post_id"), SHP_TEXTS),
    "lmsys": Schema(tuple(LMSYS_WINNERS), TEXTS, tuple(LMSYS_WINNERS), read_lmsys),
    "winner_columns": Schema(tuple(LMSYS_WINNERS), TEXTS, tuple(LMSYS_WINNERS), read_winner_columns),
    "winner": Schema(("winner",), (*TEXTS, "winner"), ("winner",), read_winner),
    "label": Schema(("label",), (*TEXTS, "label"), ("label",), read_label),
    "p_a": Schema(("p_a",), (*TEXTS, "p_a"), ("p_a",), read_p_a),
    "unlabelled": Schema((), TEXTS, (), read_plain),
}
SCHEMA_NAMES = ("auto", *SCHEMAS)
ID_COLUMNS = frozenset(name for schema in SCHEMAS.values() for name in schema.ids)
PLAIN = ("winner_columns", "winner", "label", "p_a", "unlabelled")  # schemas whose texts are in the three columns
# Columns that would be read as an outcome beside a prompt and two responses; they are never carried along.
OUTCOMES = {*PAIR, *(name for schema in PLAIN for name in SCHEMAS[schema].outcomes)}


def find_schema(source: str, columns: Mapping[str, Sequence]) -> tuple[str, bool]:
    """Returns the name of the first schema whose signs are all there, and whether the texts are lists of turns.

    A file without outcome columns may still be LMSYS's: if it has one of LMSYS's winner columns, or if the three texts
    of every row are lists of equally many turns, as in its test file. Otherwise models would read raw JSON. A file with
    LMSYS's winner columns may have plain texts.

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
    rows = list(zip(*(columns.get(name, ()) for name in TEXTS), strict=False))
    if found == "lmsys":
        num_plain = sum(not any(isinstance(parse_list(text), list) for text in row) for row in rows)
        return ("winner_columns" if num_plain > len(rows) / 2 else found), False
    if found not in PLAIN:
        return found, False
    if found == "unlabelled" and not set(LMSYS_WINNERS).isdisjoint(columns):
        return "lmsys", False
    num_lists = sum(map(_is_turns, rows))
    if 0 < num_lists == len(rows):
        return ("lmsys", False) if found == "unlabelled" else (found, True)
    # A few texts may be JSON by chance, but with most of them either reading would be a guess.
    if num_lists > len(rows) / 2:
        turns = "Pass --schema lmsys to read turns" if found == "unlabelled" else "Write all of them as lists"
        raise ValueError(
            f"{source}: expected either texts or lists of equally many turns; found lists in {num_lists} of its first "
            f"{len(rows)} rows. {turns}, or pass --schema {found} to read texts as they are."
        )
    return found, False


def _is_turns(texts: Sequence[object]) -> bool:
    """Returns whether the texts of a row are lists of equally many turns."""
    lists = [parse_list(text) for text in texts]
    if not all(isinstance(turns, list) and turns for turns in lists) or len(set(map(len, lists))) > 1:
        return False
    return all(isinstance(turn, str | None) for turns in lists for turn in turns)
