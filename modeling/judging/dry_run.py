"""What a prediction will take, told before a weight is loaded: its tokens, and its memory by how weights are held.

Both are computed: the tokens from the battles, the memory from configs (see `modeling/network/footprint.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoConfig, PreTrainedConfig

from modeling.encoding.encoder import BattleEncoder, Encoding
from modeling.encoding.packing import pack_sequences
from modeling.judging.expansion import ASKED_WAYS, choose_way
from modeling.judging.loading import (
    choose_judge_dtype,
    find_judge,
    find_member_files,
    identify_base,
    load_member_tokenizer,
)
from modeling.judging.member import MemberFacts, is_merged, list_readings, read_member
from modeling.judging.predictor import build_batches, choose_budget, get_bounds
from modeling.network.attention import find_attention, list_kernels
from modeling.network.base import BaseFiles, read_family_config
from modeling.network.expansion import FLOAT32, measure_expanded, measure_merged, measure_products
from modeling.network.footprint import MemoryPlan, build_network, count_reading, count_weights
from modeling.network.precision import DTYPES
from modeling.runtime.choices import DEFAULT_READINGS
from modeling.runtime.devices import measure_free_memory
from modeling.runtime.text_tables import format_table


@dataclass(frozen=True)
class Source:
    """What a member is loaded from. `lora` is None if it is merged into its base."""

    folder: Path
    facts: MemberFacts
    files: BaseFiles
    config: PreTrainedConfig
    lora: LoraConfig | None

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence that it reads."""
        return Encoding.from_dict(self.facts.encoding).max_length


@dataclass(frozen=True)
class Needs:
    """Bytes that reading takes.

    bases, adapters: As stored; heads count with the adapters.
    merged: Of a merged copy for each member, at most.
    kept: What merged copies share: embeddings and norms.
    expanded: What bases take beyond `bases` once their weights are plain.
    pack: Of the packed sequences that are read at once.
    products: Of products with quantised weights, beyond `pack`.
    """

    bases: int
    adapters: int
    merged: int
    kept: int
    expanded: int
    pack: int
    products: int

    def list_ways(self) -> dict[str, MemoryPlan]:
        """The plan of each way of `choose_way`."""
        # Bases and adapters are freed once all copies are made, and before the first pack is read.
        merging = self.bases - self.kept + self.adapters - self.pack
        adapters, packs = {"adapters and heads": self.adapters}, {"packed sequences": self.pack}
        ways = {
            "merged": {"weights": self.kept + self.merged, **packs, "while merging": max(0, merging)},
            "expanded": {"weights": self.bases + self.expanded, **adapters, **packs},
            "stored": {"weights": self.bases, **adapters, **packs, "quantised products": self.products},
        }
        return {
            way: MemoryPlan({part: size for part, size in parts.items() if size})
            for way, parts in ways.items()
            if way != "expanded" or self.expanded
        }


def describe_prediction(
    names: Sequence[str],
    rows: Sequence[Mapping],
    device: torch.device,
    *,
    readings: str | None,
    dtype: str,
    merge: str,
    tokens_per_batch: int | None,
) -> str:
    """Says what `Judge.predict` would take, in a few lines and a table.

    Args:
        names: See `find_judge`.
        rows: Battles, as `load_battles` reads them.
        device: Where it would run.
        readings, dtype, merge, tokens_per_batch: As for `Judge.from_pretrained` and `Judge.predict`.

    Raises:
        FileNotFoundError: If a member's base is missing.
        ValueError: If a member is damaged, or if the device has less memory free than the estimate.
    """
    found, judge = find_judge(names)
    checked = [(name, folder, read_member(folder)) for name, folder in found]
    dtype = choose_judge_dtype(checked, dtype, device)
    readings = readings or (judge.readings if judge else DEFAULT_READINGS)
    sources = [read_source(folder, facts) for _, folder, facts in checked]
    total, packs = 0, []
    for source in sources:
        read, sizes = count_tokens(source, rows, readings, tokens_per_batch, device.type)
        total, packs = total + read, packs + sizes
    largest = max(packs, default=1)
    at_once = min(torch.get_num_threads(), max(1, len(packs))) if device.type == "cpu" else 1
    needs, free = measure_needs(sources, dtype, largest, device, at_once=at_once), measure_free_memory(device)
    way, plans = ASKED_WAYS.get(merge) or foresee_way(sources, needs, dtype, device, free), needs.list_ways()
    said = "\n".join(
        [
            f"{len(sources)} member{'s' * (len(sources) != 1)}, {len(rows)} battles: {total:,} tokens, {sum(packs):,} "
            f"without repeated prefixes, in {len(packs)} packed sequence{'s' * (len(packs) != 1)} of up to {largest:,}",
            f"Memory of each process in {dtype}, estimated, by how weights are held:",
            format_plans(plans),
            f"--merge {merge} takes: {way}; {free / 1e9:.2f} GB are free",
        ]
    )
    if plans[way].total > free:
        less = ["fewer --tokens_per_batch", *["--merge never"] * (way != "stored"), "a judge on a 4-bit base"]
        raise ValueError(
            f"{said}\n--dry_run: expected that much memory; found less. Take {', '.join(less)}, or a device with more "
            "memory."
        )
    return said


