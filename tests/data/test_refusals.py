"""docs/data.md's table of refusals is held to what the code says: each row is tried."""

import re

import pytest

from modeling.data.battles import load_battles
from tests.helpers import REPOSITORY

HEADER = "id,prompt,response_a,response_b,winner\n"
PLAIN = '{"id": "x", "prompt": "p", "response_a": "a", "response_b": "b"'
TALK = "[{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]"
MESSAGES = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'
OTHER_MESSAGES = MESSAGES.replace("Hi", "Ho")
TURNS = 'x,["p"],["a"],["b"]\n'.replace('["', '"[""').replace('"]', '""]"')
# What the error says: the source's name, its content, and further arguments.
REFUSALS = {
    "expected a file, a folder of data files, or a Hub data set": ("none.csv", None, {}),
    "found no such split": ("folder/train.csv", HEADER, {"split": ":dev"}),
    "expected files ending in": ("folder/notes.md", "", {}),
    "cannot be reached": ("owner/name", None, {}),
    "expected a file ending in": ("f.json", "[]", {}),
    "which cannot be read": ("folder/f.xlsx", "", {}),
    "found damaged or other data": ("f.parquet", HEADER, {}),
    "expected UTF-8 text": ("f.csv", HEADER.encode() + b"x,p,Gr\xfc\xdfe,b,tie\n", {}),
    "expected 5 fields": ("f.csv", f"{HEADER}x,p,a, b,c,tie\n", {}),
    "expected distinct column names": ("f.csv", "id,prompt,id\n", {}),
    "expected one JSON object a line": ("f.jsonl", "[1]\n", {}),
    "missing column": ("f.csv", "id,prompt\n", {}),
    "expected one outcome column": ("f.csv", "id,prompt,response_a,response_b,winner,label\n", {}),
    "expected a winner (or label) column": ("f.jsonl", PLAIN + "}", {"require_labels": True}),
    "each id must be on 1 row": ("f.csv", f"{HEADER}x,p,a,b,tie\nx,q,a,b,tie\n", {}),
    "ids must be all text or all whole numbers": ("f.jsonl", PLAIN.replace('"x"', "null") + "}", {}),
    "winner must be one of": ("f.csv", f"{HEADER}x,p,a,b,1\n", {}),
    "that sum to 1": ("f.jsonl", PLAIN + ', "label": [1, 1]}', {}),
    "must not be null or blank": ("f.csv", f"{HEADER}x,p,,b,tie\n", {}),
    "must be text": ("f.jsonl", PLAIN.replace('"p"', "7") + "}", {}),
    "must be text or a list of messages": ("f.csv", f'prompt,chosen,rejected\nHi,"{TALK[:-9]}",b\n', {}),
    "no list of messages written as text": ("f.csv", f'{HEADER}x,"{TALK}",a,b,tie\n', {}),
    "expected either texts or lists of equally many turns": (
        "f.csv",
        f"id,prompt,response_a,response_b\n{TURNS}{TURNS}y,p,a,b\n",
        {},
    ),
    "must have the same user turns": (
        "f.jsonl",
        f'{{"id": "x", "conversation_a": {MESSAGES}, "conversation_b": {OTHER_MESSAGES}}}',
        {},
    ),
    "expected values of one storable type": (
        "f.jsonl",
        f'{PLAIN}, "n": 1}}\n{PLAIN.replace("x", "y")}, "n": "1"}}',
        {},
    ),
}


def list_phrases() -> list[str]:
    """What the table says that the errors say."""
    page = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    table = page.split("## What is refused")[1].split("\n## ")[0]
    return re.findall(r"^\| [^|]+ \| `([^`]+)` \| [^|]+ \|$", table, re.M)


def test_the_table_has_a_row_for_each_refusal():
    assert list_phrases() == list(REFUSALS)


@pytest.mark.parametrize("phrase", REFUSALS)
def test_what_the_table_says_is_what_the_error_says(tmp_path, phrase):
    name, content, options = REFUSALS[phrase]
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = str(path.parent if "/" in name else path) + options.get("split", "") if content is not None else name
    with pytest.raises((ValueError, OSError)) as error:
        load_battles(source, **{key: value for key, value in options.items() if key != "split"})
    assert phrase in str(error.value) and source.removesuffix(":dev") in str(error.value)
