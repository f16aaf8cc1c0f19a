"""Member and judge folders: writes them whole and reads them back checked. Uses no network and loads no model.

A member folder holds a LoRA adapter with its head, the tokenizer, the canary battles (probes.json) and member.json:
everything needed to read battles exactly as in training, and the hash of every file that affects an answer. A judge
folder holds member folders and judge.json, which names them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from modeling.data.battles import ORIENTATIONS, TRAINED_ORIENTATIONS, list_orders
from modeling.data.outcomes import LABEL_SETS
from modeling.network.base import BaseFiles, copy_notices
from modeling.network.lora import write_adapter
from modeling.runtime.choices import DEFAULT_READINGS, READINGS
from modeling.runtime.files import hash_file, replace_file, replace_folder, write_json

MEMBER_FILE, CANARIES_FILE, JUDGE_FILE = "member.json", "probes.json", "judge.json"
MEMBER_FORMAT, JUDGE_FORMAT = 2, 1
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER_FILE = "tokenizer_config.json"  # a member without it uses its base's tokenizer
MERGED_FILE = "config.json"  # only in a member that merge_member wrote, which is its own base
# Not hashed: files for people, the evaluation, and the adapter's config, where publishing changes the base's name.
UNHASHED = (MEMBER_FILE, "adapter_config.json", "evaluation.json", "README.md")


@dataclass(frozen=True)
class MemberFacts:
    """The content of member.json: how this adapter was trained to read, and on which base.

    `files` is the SHA-256 of each file that affects an answer; `save_member` fills it in.
    """

    orientation: str
    labels: list[str]
    dtype: str
    encoding: dict
    head: dict
    base_fingerprint: str
    training: dict
    files: dict[str, str] = field(default_factory=dict)
    format: int = MEMBER_FORMAT


@dataclass(frozen=True)
class JudgeFacts:
    """The content of judge.json: the members' folders, the orders they read, and the calibration of their mean.

    `calibration` is `Calibration.to_dict()` plus `members`, the fingerprint of each member by name.
    """

    members: list[str]
    readings: str = DEFAULT_READINGS
    calibration: dict | None = None
    format: int = JUDGE_FORMAT


# --- saving -----------------------------------------------------------------------------------------------------------


def save_member(
    folder: Path,
    model: PeftModel,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
    base: BaseFiles,
    facts: MemberFacts,
    canaries: Mapping,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Writes a member folder at once: a killed process leaves a complete member or none.

    Args:
        folder: Replaced if it is a member already.
        weights: From `collect_trained_weights`.
        tokenizer: None leaves it out, so that the member is read with its base's.
        canaries: From `record_canaries`, or from `build_empty_canaries` to save the weights before the canary battles
            are read.
        finish: Called with the unfinished folder to add files for people: evaluation, pictures and card.
    """
    with replace_folder(folder, MEMBER_FILE) as beside:
        # Never an absolute path: the folder must work on another machine, and must not show the user's directories.
        base_name = base.repo or base.package or os.path.relpath(base.folder.resolve(), folder.resolve())
        write_adapter(beside, model, weights, base_name, base.revision)
        copy_notices(base.folder, beside)
        write_facts(beside, tokenizer, facts, canaries)
        if finish:
            finish(beside)


def write_facts(folder: Path, tokenizer: PreTrainedTokenizerBase | None, facts: MemberFacts, canaries: Mapping) -> None:
    """Writes tokenizer, if given, and canary battles, then member.json with the hashes of all files in the folder."""
    if tokenizer:
        tokenizer.save_pretrained(folder)
    write_json(folder / CANARIES_FILE, canaries)
    # Last, so that the hashes are those of the files as they lie on disk.
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.name not in UNHASHED}
    write_json(folder / MEMBER_FILE, asdict(replace(facts, files=files)))


