"""Members, from disk or Hub and back, and the judges they make up.

A member folder holds a LoRA adapter with its head, the tokenizer, and `member.json`: whatever is needed to read
battles again exactly as in training.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase

from modeling.adapters import attach_adapter, load_weights, write_adapter
from modeling.bases import BaseFiles, download_repository, find_base, fingerprint_base, load_base, load_tokenizer
from modeling.battles import LABELS, TRAINED_ORIENTATIONS
from modeling.encoding import BattleEncoder, Encoding
from modeling.files import replace_folder

MEMBER_FILE = "member.json"
MEMBER_FORMAT = 1


@dataclass(frozen=True)
class MemberFacts:
    """What `member.json` says: how this adapter was trained to read, and on which base."""

    orientation: str
    labels: list[str]
    dtype: str
    encoding: dict
    head: dict
    base_fingerprint: str
    training: dict
    format: int = MEMBER_FORMAT


@dataclass(frozen=True)
class Member:
    """A loaded member of a judge. Members of one base share its weights: `activate` before each use."""

    name: str
    adapter: str  # what peft calls it
    facts: MemberFacts
    model: PeftModel
    encoder: BattleEncoder
    fingerprint: str

    def activate(self) -> PeftModel:
        """The shared model with this member's adapter and head switched on."""
        self.model.set_adapter(self.adapter, inference_mode=True)
        return self.model.eval()


def save_member(
    folder: Path,
    model: PeftModel,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    base: BaseFiles,
    facts: MemberFacts,
) -> None:
    """Writes a member folder: beside, then renamed, so that a member is complete or absent.

    Args:
        weights: What `collect_trained_weights` returned for the model.
    """
    with replace_folder(folder, MEMBER_FILE) as beside:
        base_name = base.repo or os.path.relpath(base.folder.resolve(), folder.resolve())
        write_adapter(beside, model, weights, base_name, base.revision)
        tokenizer.save_pretrained(beside)
        (beside / MEMBER_FILE).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")


def read_member(folder: Path) -> MemberFacts:
    """The facts of a member folder.

    Raises:
        ValueError: If a file is missing or the facts are not of this version.
    """
    for name in (MEMBER_FILE, "adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"Judge {folder}: expected a member folder with {name}; found none. Give what train.py wrote."
            )
    try:
        values = json.loads((folder / MEMBER_FILE).read_text(encoding="utf-8"))
        if values["format"] != MEMBER_FORMAT:
            raise ValueError(
                f"Judge {folder}: expected format {MEMBER_FORMAT} in {MEMBER_FILE}; found {values['format']!r}."
            )
        facts = MemberFacts(**values)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"Judge {folder}: expected the facts of a member in {MEMBER_FILE}; found {error}.") from error
    if facts.orientation not in TRAINED_ORIENTATIONS or facts.labels != list(LABELS):
        raise ValueError(
            f"Judge {folder}: expected an orientation of {', '.join(TRAINED_ORIENTATIONS)} and the labels "
            f"{', '.join(LABELS)}; found {facts.orientation!r} and {', '.join(facts.labels)}."
        )
    return facts


def load_judge(names: Sequence[str], device: torch.device | None = None) -> list[Member]:
    """The members of a judge, from folders or the Hub. A base that several share is loaded once.

    Raises:
        FileNotFoundError: If a member or its base can be found nowhere.
        ValueError: If a member is incomplete, or its base is not the one it was trained on.
    """
    members: list[Member] = []
    models: dict[tuple, PeftModel] = {}
    for name in names:
        folder = (
            Path(name)
            if Path(name).is_dir()
            else download_repository(name, "Judge", ["*.json", "*.safetensors", "*.model", "*.jinja"])[0]
        )
        facts = read_member(folder)
        files = find_member_base(folder, facts)
        key = (files.folder, facts.dtype, *facts.head.values())
        # Not the folder's name: peft takes an adapter called "0" or "model" for a part of its parameters' names.
        slot = f"member{len(members)}"
        model = models.get(key) or load_base(files, dtype=facts.dtype, device=device, **facts.head)
        config = LoraConfig.from_pretrained(folder)
        config.base_model_name_or_path = None  # relative to the member, which peft would warn about
        models[key] = attach_adapter(model, slot, config, load_weights(folder), folder)
        encoding = Encoding.from_dict(facts.encoding)
        encoder = next((m.encoder for m in members if m.model is models[key] and m.encoder.encoding == encoding), None)
        encoder = encoder or BattleEncoder(load_tokenizer(folder), encoding)
        fingerprint = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
        display = name_member(name, [member.name for member in members])
        members.append(Member(display, slot, facts, models[key], encoder, fingerprint))
    return members


def find_member_base(folder: Path, facts: MemberFacts) -> BaseFiles:
    """The base that a member's adapter_config.json names, checked to be the one it was trained on."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    name, revision = config["base_model_name_or_path"], config.get("revision")
    local = Path(os.path.normpath(folder.resolve() / name))
    if not local.is_dir() and revision is None:
        raise FileNotFoundError(
            f"Judge {folder}: expected its base in {name}; found none. Bring the base along, or quantise it again."
        )
    files = find_base(str(local) if local.is_dir() else f"{name}@{revision}")
    if (found := fingerprint_base(files)) != facts.base_fingerprint:
        raise ValueError(
            f"Judge {folder}: expected the base it was trained on ({facts.base_fingerprint}); found another "
            f"in {name} ({found}). Train the adapter again on this base, or restore the old one."
        )
    return files


def name_member(name: str, taken: Sequence[str]) -> str:
    """The last part of a folder or Hub id, with a number behind it where an earlier member is called the same."""
    plain = Path(os.path.abspath(name.partition("@")[0])).name
    numbered = (plain if number == 1 else f"{plain}-{number}" for number in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)
