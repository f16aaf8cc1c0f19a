"""Loads members and judges from folders or the Hub, and merges adapters into their base.

Members on the same base share its weights, and each replays its canary battles. Which battles they read is not known
here.
"""

import gc
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, PreTrainedTokenizerBase

from modeling.encoding.encoder import BattleEncoder, Encoding, build_encoding
from modeling.judging.canaries import CanaryMismatch, replay_canaries
from modeling.judging.expansion import ExpansionMismatch, prepare_reading
from modeling.judging.loaded import Member
from modeling.judging.member import (
    ADAPTER_FILES,
    CANARIES_FILE,
    MEMBER_FILE,
    TOKENIZER_FILE,
    JudgeFacts,
    MemberFacts,
    fingerprint_member,
    is_merged,
    read_json,
    read_judge,
    read_member,
    write_facts,
)
from modeling.network.base import BaseFiles, copy_notices, find_base, fingerprint_base, load_base, load_tokenizer
from modeling.network.classifier import HEAD_DEFAULTS, PreferenceMixin
from modeling.network.expansion import build_merged
from modeling.network.lora import attach_adapter, load_weights
from modeling.network.precision import DTYPES, choose_dtype, set_dtype
from modeling.runtime.choices import MERGES
from modeling.runtime.distributed import share_failure
from modeling.runtime.files import check_replaceable, replace_folder
from modeling.runtime.hub import download_repository
from modeling.runtime.logs import build_logger
from modeling.runtime.packages import NOTICES, WEIGHTS
from modeling.runtime.paths import find_judge_folder
from modeling.runtime.progress import describe_step, show_progress

logger = build_logger(__name__)

MEMBER_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.md", "*.png", *NOTICES)


def find_judge(names: Sequence[str]) -> tuple[list[tuple[str, Path]], JudgeFacts | None]:
    """The members that folders or Hub ids refer to, downloaded if needed.

    Args:
        names: Members or whole judges; a judge is replaced by all of its members. "default" is the judge that comes
            with this package.

    Returns:
        Name and folder of each member; and the facts in judge.json if one judge is named alone, else None.

    Raises:
        FileNotFoundError: If there is no such folder or repository.
        ValueError: If a judge.json is malformed.
    """
    # Each name is resolved once: a Hub id may point to another commit the next time.
    found: list[tuple[str, Path]] = []
    facts = None
    for name in names:
        folder = find_judge_folder(name) or download_repository(name, "Judge", MEMBER_PATTERNS)[0]
        judge = read_judge(folder)
        found += [(member, folder / member) for member in judge.members] if judge else [(name, folder)]
        if len(names) == 1:
            facts = judge
        elif judge and judge.calibration:
            PartialState()  # accelerate's logger raises an error without it
            logger.warning(f"{name}: its calibration is ignored, because it was not fitted on all members named here")
    return found, facts


def find_adapter_member(name: str, where: str) -> Path:
    """The folder of one member with an adapter; a ValueError that begins with `where` if the name is of another."""
    folders = [folder for _, folder in find_judge([name])[0]]
    if len(folders) > 1 or is_merged(folders[0]):
        found = f"{len(folders)} members" if len(folders) > 1 else "a merged one"
        raise ValueError(f"{where}: expected a member with an adapter; found {found}. Name one adapter folder.")
    return folders[0]


def load_judge(names: Sequence[str], device: torch.device | None = None, **options) -> list[Member]:
    """The members of a judge. See `find_judge` and `load_members` for arguments and errors."""
    return load_members(find_judge(names)[0], device, **options)


def load_members(
    found: Sequence[tuple[str, Path]],
    device: torch.device | None = None,
    *,
    skip_probes: bool = False,
    dtype: str | None = None,
    merge: str = "never",
) -> list[Member]:
    """Loaded members, checked. A base shared by several members is loaded once.

    Args:
        found: Name and folder of each member.
        device: Where to load them; this process's device if None.
        skip_probes: Do not replay the canary battles.
        dtype: The precision to read in. "auto": the one that the device computes natively and fastest, or float32 if
            the canary battles fail in that. None: the one that each member was trained in.
        merge: "always": expand quantised weights once and merge each adapter into its own copy, which is faster and
            takes more memory. "auto": that if the memory is free; else, on a GPU, expand the weights of the shared base
            and leave the adapters beside them, if that fits; and neither if canary battles fail. "never": as stored.

    Raises:
        FileNotFoundError: If a member's base is missing.
        ValueError: If a member is incomplete or changed, if its base is not the one it was trained on, or if its
            canary battles changed by more than the tolerance.
    """
    if merge not in MERGES:
        raise ValueError(f"--merge: expected one of {', '.join(MERGES)}; found {merge!r}.")
    device = device or PartialState().device
    checked = [(name, folder, read_member(folder)) for name, folder in found]  # once: this hashes all weights
    return _load_until_canaries_pass(checked, device, dtype, skip_probes, merge)


