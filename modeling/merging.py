"""A member as one plain checkpoint: its adapter merged into the weights of its base, for whoever serves it elsewhere.

transformers loads the folder with `AutoModelForSequenceClassification` once `modeling.classifier` is imported; a judge
takes it as a member.
"""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate.logging import get_logger

from modeling.adapters import build_merged
from modeling.bases import load_base, load_tokenizer
from modeling.classifier import PreferenceMixin
from modeling.encoding import BattleEncoder, Encoding
from modeling.files import check_replaceable, replace_folder
from modeling.loading import attach_member, find_judge, find_member_base
from modeling.members import MEMBER_FILE, PROBES_FILE, MemberFacts, is_merged, read_json, read_member, write_facts
from modeling.precision import DTYPES, choose_dtype, set_dtype
from modeling.probes import replay_probes

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
    probes = read_json(folder / PROBES_FILE, "Judge")
    encoder = BattleEncoder(tokenizer, Encoding.from_dict(facts.encoding))
    with replace_folder(output_dir, MEMBER_FILE) as beside:
        # The names are the original ones already; transformers fails when it turns back how 8 bit was loaded.
        model.save_pretrained(beside, save_original_format=False)
        write_facts(beside, tokenizer, replace(facts, dtype=dtype), probes)
        # Only now, as it changes the model: the weights as saved, in a precision that this device need not imitate.
        asked = "float32" if dtype == "float32" else "auto"
        read_in = choose_dtype(asked, model.device, model.config, training=False)
        set_dtype(model, read_in)
        change = replay_probes(f"Judge {name}, merged", model, encoder, probes, read_in, dtype)
    logger.info(f"Merged {name}: probabilities of its probe battles moved by at most {change:.2g}: {output_dir}")


def _merge(folder: Path, facts: MemberFacts, dtype: str) -> PreferenceMixin:
    """The base of a member folder with the adapter in its weights and the trained head."""
    model = load_base(find_member_base(folder, facts), dtype=facts.dtype, device=torch.device("cpu"), **facts.head)
    merged = build_merged(attach_member(model, "merged", folder), "merged", DTYPES[dtype])
    merged.compute_dtype = DTYPES[dtype]
    return merged
