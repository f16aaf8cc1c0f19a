"""Adapters and members, from disk or Hub and back: the only module that knows PEFT.

A member folder holds a LoRA adapter with its head, the tokenizer, and `member.json`: whatever is needed to read
battles again exactly as in training.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from modeling.bases import (
    HEAD,
    BaseFiles,
    build_empty_base,
    download_repository,
    find_base,
    fingerprint_base,
    load_base,
    load_tokenizer,
)
from modeling.battles import LABELS, ORIENTATIONS
from modeling.classifier import PreferenceMixin
from modeling.encoding import BattleEncoder, Encoding
from modeling.files import replace_folder

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MEMBER_FILE = "member.json"
MEMBER_FORMAT = 1
OLD_HEAD = re.compile(r"\.(score|classifier)\.")


# --- adapters ---------------------------------------------------------------------------------------------------------


def add_adapters(model: PreferenceMixin, *, r: int, alpha: float, dropout: float, freeze_layers: int = 0) -> PeftModel:
    """The base, frozen, with a LoRA adapter on all seven projections of each layer and a trainable head.

    Adapters and head are float32 whatever the base is: they are what the optimizer updates.

    Args:
        freeze_layers: Number of lower layers left without an adapter.

    Raises:
        ValueError: If no layer would be left to adapt.
    """
    layers = model.config.num_hidden_layers
    if not 0 <= freeze_layers < layers:
        raise ValueError(
            f"--freeze_layers {freeze_layers}: expected 0 to {layers - 1}, as the base has {layers} layers."
        )
    # Not peft's prepare_model_for_kbit_training: it casts the 256,000 embeddings of a Gemma to float32 (+1.8 GB).
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=list(LORA_MODULES),
        modules_to_save=[HEAD],
        layers_to_transform=list(range(freeze_layers, layers)),
    )
    return get_peft_model(model, config)


def collect_trained_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """Adapter and head by their names in the model, whole, on the CPU.

    Under ZeRO-3 they are shared out over the processes, so every process has to call this.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if is_deepspeed_zero3_enabled():
        import deepspeed  # an extra: not installed for those who do without

        with deepspeed.zero.GatheredParameters(list(trained.values())):
            return {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}
    return {name: parameter.detach().cpu() for name, parameter in trained.items()}


def write_adapter(
    folder: Path, model: PeftModel, weights: dict[str, torch.Tensor], base: str = "", revision: str | None = None
) -> None:
    """Writes adapter_model.safetensors, head included, and adapter_config.json.

    Args:
        base: Hub id, or path relative to the folder; checkpoints, which never travel, name none.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base, revision
    model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft's own card names folders of this machine


def merge_adapter(model: PreferenceMixin, adapter: str) -> PreferenceMixin:
    """The model with a LoRA adapter merged into its weights; a head that the adapter brings is left out.

    The adapter may have been trained with another number of labels. Merge in float32: in bf16 or 8 bit the answers
    would move by far more than the adapter's own precision.

    Raises:
        ValueError: If the adapter's matrices are not those of this model's layers.
    """
    if hasattr(model.config, "quantization_config"):
        raise ValueError(
            "--merge_adapter: expected an unquantised base; found a quantised one. Start from the original."
        )
    folder, config, weights = _read_lora(adapter)
    return _attach(model, "default", config, weights, folder).merge_and_unload()


def check_adapter(adapter: str, base: BaseFiles) -> None:
    """Raises a ValueError if `merge_adapter` could not merge the adapter into this base, before it is loaded."""
    folder, config, weights = _read_lora(adapter)
    try:
        empty = get_peft_model(build_empty_base(base), config)
    except ValueError as error:  # peft, where no module has any of the names in the adapter's config
        raise ValueError(
            f"Adapter {adapter}: expected LoRA on layers of {base.folder.name}; found other module names ({error}). "
            "Use it with the base it was trained on."
        ) from error
    _compare_tensors(folder, get_peft_model_state_dict(empty, save_embedding_layers=False), weights)


def _read_lora(adapter: str) -> tuple[Path, LoraConfig, dict[str, torch.Tensor]]:
    """Folder, config and tensors of a LoRA adapter from disk or Hub, without the head it may bring."""
    folder = Path(adapter) if Path(adapter).is_dir() else download_repository(adapter, "Adapter", ["adapter_*"])[0]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"Adapter {adapter}: expected {name}; found none. Save it with PEFT, as safetensors.")
    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"Adapter {adapter}: expected LoRA; found {config.peft_type.value}, which is not merged here.")
    # As a SEQ_CLS adapter peft would insist on loading the old head, whatever its number of labels.
    config.task_type, config.modules_to_save = None, None
    weights = {name: value for name, value in load_weights(folder).items() if not OLD_HEAD.search(name)}
    return folder, config, weights


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter folder."""
    try:
        return load_file(folder / "adapter_model.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"Adapter {folder}: expected whole safetensors; found {error}. Download or save it again."
        ) from error


def _attach(
    model: PreferenceMixin | PeftModel, name: str, config: LoraConfig, weights: dict, folder: Path
) -> PeftModel:
    """The model with one more adapter, after checking that the adapter brings exactly the tensors it should."""
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = get_peft_model(model, config, adapter_name=name)
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    _compare_tensors(folder, expected, weights)
    set_peft_model_state_dict(model, weights, adapter_name=name)
    return model


def _compare_tensors(folder: Path, expected: dict, found: dict) -> None:
    """Raises where an adapter's tensors are not the model's: peft leaves missing ones at their random values."""
    problems = [
        f"{len(names)} {what} (such as {min(names)})"
        for what, names in (
            ("are missing", expected.keys() - found.keys()),
            ("belong to no layer", found.keys() - expected.keys()),
            ("have another shape", {n for n in expected.keys() & found.keys() if expected[n].shape != found[n].shape}),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"Adapter {folder}: expected the {len(expected)} tensors of its base's layers and head; of these "
            f"{', '.join(problems)}. Save the adapter again, or use it with the base it was trained on."
        )


# --- members ----------------------------------------------------------------------------------------------------------


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
    if facts.orientation not in ORIENTATIONS or facts.labels != list(LABELS):
        raise ValueError(
            f"Judge {folder}: expected an orientation of {', '.join(ORIENTATIONS)} and the labels {', '.join(LABELS)}; "
            f"found {facts.orientation!r} and {', '.join(facts.labels)}."
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
        models[key] = _attach(model, slot, config, load_weights(folder), folder)
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