def write_judge(folder: Path, facts: JudgeFacts) -> None:
    """Writes judge.json at once, without fields that are None."""
    stored = {name: value for name, value in asdict(facts).items() if value is not None}
    with replace_file(folder / JUDGE_FILE) as beside:
        write_json(beside, stored)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_member(folder: Path) -> MemberFacts:
    """The facts of a member folder, after checking that its files are as they were saved.

    Raises:
        ValueError: If a file is missing or changed, or member.json has another format.
    """
    for name in (MEMBER_FILE, CANARIES_FILE, *((MERGED_FILE,) if is_merged(folder) else ADAPTER_FILES)):
        if not (folder / name).is_file():
            raise ValueError(
                f"Judge {folder}: expected a member folder with {name}; found none. Give a folder that train.py wrote."
            )
    values = read_json(folder / MEMBER_FILE, "Judge")
    try:
        if values["format"] != MEMBER_FORMAT:
            raise ValueError(
                f"Judge {folder}: expected format {MEMBER_FORMAT} in {MEMBER_FILE}; found {values['format']!r}. "
                "It was written by another version of bothways: use that one, or train it again."
            )
        facts = MemberFacts(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"Judge {folder}: expected the facts of a member in {MEMBER_FILE}; found {error}.") from error
    if facts.orientation not in TRAINED_ORIENTATIONS or facts.labels not in map(list, LABEL_SETS):
        labels = " or ".join(", ".join(each) for each in LABEL_SETS)
        raise ValueError(
            f"Judge {folder}: expected an orientation of {', '.join(TRAINED_ORIENTATIONS)} and the labels {labels}; "
            f"found {facts.orientation!r} and {', '.join(facts.labels)}."
        )
    for name, expected in facts.files.items():
        found = hash_file(folder / name) if (folder / name).is_file() else None
        if found != expected:
            raise ValueError(
                f"Judge {folder}: expected {name} as it was saved ({expected[:16]}); found "
                f"{f'another ({found[:16]})' if found else 'none'}. Download it again, or save the member again."
            )
    return facts


def fingerprint_member(facts: MemberFacts) -> str:
    """A short hash of the files that affect a member's answers."""
    return hashlib.sha256(json.dumps(facts.files, sort_keys=True).encode()).hexdigest()[:16]


def list_readings(orientation: str, readings: str) -> Sequence[str]:
    """The orders in which a member reads a battle.

    Args:
        orientation: The one it was trained in.
        readings: "both": both orders. "own": the order that it was trained in, or both if it was trained in both.
    """
    return ORIENTATIONS if readings == "both" else list_orders(orientation)


def is_merged(folder: Path) -> bool:
    """Whether a member folder holds a whole model and no adapter."""
    return (folder / MERGED_FILE).is_file() and not (folder / ADAPTER_FILES[0]).is_file()


def read_json(path: Path, role: str) -> dict:
    """The object in a JSON file; a ValueError if it holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{role} {path.parent}: expected the facts of a member in {path.name}; found {error}."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{role} {path.parent}: expected the facts of a member in {path.name}; found a {type(values).__name__}."
        )
    return values


def read_judge(folder: Path) -> JudgeFacts | None:
    """The facts in judge.json; None if there is no such file, as in a member folder."""
    if not (folder / JUDGE_FILE).is_file():
        return None
    values = read_json(folder / JUDGE_FILE, "Judge")
    members, readings, calibration = (
        values.get("members"),
        values.get("readings", DEFAULT_READINGS),
        values.get("calibration"),
    )
    judge = JudgeFacts(members, readings, calibration, values.get("format"))
    # Folder names only: a path such as "../x" could make a downloaded judge load other folders of this machine.
    plain = isinstance(members, list) and all(isinstance(m, str) and Path(m).name == m != ".." for m in members)
    if (
        judge.format != JUDGE_FORMAT
        or judge.readings not in READINGS
        or not isinstance(judge.calibration, dict | None)
        or not (plain and members and len(set(members)) == len(members))
    ):
        raise ValueError(
            f"Judge {folder}: expected format {JUDGE_FORMAT}, readings {' or '.join(READINGS)} and the names of "
            f"folders beside it in {JUDGE_FILE}; found {values}. Publish the judge again."
        )
    return judge


def locate_judge(names: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder that holds, or would hold, a judge's judge.json; and its members' names.

    Args:
        names: One judge folder, or member folders side by side.

    Raises:
        ValueError: If a folder is not on this machine, if the members are not in one folder, or if that folder holds
            the judge.json of other members.
    """
    folders = [Path(os.path.abspath(name)) for name in names]
    if missing := [name for name, folder in zip(names, folders, strict=True) if not folder.is_dir()]:
        raise ValueError(f"--judge {missing[0]}: expected a folder here, to write into; found none. Download it first.")
    if len(folders) == 1 and (judge := read_judge(folders[0])):
        return folders[0], judge.members
    parents = {folder.parent for folder in folders}
    if len(parents) > 1 or len(set(folders)) < len(folders):
        raise ValueError(
            f"--judge {' '.join(names)}: expected members side by side, each once, because {JUDGE_FILE} is written to "
            "the folder around them; found others. Move them together."
        )
    (parent,), members = parents, [folder.name for folder in folders]
    judge = read_judge(parent)
    if judge and judge.members != members:
        raise ValueError(
            f"Judge {parent}: expected the members {', '.join(members)} in {JUDGE_FILE}; found "
            f"{', '.join(judge.members)}. Name that judge, or remove its {JUDGE_FILE}."
        )
    return parent, members
