"""Canary battles: eight packaged battles whose logits show whether a model still answers as before.

A member stores them with the probabilities it gave; they are replayed after loading, merging, quantising and
downloading. It does not know where models come from.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from modeling.data.battles import DEMO_FOLDER, TEXTS, load_battles, orient_label
from modeling.data.outcomes import WITH_TIE
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.encoding.packing import pack_sequences
from modeling.network.precision import find_tolerance
from modeling.runtime.packages import find_version

CANARY_FILE = DEMO_FOLDER / "test.jsonl"
CANARY_LANGUAGES = ("Arabic", "Chinese", "English", "Greek", "Hindi", "Japanese", "Russian", "Thai")  # eight scripts
# Tokens per battle, even for members that read more: short battles detect as much, and take a second on a CPU.
# Older members used 128 and did not record it.
CANARY_TOKENS, OLD_CANARY_TOKENS = 64, 128
CANARIES_FORMAT = 1
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "ftfy")

# (model, encoder, battles, orientation) -> logits of shape (battles, slots).
LogitsFunction = Callable[[nn.Module, BattleEncoder, Sequence[dict], str], Tensor]


class CanaryMismatch(ValueError):
    """A model gives the canary battles other probabilities than it should, or NaN."""


def load_canaries() -> list[dict]:
    """The first battle of the packaged held-out file in each of `CANARY_LANGUAGES`: always the same eight."""
    first: dict[str, dict] = {}
    for battle in load_battles(CANARY_FILE):
        first.setdefault(battle["language"], battle)
    return [first[language] for language in CANARY_LANGUAGES]


def build_canary_encoder(tokenizer: PreTrainedTokenizerBase) -> BattleEncoder:
    """An encoder of canary battles for a base, which has no encoding of its own yet."""
    return BattleEncoder(tokenizer, build_encoding(tokenizer, CANARY_TOKENS, "balanced"))


@torch.inference_mode()
def compute_canary_logits(
    model: nn.Module, encoder: BattleEncoder, battles: Sequence[dict], orientation: str = "ab"
) -> Tensor:
    """Logits of battles read as one packed sequence, which is the same at every call.

    Args:
        model: A preference model with an attention that `choose_attention` set; it is put into eval mode.
        encoder: The member's own, or `build_canary_encoder`'s for a base.
        battles: From `load_canaries`.
        orientation: The order to read them in.

    Returns:
        Shape (battles, slots), float32, on the CPU; column 0 is the first slot's.

    Raises:
        CanaryMismatch: If a logit is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    encoded = encoder.encode(encoder.clean_battles(battles), orientation)
    batch = pack_sequences([battle["input_ids"] for battle in encoded]).to_batch()
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    logits = model(**batch).logits.float().cpu()
    # Comparisons with NaN are false, so a damaged model would pass any tolerance.
    if not torch.isfinite(logits).all():
        raise CanaryMismatch(
            f"Canary battles: expected finite logits; found {(~torch.isfinite(logits)).sum()} of {logits.numel()} that "
            "are not. The weights are damaged, or were quantised from damaged weights; start from the original base. "
            "(In float16 an activation may also have exceeded the largest number, 65,504: pass --dtype float32.)"
        )
    return logits


