"""Conversations as data sets hold them: turns, messages and transcripts, checked, and joined into one text."""

import json
import re
from collections.abc import Sequence

from modeling.cleaning import is_blank

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
