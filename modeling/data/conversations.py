"""Reads conversations, as lists of messages or as transcripts, and joins them to one text. Knows no schemas."""

import re
from collections.abc import Mapping, Sequence

from modeling.data.cells import RowError, begins_like_messages, parse_list
from modeling.data.text import is_blank

CONVERSATION = "must be a list of messages, each with a role and a text, alternating between user and assistant"
TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
UNREADABLE = "must be text or a list of messages, which text may hold as JSON or as Python writes it, whole"
SAVE_LISTS = (
    "Save the table as jsonl or parquet, which keep lists, or pass --bad_row_policy drop to leave the rows out."
)


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


def join_if_messages(value: object, name: str) -> object:
    """Returns a cell as one text if it is a list of messages: a prompt, or one message of the assistant as a response.

    Anything else is returned as it is, also a text that holds such a list.

    Args:
        value: The cell.
        name: Its column.

    Raises:
        RowError: If a message is malformed, or a response is more than one message of the assistant.
    """
    if not (isinstance(value, list) and value and all(isinstance(part, dict) for part in value)):
        return value
    messages = check_messages(value, name)
    roles = [role for role, _ in messages]
    if name != "prompt" and roles != ["assistant"]:
        raise RowError(f"{name} must be text or one message of the assistant", roles)
    return join_messages(messages)


def parse_conversation(value: object) -> object:
    """Returns the messages that a text holds as a list; a text that only looks like one, as "[1, 2]", as it is."""
    found = parse_list(value)
    if not isinstance(found, list) or not found or not all(isinstance(part, dict) for part in found):
        return value
    # An answer may be a list of dicts too, in somebody's code.
    return value if isinstance(value, str) and not all("role" in part for part in found) else found


def refuse_messages(value: object, name: str) -> None:
    """Raises a RowError if a text begins like messages: they were not parsed, and nobody said all that in one turn."""
    if begins_like_messages(value):
        raise RowError(f"{name} {UNREADABLE}", value, SAVE_LISTS)


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
        prompt: A text, a transcript, a list of messages, as a list or as text, or a list of the user's texts.
        messages: (role, text) of each message.
    """
    if prompt is None or prompt == "":
        return True
    found = parse_conversation(prompt)
    if isinstance(found, str) and TRANSCRIPT_TURN.match(found):
        # A transcript that stops before the response ends with an empty "Assistant:".
        found = [message for message in split_transcript(found, "prompt") if message["content"]]
    if isinstance(found, list):
        texts = [message.get("content") if isinstance(message, dict) else message for message in found]
        asked = [text for role, text in messages if role == "user"]
        return texts == [text for _, text in messages] or (texts == asked and texts == found)
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


def read_prompt(row: Mapping) -> list[tuple[str, str]]:
    """Returns the prompt column as messages; a plain text, alone or in a list, is one message of the user."""
    prompt = parse_conversation(row.get("prompt"))
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    refuse_messages(prompt, "prompt")
    return check_messages(prompt, "prompt") if isinstance(prompt, list) else [("user", prompt)]