def foresee_way(sources: Sequence[Source], needs: Needs, dtype: str, device: torch.device, free: int) -> str:
    """The way that loading will choose, with so many bytes free before it."""
    # Loading does not know --tokens_per_batch: it leaves room for the largest pack that there is by default.
    tokens = max(get_bounds(device.type)[1], *(source.max_length for source in sources))
    return choose_way(
        needs.merged,
        needs.expanded,
        lambda: measure_needs(sources, dtype, tokens, device).pack,
        free - needs.bases - needs.adapters,
        device.type,
    )


def read_source(folder: Path, facts: MemberFacts) -> Source:
    """What a member is loaded from."""
    files = find_member_files(folder, facts)
    lora = None if is_merged(folder) else LoraConfig.from_pretrained(folder)
    return Source(folder, facts, files, AutoConfig.from_pretrained(files.folder), lora)


def count_tokens(
    source: Source, rows: Sequence[Mapping], readings: str, tokens_per_batch: int | None, device_type: str
) -> tuple[int, list[int]]:
    """The tokens of all passes of a member, and those of each packed sequence, which has repeated prefixes once."""
    tokenizer = load_member_tokenizer(source.folder, source.files)
    encoder = BattleEncoder(tokenizer, Encoding.from_dict(source.facts.encoding))
    encoded = encoder.encode_orders(encoder.clean_battles(rows), list_readings(source.facts.orientation, readings))
    sequences = [battle["input_ids"] for battles in encoded.values() for battle in battles]
    batches = build_batches(sequences, tokens_per_batch or choose_budget(sequences, device_type)) if sequences else []
    sizes = [len(pack_sequences([sequences[row] for row in batch]).input_ids) for batch in batches]
    return sum(map(len, sequences)), sizes


def measure_needs(
    sources: Sequence[Source],
    dtype: str,
    tokens: int,
    device: torch.device,
    *,
    at_once: int = 1,
    kernel: str | None = None,
) -> Needs:
    """What reading with these members takes.

    Args:
        dtype: Key of `DTYPES`, in which they read.
        tokens: Tokens of the largest packed sequence.
        device: Where they would read; only its kind is used if `kernel` is given.
        at_once: Packed sequences that are read at once.
        kernel: Attention; None takes the one that would be chosen on the device.
    """
    bases: dict[tuple, tuple[int, int]] = {}
    adapters = merged = kept = pack = products = 0
    for source in sources:
        rank = source.lora.r if source.lora else 1
        network = build_network(source.config, dtype=dtype, r=rank, freeze_layers=_count_frozen(source.lora))
        weights, expanded = count_weights(network), measure_expanded(network, DTYPES[dtype])
        plain = 0
        if source.lora:
            adapters += FLOAT32 * sum(p.numel() for p in network.parameters() if p.requires_grad)
            plain = measure_merged(network, DTYPES[dtype])
        key = identify_base(source.files, source.facts) if source.lora else (source.folder,)
        if key not in bases:
            kept += weights - (plain - expanded)
        bases[key] = weights, expanded
        merged += plain
        chosen = kernel or _find_kernel(source, device, dtype)
        sizes = {"tokens": tokens, "longest": source.max_length, "device_type": device.type, "kernel": chosen}
        pack = max(pack, count_reading(source.config, dtype=dtype, r=rank, **sizes))
        products = max(products, measure_products(network, DTYPES[dtype], tokens, device.type))
    stored, added = (sum(sizes) for sizes in zip(*bases.values(), strict=True))
    return Needs(stored, adapters, merged, kept, added, at_once * pack, at_once * products)


def _count_frozen(lora: LoraConfig | None) -> int:
    """The lowest layers without an adapter. Of an adapter on single layers, all above the lowest count as adapted."""
    layers = lora.layers_to_transform if lora else None
    return min([layers] if isinstance(layers, int) else layers or [0])


def _find_kernel(source: Source, device: torch.device, dtype: str) -> str:
    """The attention that a member would read with."""
    if device.type == "cpu":
        return list_kernels(source.config, "cpu", DTYPES[dtype])[0]  # its kernels always work
    return find_attention(*read_family_config(source.files, {}), device, DTYPES[dtype], training=False)[0]


def format_plans(plans: Mapping[str, MemoryPlan]) -> str:
    """The plans side by side, in GB."""
    parts = [*dict.fromkeys(part for plan in plans.values() for part in plan.parts), "total"]
    sizes = [{**plan.parts, "total": plan.total} for plan in plans.values()]
    rows = [(part, *(f"{each[part] / 1e9:.2f}" if part in each else "" for each in sizes)) for part in parts]
    return format_table([("GB", *plans), *rows])
