"""The argument dataclass of each script, and how tests parse a command line with it."""

import importlib
import re
from pathlib import Path

from modeling.settings.parsing import parse_arguments
from tests.helpers import REPOSITORY


def find_arguments(script: Path) -> type:
    """The dataclass of a script's flags, by the name with which the script parses them."""
    source = script.read_text(encoding="utf-8")
    name = re.search(r"parse_arguments\((\w+)", source)[1]
    module = re.search(rf"^from (modeling\.settings\.\w+) import {name}$", source, re.M)[1]
    return getattr(importlib.import_module(module), name)


KINDS: dict[str, type] = {}  # by verb
for script in sorted(REPOSITORY.glob("scripts/*.py")):
    call = re.search(r"parse_arguments\((\w+), verb=\"(\w+)\"(, trainer=True)?\)", script.read_text(encoding="utf-8"))
    assert call and call[2] == script.stem, f"{script.name}: expected a call of parse_arguments with its own verb"
    assert bool(call[3]) == (script.stem == "train")
    KINDS[script.stem] = find_arguments(script)

PREDICT = "battles: b.jsonl\njudge: [ab, ba]\noutput_dir: out\n"
TRAIN = "orientation: ab\nbase: base\ntrain_file: t.jsonl\noutput_dir: out\n"
# Flags that a recipe leaves to its user.
USERS_FLAGS = {
    "train": "--orientation ab --train_file train.parquet",
    "predict": "--battles test.parquet",
    "pseudolabel": "--battles pool.parquet",
    "publish": "--member outputs/demo/ab --repo USER/NAME",
}


def parse(verb: str, *argv: str) -> tuple:
    """Parses the flags of a script as the script does."""
    return parse_arguments(KINDS[verb], verb=verb, trainer=verb == "train", argv=argv)


def write_recipe(folder: Path, text: str) -> str:
    """Writes a recipe and returns its path."""
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return str(folder / "recipe.yaml")
