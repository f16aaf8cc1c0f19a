"""Probes: eight packaged battles whose logits tell whether a model still answers as it did before it was quantised,
saved or moved. It must not know where models come from.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from modeling.battles import load_battles
from modeling.collation import BattleCollator
from modeling.encoding import BattleEncoder, build_encoding

PROBE_FILE = Path(__file__).resolve().parent / "data" / "demo_test.jsonl"
PROBE_LANGUAGES = ("Arabic", "Chinese", "English", "Greek", "Hindi", "Japanese", "Russian", "Thai")  # eight scripts
PROBE_TOKENS = 256  # of a battle, where no member says how long it reads: seconds, even on a CPU


def load_probe_battles() -> list[dict]:
    """Eight battles, the packaged held-out file's first in each of `PROBE_LANGUAGES`: always the same ones."""
    first: dict[str, dict] = {}
    for battle in load_battles(PROBE_FILE):
        first.setdefault(battle["language"], battle)
    return [first[language] for language in PROBE_LANGUAGES]


def build_probe_encoder(tokenizer: PreTrainedTokenizerBase) -> BattleEncoder:
    """How probes are read on a base, for which nothing has been said yet: the template, at most `PROBE_TOKENS`."""
    return BattleEncoder(tokenizer, build_encoding(tokenizer, PROBE_TOKENS, "balanced"))


@torch.inference_mode()
def compute_probe_logits(
    model: nn.Module, encoder: BattleEncoder, battles: Sequence[dict], orientation: str = "ab"
) -> Tensor:
    """Logits of battles read one by one, so that neither padding nor neighbours have a part in them.

    Args:
        model: A preference model; it is put into eval mode.
        encoder: The member's own, or `build_probe_encoder`'s for a base.
        battles: What `load_probe_battles` returned.
        orientation: The order in which they are read.

    Returns:
        Shape (battles, slots), float32, on the CPU; column 0 is the first slot's.

    Raises:
        ValueError: If a logit is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    collate = BattleCollator(encoder.encoding.pad_token_id)
    rows = []
    for battle in encoder.encode(encoder.clean_battles(battles), orientation):
        batch = {name: tensor.to(device) for name, tensor in collate([battle]).items()}
        rows.append(model(**batch).logits[0].float().cpu())
    logits = torch.stack(rows)
    # A comparison with NaN is false: a ruined model would pass any tolerance.
    if not torch.isfinite(logits).all():
        raise ValueError(
            f"Probe battles: expected finite logits; found {(~torch.isfinite(logits)).sum()} of {logits.numel()} that "
            "are not. The weights are damaged, or were quantised from damaged ones; start from the original base."
        )
    return logits


def measure_change(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Largest change of a logit, and of a probability, between two readings of shape (battles, slots)."""
    probabilities = after.softmax(dim=-1) - before.softmax(dim=-1)
    return (after - before).abs().max().item(), probabilities.abs().max().item()
