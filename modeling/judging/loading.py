"""Members from disk or Hub as models that read, and the judges they make up: bases shared, probes replayed."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from peft import LoraConfig, PeftModel
from tqdm.auto import tqdm
from transformers import AutoConfig

from modeling.encoding.encoder import BattleEncoder, Encoding, build_encoding
from modeling.judging.canaries import CanariesMoved, replay_canaries
from modeling.judging.member import (
    ADAPTER_FILES,
    CANARIES_FILE,
    MEMBER_FILE,
    JudgeFacts,
    MemberFacts,
    fingerprint_member,
    is_merged,
    read_json,
    read_judge,
    read_member,
    write_facts,
)
from modeling.network.base import BaseFiles, find_base, fingerprint_base, load_base, load_tokenizer
from modeling.network.classifier import PreferenceMixin
from modeling.network.lora import attach_adapter, build_merged, load_weights, measure_merged
from modeling.network.precision import DTYPES, choose_dtype, set_dtype
from modeling.runtime.choices import MERGES
from modeling.runtime.devices import measure_free_memory
from modeling.runtime.distributed import call_on_main
from modeling.runtime.files import check_replaceable, replace_folder
from modeling.runtime.hub import download_repository

logger = get_logger(__name__)

MERGED_SHARE = 0.6  # of the free memory; what is read needs some too
MEMBER_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.md", "*.png")


@dataclass(frozen=True)
class Member:
    """A loaded member of a judge. Members of one base share its weights: `activate` before each use."""

    name: str
    adapter: str | None  # what peft calls it; None where it is merged into the weights
    facts: MemberFacts
    model: PeftModel | PreferenceMixin
    encoder: BattleEncoder
    fingerprint: str
    folder: Path
    dtype: str  # in which it reads, its own unless another was asked for

    def activate(self) -> PeftModel | PreferenceMixin:
        """The shared model with this member's adapter and head switched on."""
        if self.adapter is not None:
            self.model.set_adapter(self.adapter, inference_mode=True)
        return self.model.eval()


def find_judge(names: Sequence[str]) -> tuple[list[tuple[str, Path]], JudgeFacts | None]:
    """What folders or Hub ids stand for, each looked up once: a Hub id may be of another commit the next time.

    Args:
        names: Members or whole judges; a judge stands for all of its members.

    Returns:
        Name and folder of each member, and what a judge says of itself; None unless it is named alone.

    Raises:
        FileNotFoundError: If there is no such folder or repository.
        ValueError: If a judge.json names something else than folders beside it.
    """
    found: list[tuple[str, Path]] = []
    facts = None
    for name in names:
        folder = Path(name) if Path(name).is_dir() else download_repository(name, "Judge", MEMBER_PATTERNS)[0]
        judge = read_judge(folder)
        found += [(member, folder / member) for member in judge.members] if judge else [(name, folder)]
        if len(names) == 1:
            facts = judge
        elif judge and judge.calibration:
            PartialState()  # accelerate's logger needs it
            logger.warning(f"{name}: its calibration is left aside, as it is not about all members that are named")
    return found, facts


def load_judge(names: Sequence[str], device: torch.device | None = None, **options) -> list[Member]:
    """The members of a judge, from folders or the Hub. Args and errors as for `find_judge` and `load_members`."""
    return load_members(find_judge(names)[0], device, **options)


def load_members(
    found: Sequence[tuple[str, Path]],
    device: torch.device | None = None,
    *,
    skip_probes: bool = False,
    dtype: str | None = None,
    merge: str = "never",
) -> list[Member]:
    """The members of a judge, from their folders. A base that several share is loaded once.

    Args:
        found: Name and folder of each.
        device: Where to; the process's own if None.
        skip_probes: Do not check that each member still answers its probe battles as when it was saved.
        dtype: The precision to read in; "auto" for what the device computes in natively and fastest, and float32 where
            the probes do not hold in that; None for the one that each member was trained in.
        merge: "always" expands quantised weights once and merges each adapter into a copy of its own, which reads
            faster and takes more memory; "auto" where that memory is free and the probes agree; "never".

    Raises:
        FileNotFoundError: If the base of a member can be found nowhere.
        ValueError: If a member is incomplete or changed, its base is not the one it was trained on, or its probes
            moved more than their tolerance.
    """
    if merge not in MERGES:
        raise ValueError(f"--merge: expected one of {', '.join(MERGES)}; found {merge!r}.")
    device = device or PartialState().device
    options = {"skip_probes": skip_probes, "merge": merge}
    checked = [(name, folder, read_member(folder)) for name, folder in found]  # once: it hashes all weights
    chosen = dtype and _choose_dtype(checked, dtype, device)
    try:
        return _load_members(checked, device, chosen, **options)
    except CanariesMoved as error:
        if dtype != "auto" or chosen == "float32":
            raise
        logger.warning(f"Precision: float32 in place of {chosen}, in which the probe battles do not hold. {error}")
    # Not inside the handler, whose traceback would keep the first models in memory.
    return _load_members(checked, device, "float32", **options)


