"""Probes: eight packaged battles whose logits tell whether a model still answers as it did before it was quantised,
saved or moved. A member carries them with the probabilities that it gave. It must not know where models come from.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from modeling.battles import TEXTS, load_battles, orient_label
from modeling.encoding import BattleEncoder, build_encoding

PROBE_FILE = Path(__file__).resolve().parent / "data" / "demo_test.jsonl"
PROBE_LANGUAGES = ("Arabic", "Chinese", "English", "Greek", "Hindi", "Japanese", "Russian", "Thai")  # eight scripts
PROBE_TOKENS = 128  # of a battle, even where a member reads longer ones: a second on a CPU, and something is cut
PROBES_FORMAT = 1
# Most that a probability may move between machines, versions and kernels. bf16 holds on 8-bit and 4-bit bases too; as
# in modeling/inference.py, but float32 has room for a GPU's other order of summing.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.02}
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "ftfy")


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
    rows = []
    for battle in encoder.encode(encoder.clean_battles(battles), orientation):
        ids = torch.tensor([battle["input_ids"]], device=device)
        rows.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().cpu())
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


def record_probes(model: nn.Module, encoder: BattleEncoder, orders: Sequence[str], dtype: str) -> dict:
    """What a member's probes.json holds: the battles, how likely a is to win each in each order, and what computed it.

    Args:
        model: A preference model. Under ZeRO-3 every process has to call this.
        encoder: The member's own.
        orders: The orders in which the member reads.
        dtype: "float32" or "bfloat16", in which it reads.
    """
    battles = [{name: battle[name] for name in ("id", *TEXTS)} for battle in load_probe_battles()]
    return {
        "format": PROBES_FORMAT,
        "battles": battles,
        "p_a": _read_probes(model, encoder, battles, orders),
        "computed_with": describe_environment(model, dtype),
    }


def replay_probes(where: str, model: nn.Module, encoder: BattleEncoder, probes: Mapping, dtype: str) -> float:
    """Largest change of a probability between what `record_probes` stored and what the model gives now.

    Args:
        where: Names the member in the error.
        probes: What `record_probes` returned.
        dtype: In which the model reads now.

    Raises:
        ValueError: If a probability moved more than the tolerance: the message says what has changed since.
    """
    if not isinstance(probes, Mapping) or probes.get("format") != PROBES_FORMAT:
        raise ValueError(f"{where}: expected probes of format {PROBES_FORMAT}; found others. Save the member again.")
    stored, then = probes["p_a"], probes["computed_with"]
    found = _read_probes(model, encoder, probes["battles"], list(stored))
    change = max(abs(p - q) for order in stored for p, q in zip(stored[order], found[order], strict=True))
    tolerance = max(TOLERANCES[dtype], TOLERANCES[then["dtype"]])
    if not change <= tolerance:
        now = describe_environment(model, dtype)
        changed = [f"{name} {then.get(name)} then, {now[name]} now" for name in now if now[name] != then.get(name)]
        since = "; ".join(changed) or "neither versions nor dtype nor device: so adapter, base or tokenizer did"
        raise ValueError(
            f"{where}: expected the probabilities that it gave its probe battles when it was saved, within "
            f"{tolerance:g}; found a change of {change:.3g}. What changed since: {since}. Restore that, or pass "
            "--skip_probes true if the change is meant."
        )
    return change


def describe_environment(model: nn.Module, dtype: str) -> dict[str, str]:
    """What may move a probability: versions, dtype, kind of device, attention and quantisation kernel."""
    config = model.config
    quantization = config.to_dict().get("quantization_config") or {}
    return {
        "dtype": dtype,
        "device": next(model.parameters()).device.type,
        "attention": str(config._attn_implementation),
        "quantization": str(quantization.get("quant_method", "none")),
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
    }


def _read_probes(
    model: nn.Module, encoder: BattleEncoder, battles: Sequence[dict], orders: Sequence[str]
) -> dict[str, list[float]]:
    """Of each order, how likely a is to win each battle."""
    length = min(encoder.encoding.max_length, PROBE_TOKENS)
    encoder = BattleEncoder(encoder.tokenizer, replace(encoder.encoding, max_length=length))
    read = {}
    for order in orders:
        by_slot = compute_probe_logits(model, encoder, battles, order).double().softmax(dim=-1).tolist()
        read[order] = [orient_label(p, order)[0] for p in by_slot]
    return read
