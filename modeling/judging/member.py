"""Member and judge folders: what is in them, written whole and read back checked. No network, no loaded model.

A member folder holds a LoRA adapter with its head, the tokenizer, `probes.json`, and `member.json`: whatever is needed
to read battles again exactly as in training, and the hash of every file that decides an answer. A judge folder holds
member folders and `judge.json`, which names them.
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

from modeling.data.battles import LABELS, TRAINED_ORIENTATIONS
from modeling.network.base import BaseFiles
from modeling.network.lora import write_adapter
from modeling.runtime.choices import READINGS
from modeling.runtime.files import hash_file, replace_folder, write_json

MEMBER_FILE, CANARIES_FILE, JUDGE_FILE = "member.json", "probes.json", "judge.json"
MEMBER_FORMAT, JUDGE_FORMAT = 2, 1
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MERGED_FILE = "config.json"  # of a member that merge_member wrote: it is its own base
# Written after training, or for people: a card, figures, and the base's name, which publishing changes.
UNHASHED = (MEMBER_FILE, "adapter_config.json", "evaluation.json", "README.md")


@dataclass(frozen=True)
class MemberFacts:
    """What `member.json` says: how this adapter was trained to read, and on which base.

    `files` is the SHA-256 of each file that decides an answer; `save_member` fills it in.
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
    """What `judge.json` says: its members' folders, the orders they read, and what makes their mean honest.

    `calibration` is `Calibration.to_dict()` and `members`, the fingerprint of each.
    """

    members: list[str]
    readings: str = "own"
    calibration: dict | None = None
    format: int = JUDGE_FORMAT


# --- saving -----------------------------------------------------------------------------------------------------------


def save_member(
    folder: Path,
    model: PeftModel,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    base: BaseFiles,
    facts: MemberFacts,
    probes: Mapping,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Writes a member folder: beside, then renamed, so that a member is complete or absent.

    Args:
        weights: What `collect_trained_weights` returned for the model.
        probes: What `record_canaries` returned for it, or `build_empty_canaries`, so that nothing is lost meanwhile.
        finish: Given the folder beside, adds what is for people: evaluation, figures and card.
    """
    with replace_folder(folder, MEMBER_FILE) as beside:
        base_name = base.repo or os.path.relpath(base.folder.resolve(), folder.resolve())
        write_adapter(beside, model, weights, base_name, base.revision)
        write_facts(beside, tokenizer, facts, probes)
        if finish:
            finish(beside)


def write_facts(folder: Path, tokenizer: PreTrainedTokenizerBase, facts: MemberFacts, probes: Mapping) -> None:
    """Writes tokenizer, probes and, last, the facts with the hashes of all that is there."""
    tokenizer.save_pretrained(folder)
    write_json(folder / CANARIES_FILE, probes)
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.name not in UNHASHED}
    write_json(folder / MEMBER_FILE, asdict(replace(facts, files=files)))


def write_judge(folder: Path, facts: JudgeFacts) -> None:
    """Writes judge.json, without what the judge does not have: beside, then renamed."""
    stored = {name: value for name, value in asdict(facts).items() if value is not None}
    write_json(beside := folder / f".{JUDGE_FILE}.new", stored)
    beside.rename(folder / JUDGE_FILE)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_member(folder: Path) -> MemberFacts:
    """The facts of a member folder, after checking that its files are those that were saved.

    Raises:
        ValueError: If a file is missing or changed, or the facts are not of this version.
    """
    for name in (MEMBER_FILE, CANARIES_FILE, *((MERGED_FILE,) if is_merged(folder) else ADAPTER_FILES)):
        if not (folder / name).is_file():
            raise ValueError(
                f"Judge {folder}: expected a member folder with {name}; found none. Give what train.py wrote."
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
    if facts.orientation not in TRAINED_ORIENTATIONS or facts.labels != list(LABELS):
        raise ValueError(
            f"Judge {folder}: expected an orientation of {', '.join(TRAINED_ORIENTATIONS)} and the labels "
            f"{', '.join(LABELS)}; found {facts.orientation!r} and {', '.join(facts.labels)}."
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
    """Names a member by the files that decide its answers."""
    return hashlib.sha256(json.dumps(facts.files, sort_keys=True).encode()).hexdigest()[:16]


def is_merged(folder: Path) -> bool:
    """Whether a member folder holds a whole model instead of an adapter."""
    return (folder / MERGED_FILE).is_file() and not (folder / ADAPTER_FILES[0]).is_file()


def read_json(path: Path, role: str) -> dict:
    """The object in a JSON file; a ValueError if there is something else."""
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
    """What judge.json says; None where a folder has none, because it is a member's."""
    if not (folder / JUDGE_FILE).is_file():
        return None
    values = read_json(folder / JUDGE_FILE, "Judge")
    members, readings, calibration = values.get("members"), values.get("readings", "own"), values.get("calibration")
    judge = JudgeFacts(members, readings, calibration, values.get("format"))
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
    """The folder where a judge's judge.json stands, or would stand, and its members' names.

    Args:
        names: A judge folder, or member folders that lie side by side.

    Raises:
        ValueError: If it is on the Hub, or the members lie apart or beside another judge's judge.json.
    """
    folders = [Path(os.path.abspath(name)) for name in names]
    if missing := [name for name, folder in zip(names, folders, strict=True) if not folder.is_dir()]:
        raise ValueError(f"--judge {missing[0]}: expected a folder here, to write into; found none. Download it first.")
    if len(folders) == 1 and (judge := read_judge(folders[0])):
        return folders[0], judge.members
    parents = {folder.parent for folder in folders}
    if len(parents) > 1 or len(set(folders)) < len(folders):
        raise ValueError(
            f"--judge {' '.join(names)}: expected members side by side, each once, because {JUDGE_FILE} stands in the "
            "folder around them; found others. Move them together."
        )
    (parent,), members = parents, [folder.name for folder in folders]
    judge = read_judge(parent)
    if judge and judge.members != members:
        raise ValueError(
            f"Judge {parent}: expected the members {', '.join(members)} in {JUDGE_FILE}; found "
            f"{', '.join(judge.members)}. Name that judge, or remove its {JUDGE_FILE}."
        )
    return parent, members