def _load_until_canaries_pass(
    checked: Sequence[tuple[str, Path, MemberFacts]],
    device: torch.device,
    dtype: str | None,
    skip_probes: bool,
    merge: str,
) -> list[Member]:
    """The members as "auto" first chooses to load them, or, as long as canary battles fail, in a safer way.

    See `load_members` for the arguments.
    """
    chosen, way = dtype and choose_judge_dtype(checked, dtype, device), merge
    shared = "auto" in (dtype, merge)  # then every process has to load, because the main one decides
    while True:
        members, failure = None, None
        try:
            members = _load_members(checked, device, chosen, skip_probes=skip_probes, merge=way)
        except CanaryMismatch as error:
            failure = type(error)(str(error))  # the error itself has a traceback, which keeps the models in memory
        failure = share_failure(failure) if shared else failure
        if failure is None:
            if way != "never":
                gc.collect()  # 8-bit layers refer to themselves, so those that were merged are not freed without it
            return members
        if isinstance(failure, ExpansionMismatch):
            logger.warning(f"Weights stay as stored: on an expanded base the answers change. {failure}")
            way = "never"
        elif dtype == "auto" and chosen != "float32":
            logger.warning(f"Precision: float32 instead of {chosen}, in which the canary battles fail. {failure}")
            chosen, way = "float32", merge
        else:
            raise failure
        del members
        gc.collect()


def choose_judge_dtype(found: Sequence[tuple[str, Path, MemberFacts]], asked: str, device: torch.device) -> str:
    """The precision for a judge, measured on matrix products of its first member's shape."""
    if not found:
        return "float32"
    _, folder, facts = found[0]
    files = find_member_files(folder, facts)
    return choose_dtype(asked, device, AutoConfig.from_pretrained(files.folder), training=False)


def _load_members(
    found: Sequence[tuple[str, Path, MemberFacts]],
    device: torch.device,
    dtype: str | None,
    *,
    skip_probes: bool,
    merge: str,
) -> list[Member]:
    """The members in one precision, or each in its own if `dtype` is None, with their canary battles replayed."""
    members: list[Member] = []
    models: dict[tuple, PeftModel] = {}
    with show_progress(total=2 * len(found), leave=False, disable=not PartialState().is_main_process) as bar:
        for name, folder, facts in found:
            describe_step(bar, f"Loading {name}")
            members.append(_load_member(name, folder, facts, dtype or facts.dtype, device, members, models))
            bar.update()
        return prepare_reading(members, merge, skip_probes, bar) if members else []


def _load_member(
    name: str,
    folder: Path,
    facts: MemberFacts,
    reads_in: str,
    device: torch.device,
    others: list[Member],
    models: dict,
) -> Member:
    """One more member. Takes its base from `models`, or loads it and adds it there."""
    logger.info(f"Loading {name}")
    # Not the folder's name: PEFT mistakes an adapter called "0" or "model" for a part of its parameters' names.
    slot = None if is_merged(folder) else f"member{len(others)}"
    files = find_member_files(folder, facts)
    if slot is None:
        model = load_base(files, dtype=reads_in, device=device, num_labels=len(facts.labels))
    else:
        key = (*identify_base(files, facts), reads_in)
        head = {"num_labels": len(facts.labels), **facts.head}
        model = models.get(key) or load_base(files, dtype=reads_in, device=device, **head)
        model = models[key] = attach_member(model, slot, folder)
    encoding = Encoding.from_dict(facts.encoding)
    # Members with the same encoding share the encoder, and with it the encoded battles (see schedule.py).
    encoder = next((m.encoder for m in others if m.model is model and m.encoder.encoding == encoding), None)
    encoder = encoder or BattleEncoder(load_member_tokenizer(folder, files), encoding)
    display = name_member(name, [member.name for member in others])
    return Member(display, slot, facts, model, encoder, fingerprint_member(facts), folder, reads_in)


def attach_member(model: PreferenceMixin | PeftModel, slot: str, folder: Path) -> PeftModel:
    """The model with one more adapter, from a member folder."""
    config = LoraConfig.from_pretrained(folder)
    config.base_model_name_or_path = None  # relative to the member folder, which PEFT would warn about
    return attach_adapter(model, slot, config, load_weights(folder), folder)


def load_member_tokenizer(folder: Path, base: BaseFiles) -> PreTrainedTokenizerBase:
    """The tokenizer in a member folder, or its base's if the folder has none."""
    own = (folder / TOKENIZER_FILE).is_file()
    return load_tokenizer(folder) if own else load_tokenizer(base.folder, **base.source)