def measure_change(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Largest change of a logit, and of a probability, between two sets of logits, each of shape (battles, slots)."""
    probabilities = after.softmax(dim=-1) - before.softmax(dim=-1)
    return (after - before).abs().max().item(), probabilities.abs().max().item()


def record_canaries(model: nn.Module, encoder: BattleEncoder, orders: Sequence[str], dtype: str) -> dict:
    """The content of a member's probes.json: the battles, what the model predicts in each order, and the environment.

    Args:
        model: A preference model. Under ZeRO-3 every process must call this, because its weights are sharded.
        encoder: The member's own.
        orders: The orders that the member reads.
        dtype: The precision it reads in.
    """
    canaries = build_empty_canaries(model, dtype)
    battles = [{name: battle[name] for name in ("id", *TEXTS)} for battle in load_canaries()]
    return canaries | {"battles": battles} | _predict_canaries(model, encoder, battles, orders, CANARY_TOKENS)


def build_empty_canaries(model: nn.Module, dtype: str) -> dict:
    """The content of probes.json until `record_canaries` has run: no battles, so nothing can be replayed."""
    computed_with = describe_environment(model, dtype)
    return {
        "format": CANARIES_FORMAT,
        "tokens": CANARY_TOKENS,
        "battles": [],
        "p_a": {},
        "computed_with": computed_with,
    }


def replay_canaries(
    where: str,
    model: nn.Module,
    encoder: BattleEncoder,
    canaries: Mapping,
    dtype: str,
    held: str | None = None,
    *,
    compute_logits: LogitsFunction | None = None,
) -> float:
    """Largest change of a probability between what `record_canaries` stored and what the model gives now.

    Args:
        where: Names the member in the error.
        canaries: From `record_canaries`.
        dtype: The precision that the model reads in now.
        held: The member's own precision, which its weights are rounded to if it is merged; `dtype` if None.
        compute_logits: Reads the battles with a model that is no preference model, as `compute_canary_logits` does with
            one.

    Raises:
        CanaryMismatch: If a probability changed by more than the tolerance; the message says what else has changed.
        ValueError: If the canary battles have another format.
    """
    if not isinstance(canaries, Mapping) or canaries.get("format") != CANARIES_FORMAT:
        raise ValueError(
            f"{where}: expected canary battles of format {CANARIES_FORMAT}; found others. Save the member again."
        )
    stored, then = {name: canaries[name] for name in ("p_a", "p_tie") if name in canaries}, canaries["computed_with"]
    tokens, compute = canaries.get("tokens", OLD_CANARY_TOKENS), compute_logits or compute_canary_logits
    found = _predict_canaries(model, encoder, canaries["battles"], list(stored["p_a"]), tokens, compute)
    if stored.keys() != found.keys():
        raise ValueError(
            f"{where}: expected canary battles with {' and '.join(found)}, as its labels say; found "
            f"{' and '.join(stored)}. Save the member again."
        )
    change = max(
        abs(p - q)
        for name, orders in stored.items()
        for order in orders
        for p, q in zip(orders[order], found[name][order], strict=True)
    )
    # The coarsest precision involved decides: what was stored, what reads now, and what the weights were rounded to.
    tolerance = max(find_tolerance(then["dtype"], each) for each in (dtype, held or dtype))
    if not change <= tolerance:  # not `change > tolerance`, which is false for NaN
        now = describe_environment(model, dtype)
        changed = [f"{name} {then.get(name)} then, {now[name]} now" for name in now if now[name] != then.get(name)]
        since = "; ".join(changed) or "neither versions nor dtype nor device, so it is the adapter, base or tokenizer"
        raise CanaryMismatch(
            f"{where}: expected the probabilities of its canary battles from when it was saved, within "
            f"{tolerance:g}; found a change of {change:.3g}. What changed since: {since}. Restore that, or pass "
            "--skip_probes true if the change is intended."
        )
    return change


def describe_environment(model: nn.Module, dtype: str) -> dict[str, str]:
    """What can change a probability: versions, dtype, kind of device, attention and quantisation kernel."""
    config = model.config
    quantization = config.to_dict().get("quantization_config") or {}
    return {
        "dtype": dtype,
        "device": next(model.parameters()).device.type,
        "attention": str(config._attn_implementation),
        "quantization": str(quantization.get("quant_method", "none")),
        "python": platform.python_version(),
        **{name: find_version(name) for name in VERSIONS},
    }


def _predict_canaries(
    model: nn.Module,
    encoder: BattleEncoder,
    battles: Sequence[dict],
    orders: Sequence[str],
    tokens: int,
    compute_logits: LogitsFunction = compute_canary_logits,
) -> dict[str, dict[str, list[float]]]:
    """p_a and, with three labels, p_tie of each battle, by name and order, with battles cut to a number of tokens."""
    length = min(encoder.encoding.max_length, tokens)
    encoder = BattleEncoder(encoder.tokenizer, replace(encoder.encoding, max_length=length))
    found: dict[str, dict[str, list[float]]] = {"p_a": {}}
    for order in orders:
        by_slot = compute_logits(model, encoder, battles, order).double().softmax(dim=-1).tolist()
        by_label = [orient_label(p, order) for p in by_slot]
        found["p_a"][order] = [p[0] for p in by_label]
        if len(by_label[0]) == len(WITH_TIE):
            found.setdefault("p_tie", {})[order] = [p[2] for p in by_label]
    return found