def _choose_dtype(found: Sequence[tuple[str, Path, MemberFacts]], asked: str, device: torch.device) -> str:
    """The precision for a judge: of the device, by products of its first member's shape."""
    if not found:
        return "float32"
    _, folder, facts = found[0]
    files = BaseFiles(folder) if is_merged(folder) else find_member_base(folder, facts)
    return choose_dtype(asked, device, AutoConfig.from_pretrained(files.folder), training=False)


def _load_members(
    found: Sequence[tuple[str, Path, MemberFacts]],
    device: torch.device,
    dtype: str | None,
    *,
    skip_probes: bool,
    merge: str,
) -> list[Member]:
    """The members in one precision, or each in its own, checked as they will read."""
    members: list[Member] = []
    models: dict[tuple, PeftModel] = {}
    with tqdm(total=2 * len(found), leave=False, disable=not PartialState().is_main_process) as bar:
        for name, folder, facts in found:
            bar.set_description(f"Loading {name}", refresh=True)
            members.append(_load_member(name, folder, facts, dtype or facts.dtype, device, members, models))
            bar.update()
        if members and merge != "never" and (merged := merge_members(members, merge, skip_probes, bar)):
            return merged
        for member in members:
            check_canaries(member, skip_probes, bar)
    return members


def _load_member(
    name: str,
    folder: Path,
    facts: MemberFacts,
    reads_in: str,
    device: torch.device,
    others: list[Member],
    models: dict,
) -> Member:
    """One more member beside others, on the model of its base if that is among `models`, where it is put otherwise."""
    logger.info(f"Loading {name}")
    # Not the folder's name: peft takes an adapter called "0" or "model" for a part of its parameters' names.
    slot = None if is_merged(folder) else f"member{len(others)}"
    if slot is None:
        model = load_base(BaseFiles(folder), dtype=reads_in, device=device)
    else:
        files = find_member_base(folder, facts)
        key = (files.folder, reads_in, *facts.head.values())
        model = models.get(key) or load_base(files, dtype=reads_in, device=device, **facts.head)
        model = models[key] = attach_member(model, slot, folder)
    encoding = Encoding.from_dict(facts.encoding)
    encoder = next((m.encoder for m in others if m.model is model and m.encoder.encoding == encoding), None)
    encoder = encoder or BattleEncoder(load_tokenizer(folder), encoding)
    display = name_member(name, [member.name for member in others])
    return Member(display, slot, facts, model, encoder, fingerprint_member(facts), folder, reads_in)


def merge_members(members: Sequence[Member], merge: str, skip_probes: bool, bar: tqdm) -> list[Member] | None:
    """The members as plain models that read faster, their probes replayed; None where they had better stay as they are.

    Their base is then held by none of them, so that its memory is free again.
    """
    adapters = [member for member in members if member.adapter is not None]
    needed = sum(measure_merged(member.model, DTYPES[member.dtype]) for member in adapters)
    # One process decides for all, so that none reads otherwise than the others.
    free = call_on_main(measure_free_memory, next(members[0].model.parameters()).device)
    if merge == "auto" and needed > MERGED_SHARE * free:
        logger.info(f"Adapters stay unmerged: merged they would take {needed / 1e9:.1f} of {free / 1e9:.1f} GB free")
        return None
    merged = []
    for member in members:
        if member.adapter is not None:
            bar.set_description(f"Merging {member.name}", refresh=True)
            model = build_merged(member.model, member.adapter, DTYPES[member.dtype])
            member = replace(member, model=model, adapter=None)
        merged.append(member)
    try:
        for member in merged:
            check_canaries(member, skip_probes, bar)
    except CanariesMoved as error:
        if merge == "always":
            raise
        logger.warning(f"Adapters stay unmerged: merged into {members[0].dtype} they answer otherwise. {error}")
        return None
    logger.info(f"Adapters merged into expanded weights, {needed / 1e9:.1f} GB: --merge never reads them as stored")
    return merged


