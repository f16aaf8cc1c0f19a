"""Probes: eight packaged battles whose logits tell whether a model still answers as it did before it was quantised,
saved or moved. A member carries them with the probabilities that it gave. It must not know where models come from.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from modeling.data.battles import DEMO_FOLDER, TEXTS, load_battles, orient_label
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.encoding.packing import pack_sequences
from modeling.network.precision import find_tolerance

CANARY_FILE = DEMO_FOLDER / "test.jsonl"
CANARY_LANGUAGES = ("Arabic", "Chinese", "English", "Greek", "Hindi", "Japanese", "Russian", "Thai")  # eight scripts
# Of a battle, even where a member reads longer ones: one short packed sequence says as much, in a second on a CPU.
CANARY_TOKENS, OLD_CANARY_TOKENS = 64, 128  # members that were saved before had the latter, and do not say so
CANARIES_FORMAT = 1
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "ftfy")


class CanariesMoved(ValueError):
    """Probe battles get other probabilities than they should, or none that are numbers."""


def load_canaries() -> list[dict]:
    """Eight battles, the packaged held-out file's first in each of `CANARY_LANGUAGES`: always the same ones."""
    first: dict[str, dict] = {}
    for battle in load_battles(CANARY_FILE):
        first.setdefault(battle["language"], battle)
    return [first[language] for language in CANARY_LANGUAGES]


def build_canary_encoder(tokenizer: PreTrainedTokenizerBase) -> BattleEncoder:
    """How probes are read on a base, for which nothing has been said yet: the template, at most `CANARY_TOKENS`."""
    return BattleEncoder(tokenizer, build_encoding(tokenizer, CANARY_TOKENS, "balanced"))


@torch.inference_mode()
def compute_canary_logits(
    model: nn.Module, encoder: BattleEncoder, battles: Sequence[dict], orientation: str = "ab"
) -> Tensor:
    """Logits of battles read as one packed sequence, the same one whenever they are read.

    Args:
        model: A preference model with an attention that `choose_attention` set; it is put into eval mode.
        encoder: The member's own, or `build_canary_encoder`'s for a base.
        battles: What `load_canaries` returned.
        orientation: The order in which they are read.

    Returns:
        Shape (battles, slots), float32, on the CPU; column 0 is the first slot's.

    Raises:
        CanariesMoved: If a logit is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    encoded = encoder.encode(encoder.clean_battles(battles), orientation)
    batch = pack_sequences([battle["input_ids"] for battle in encoded]).to_batch()
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    logits = model(**batch).logits.float().cpu()
    # A comparison with NaN is false: a ruined model would pass any tolerance.
    if not torch.isfinite(logits).all():
        raise CanariesMoved(
            f"Probe battles: expected finite logits; found {(~torch.isfinite(logits)).sum()} of {logits.numel()} that "
            "are not. The weights are damaged, or were quantised from damaged ones; start from the original base. "
            "(In float16 an activation may also have exceeded its largest number, 65,504: take --dtype float32.)"
        )
    return logits


def measure_change(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Largest change of a logit, and of a probability, between two readings of shape (battles, slots)."""
    probabilities = after.softmax(dim=-1) - before.softmax(dim=-1)
    return (after - before).abs().max().item(), probabilities.abs().max().item()


def record_canaries(model: nn.Module, encoder: BattleEncoder, orders: Sequence[str], dtype: str) -> dict:
    """What a member's probes.json holds: the battles, how likely a is to win each in each order, and what computed it.

    Args:
        model: A preference model. Under ZeRO-3 every process has to call this.
        encoder: The member's own.
        orders: The orders in which the member reads.
        dtype: The precision in which it reads.
    """
    probes = build_empty_canaries(model, dtype)
    battles = [{name: battle[name] for name in ("id", *TEXTS)} for battle in load_canaries()]
    return probes | {"battles": battles, "p_a": _predict_canaries(model, encoder, battles, orders, CANARY_TOKENS)}


def build_empty_canaries(model: nn.Module, dtype: str) -> dict:
    """What probes.json holds until the probes have been read: no battles, so that nothing can be replayed."""
    computed_with = describe_environment(model, dtype)
    return {
        "format": CANARIES_FORMAT,
        "tokens": CANARY_TOKENS,
        "battles": [],
        "p_a": {},
        "computed_with": computed_with,
    }


def replay_canaries(
    where: str, model: nn.Module, encoder: BattleEncoder, probes: Mapping, dtype: str, held: str | None = None
) -> float:
    """Largest change of a probability between what `record_canaries` stored and what the model gives now.

    Args:
        where: Names the member in the error.
        probes: What `record_canaries` returned.
        dtype: The precision in which the model reads now.
        held: The member's own, which its weights were rounded to if it is merged; the same if left out.

    Raises:
        CanariesMoved: If a probability moved more than the tolerance: the message says what has changed since.
        ValueError: If the probes are of another format.
    """
    if not isinstance(probes, Mapping) or probes.get("format") != CANARIES_FORMAT:
        raise ValueError(f"{where}: expected probes of format {CANARIES_FORMAT}; found others. Save the member again.")
    stored, then = probes["p_a"], probes["computed_with"]
    found = _predict_canaries(model, encoder, probes["battles"], list(stored), probes.get("tokens", OLD_CANARY_TOKENS))
    change = max(abs(p - q) for order in stored for p, q in zip(stored[order], found[order], strict=True))
    tolerance = max(find_tolerance(then["dtype"], each) for each in (dtype, held or dtype))
    if not change <= tolerance:
        now = describe_environment(model, dtype)
        changed = [f"{name} {then.get(name)} then, {now[name]} now" for name in now if now[name] != then.get(name)]
        since = "; ".join(changed) or "neither versions nor dtype nor device: so adapter, base or tokenizer did"
        raise CanariesMoved(
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


def _predict_canaries(
    model: nn.Module, encoder: BattleEncoder, battles: Sequence[dict], orders: Sequence[str], tokens: int
) -> dict[str, list[float]]:
    """Of each order, how likely a is to win each battle, cut to so many tokens."""
    length = min(encoder.encoding.max_length, tokens)
    encoder = BattleEncoder(encoder.tokenizer, replace(encoder.encoding, max_length=length))
    read = {}
    for order in orders:
        by_slot = compute_canary_logits(model, encoder, battles, order).double().softmax(dim=-1).tolist()
        read[order] = [orient_label(p, order)[0] for p in by_slot]
    return read
