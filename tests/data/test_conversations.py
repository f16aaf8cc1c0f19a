"""Laws of conversations.py: turns and messages become one text in one way, and what is none of them is said."""

import json

import pytest

from modeling.data.schemas import RowError, check_messages, is_said, join_messages, join_turns, split_transcript

SAID = [("user", "Hi"), ("assistant", "Hello"), ("user", "And?")]
MESSAGES = [{"role": role, "content": text} for role, text in SAID]
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?"


def test_turns_and_messages_are_joined_in_one_way():
    assert (join_turns(["Hi"]), join_turns(["Hi", None])) == ("Hi", "[Turn 1] Hi\n\n[Turn 2] ")
    assert join_messages([("system", "S"), ("user", "Hi")]) == "[System] S\n\n[User] Hi"


def test_messages_read_the_same_from_lists_from_json_and_from_transcripts():
    assert check_messages(MESSAGES, "chosen") == check_messages(json.dumps(MESSAGES), "chosen") == SAID
    assert check_messages(split_transcript(TRANSCRIPT, "chosen"), "chosen") == SAID
    for read, found in ((check_messages, "Hi"), (check_messages, []), (split_transcript, "Hi")):
        with pytest.raises(RowError, match="chosen must be a"):
            read(found, "chosen")


@pytest.mark.parametrize("beside", ["Hi", " And?\n", join_messages(SAID), MESSAGES, json.dumps(MESSAGES), "", None])
def test_a_prompt_beside_messages_is_one_of_them_or_all_or_nothing(beside):
    assert is_said(beside, SAID)
    assert is_said(f"{TRANSCRIPT}\n\nAssistant:", SAID)


@pytest.mark.parametrize("beside", ["Ho", MESSAGES[:1], "\n\nHuman: Ho\n\nAssistant:", 7])
def test_a_prompt_that_no_message_says_is_another(beside):
    assert not is_said(beside, SAID)