def attach_member(model: PreferenceMixin | PeftModel, slot: str, folder: Path) -> PeftModel:
    """The model with the adapter of a member folder as one more."""
    config = LoraConfig.from_pretrained(folder)
    config.base_model_name_or_path = None  # relative to the member, which peft would warn about
    return attach_adapter(model, slot, config, load_weights(folder), folder)


def check_canaries(member: Member, skip: bool, bar: tqdm) -> None:
    """Replays a member's probes and says how far they moved; an error beyond the tolerance (law 11)."""
    bar.set_description(f"Checking {member.name}", refresh=True)
    probes = read_json(member.folder / CANARIES_FILE, "Judge")
    if skip or not probes.get("battles", True):
        reason = "--skip_probes" if skip else "its training ended before it had any"
        logger.warning(f"{member.name}: no probe battles are read ({reason}): nothing says if it has changed")
        return
    where, precisions = f"Judge {member.folder}", (member.dtype, member.facts.dtype)
    change = replay_canaries(where, member.activate(), member.encoder, probes, *precisions)
    logger.info(f"{member.name}: probabilities of its probe battles moved by at most {change:.2g} since it was saved")
    bar.update()


def load_encoder(base: BaseFiles, max_length: int, truncation: str) -> BattleEncoder:
    """What will encode battles for a member that is to be trained on a base."""
    tokenizer = load_tokenizer(base.folder, **base.source)
    return BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, truncation))


def find_member_base(folder: Path, facts: MemberFacts) -> BaseFiles:
    """The base that a member's adapter_config.json names, checked to be the one it was trained on."""
    config = read_json(folder / ADAPTER_FILES[0], "Judge")
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


# --- merging an adapter into its base ---------------------------------------------------------------------------------

logger = get_logger(__name__)


def merge_member(name: str, output_dir: Path, dtype: str = "bfloat16") -> None:
    """Writes a member folder whose weights are a whole model, after checking that its probes still hold.

    A quantised base is expanded, and layer by layer merged in float32, in main memory.

    Args:
        name: Folder or Hub id of a member.
        output_dir: A new or empty folder, or one that an earlier call wrote.
        dtype: Of all weights but the head's, which are float32, and in which it will read.

    Raises:
        ValueError: If the name is a whole judge's, the member is merged already, or its probes moved too far: nothing
            is written then.
    """
    check_replaceable(output_dir, MEMBER_FILE)
    folders = [folder for _, folder in find_judge([name])[0]]
    if len(folders) > 1 or is_merged(folders[0]):
        found = f"{len(folders)} members" if len(folders) > 1 else "a merged one"
        raise ValueError(f"Judge {name}: expected a member with an adapter; found {found}. Name one adapter folder.")
    folder = folders[0]
    facts, tokenizer = read_member(folder), load_tokenizer(folder)
    model = _merge(folder, facts, dtype)
    probes = read_json(folder / CANARIES_FILE, "Judge")
    encoder = BattleEncoder(tokenizer, Encoding.from_dict(facts.encoding))
    with replace_folder(output_dir, MEMBER_FILE) as beside:
        # The names are the original ones already; transformers fails when it turns back how 8 bit was loaded.
        model.save_pretrained(beside, save_original_format=False)
        write_facts(beside, tokenizer, replace(facts, dtype=dtype), probes)
        # Only now, as it changes the model: the weights as saved, in a precision that this device need not imitate.
        asked = "float32" if dtype == "float32" else "auto"
        read_in = choose_dtype(asked, model.device, model.config, training=False)
        set_dtype(model, read_in)
        change = replay_canaries(f"Judge {name}, merged", model, encoder, probes, read_in, dtype)
    logger.info(f"Merged {name}: probabilities of its probe battles moved by at most {change:.2g}: {output_dir}")


def _merge(folder: Path, facts: MemberFacts, dtype: str) -> PreferenceMixin:
    """The base of a member folder with the adapter in its weights and the trained head."""
    model = load_base(find_member_base(folder, facts), dtype=facts.dtype, device=torch.device("cpu"), **facts.head)
    merged = build_merged(attach_member(model, "merged", folder), "merged", DTYPES[dtype])
    merged.compute_dtype = DTYPES[dtype]
    return merged