def load_encoder(base: BaseFiles, max_length: int, truncation: str) -> BattleEncoder:
    """The encoder for a member that will be trained on a base."""
    tokenizer = load_tokenizer(base.folder, **base.source)
    return BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, truncation))


def identify_base(files: BaseFiles, facts: MemberFacts) -> tuple:
    """What members have in common that share a loaded base: its folder and the shape of their heads."""
    # A member may have been written before a field of the head existed.
    return (files.folder, *(facts.head.get(name, HEAD_DEFAULTS[name]) for name in HEAD_DEFAULTS))


def find_member_files(folder: Path, facts: MemberFacts) -> BaseFiles:
    """The model that a member's adapter is loaded onto, or that the member itself is if it is merged."""
    return BaseFiles(folder) if is_merged(folder) else find_member_base(folder, facts)


def find_member_base(folder: Path, facts: MemberFacts) -> BaseFiles:
    """The base that a member's adapter_config.json names, after checking that the member was trained on it."""
    config = read_json(folder / ADAPTER_FILES[0], "Judge")
    name, revision = config["base_model_name_or_path"], config.get("revision")
    # The name is a path relative to the member folder, a Hub id, which has a revision, or a package of weights.
    local = Path(os.path.normpath(folder.resolve() / name))
    if not local.is_dir() and revision is None and name not in WEIGHTS:
        raise FileNotFoundError(
            f"Judge {folder}: expected its base in {name}; found none. Copy the base there, or quantise it again."
        )
    files = find_base(name if name in WEIGHTS else str(local) if local.is_dir() else f"{name}@{revision}")
    if (found := fingerprint_base(files)) != facts.base_fingerprint:
        raise ValueError(
            f"Judge {folder}: expected the base it was trained on ({facts.base_fingerprint}); found another "
            f"in {name} ({found}). Train the adapter again on this base, or restore the old one."
        )
    return files


def name_member(name: str, taken: Sequence[str]) -> str:
    """The last part of a folder or Hub id, with a number appended if the name is taken."""
    plain = Path(os.path.abspath(name.partition("@")[0])).name
    numbered = (plain if number == 1 else f"{plain}-{number}" for number in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)


# --- merging an adapter into its base ---------------------------------------------------------------------------------


def merge_member(name: str, output_dir: Path, dtype: str = "bfloat16") -> None:
    """Writes a member folder that holds a whole model, after replaying its canary battles.

    A quantised base is expanded and merged layer by layer in float32, in main memory.

    Args:
        name: Folder or Hub id of a member.
        output_dir: A new or empty folder, or one that an earlier call wrote.
        dtype: Precision of the weights, except for the float32 head, and the precision the member will read in.

    Raises:
        ValueError: If `name` is a judge of several members, the member is merged already, or its canary battles
            changed too much. Nothing is written then.
    """
    check_replaceable(output_dir, MEMBER_FILE)
    folder = find_adapter_member(name, f"Judge {name}")
    facts = read_member(folder)
    files = find_member_base(folder, facts)
    tokenizer = load_member_tokenizer(folder, files)
    model = load_merged(files, folder, facts, dtype)
    canaries = read_json(folder / CANARIES_FILE, "Judge")
    encoder = BattleEncoder(tokenizer, Encoding.from_dict(facts.encoding))
    with replace_folder(output_dir, MEMBER_FILE) as beside:
        # The names are the original ones already, and transformers fails to revert the conversion of 8-bit weights.
        model.save_pretrained(beside, save_original_format=False)
        copy_notices(folder, beside)
        write_facts(beside, tokenizer, replace(facts, dtype=dtype), canaries)
        # After saving, because set_dtype changes the model: the canaries are read in a precision native to this device.
        asked = "float32" if dtype == "float32" else "auto"
        read_in = choose_dtype(asked, model.device, model.config, training=False)
        set_dtype(model, read_in)
        change = replay_canaries(f"Judge {name}, merged", model, encoder, canaries, read_in, dtype)
    logger.info(f"Merged {name}: canary probabilities changed by at most {change:.2g}. Written: {output_dir}")


def load_merged(
    files: BaseFiles, folder: Path, facts: MemberFacts, dtype: str, *, with_lora: bool = True
) -> PreferenceMixin:
    """A member's base, dequantised, with the adapter merged into its weights, and the trained head.

    Args:
        files: From `find_member_base`.
        folder: The member's.
        facts: The member's.
        dtype: Key of `DTYPES`: precision of the weights, except for the float32 head.
        with_lora: False leaves the base's weights as they are.
    """
    model = load_base(files, dtype=facts.dtype, device=torch.device("cpu"), num_labels=len(facts.labels), **facts.head)
    merged = build_merged(attach_member(model, "merged", folder), "merged", DTYPES[dtype], with_lora=with_lora)
    merged.compute_dtype = DTYPES[dtype]
    return merged
