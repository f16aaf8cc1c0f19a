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
from modeling.judging.expansion import choose_way
from modeling.judging.loading import choose_judge_dtype, find_judge, find_member_files, load_member_tokenizer
from modeling.judging.member import MemberFacts, is_merged, list_readings, read_member
from modeling.judging.predictor import build_batches, choose_budget
from modeling.network.base import BaseFiles
from modeling.network.expansion import measure_expanded, measure_int8_products, measure_merged
from modeling.network.footprint import FLOAT32, MemoryPlan, build_network, count_reading, count_weights
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
    pack: Of a forward pass on the largest packed sequence, on a CPU one for each core.
    products: Of a GPU's 8-bit products in it, beyond `pack`.
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
        adapters, pack = {"adapters and heads": self.adapters}, {"packed sequence": self.pack}
        products = {"8-bit products": self.products} if self.products else {}
        return {
            "merged": MemoryPlan({"weights": self.kept + self.merged, **pack}),
            "expanded": MemoryPlan({"weights": self.bases + self.expanded, **adapters, **pack}),
            "stored": MemoryPlan({"weights": self.bases, **adapters, **pack, **products}),
        }

    def choose_way(self, merge: str, free: int, device_type: str) -> str:
        """The way that loading would choose with so many bytes free before it."""
        if merge != "auto":
            return {"always": "merged", "never": "stored"}[merge]
        left = free - self.bases - self.adapters
        return choose_way(self.merged, self.expanded, lambda: self.pack, left, device_type)


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
    largest = max(packs, default=0)
    needs = measure_needs(sources, dtype=dtype, tokens=max(1, largest), device_type=device.type)
    free = measure_free_memory(device)
    way = needs.choose_way(merge, free, device.type)
    lines = [
        f"{len(sources)} member{'s' * (len(sources) > 1)}, {len(rows)} battles: {total:,} tokens, {sum(packs):,} "
        f"without repeated prefixes, in {len(packs)} packed sequences of up to {largest:,}",
        f"Memory of each process in {dtype}, estimated, by how weights are held:",
        format_plans(needs.list_ways()),
        f"--merge {merge} takes: {way}; {free / 1e9:.2f} GB are free",
    ]
    if needs.list_ways()[way].total <= free:
        return "\n".join(lines)
    lines.append(
        "--dry_run: expected that much memory; found less. Take fewer --tokens_per_batch, --merge never, a judge on a "
        "4-bit base, or a device with more memory."
    )
    raise ValueError("\n".join(lines))


def read_source(folder: Path, facts: MemberFacts) -> Source:
    """What a member is loaded from."""
    files = find_member_files(folder, facts)
    lora = None if is_merged(folder) else LoraConfig.from_pretrained(folder)
    return Source(folder, facts, files, AutoConfig.from_pretrained(files.folder), lora)


def count_tokens(
    source: Source, rows: Sequence[Mapping], readings: str, tokens_per_batch: int | None, device_type: str
) -> tuple[int, int, int, int]:
    """A member's tokens: of all its passes; without repeated prefixes; and its packs, and the tokens of the largest."""
    encoder = BattleEncoder(
        load_member_tokenizer(source.folder, source.files), Encoding.from_dict(source.facts.encoding)
    )
    encoded = encoder.encode_orders(encoder.clean_battles(rows), list_readings(source.facts.orientation, readings))
    sequences = [battle["input_ids"] for battles in encoded.values() for battle in battles]
    batches = build_batches(sequences, tokens_per_batch or choose_budget(sequences, device_type)) if sequences else []
    sizes = [len(pack_sequences([sequences[row] for row in batch]).input_ids) for batch in batches]
    return sum(map(len, sequences)), sizes


def measure_needs(
    sources: Sequence[Source], *, dtype: str, tokens: int, device_type: str, kernel: str | None = None
) -> Needs:
    """What reading with these members takes.

    Args:
        dtype: Key of `DTYPES`, in which they read.
        tokens: Tokens of the largest packed sequence.
        device_type: Such as "cpu" or "cuda".
        kernel: Attention; None takes the best that a GPU may have.
    """
    bases: dict[Path, tuple[int, int]] = {}
    adapters = merged = kept = pack = products = 0
    for source in sources:
        rank = source.lora.r if source.lora else 1
        layers = (source.lora.layers_to_transform if source.lora else None) or [0]
        network = build_network(source.config, dtype=dtype, r=rank, freeze_layers=min(layers))
        weights, expanded = count_weights(network), measure_expanded(network, DTYPES[dtype])
        plain = 0
        if source.lora:
            adapters += FLOAT32 * sum(p.numel() for p in network.parameters() if p.requires_grad)
            plain = measure_merged(network, DTYPES[dtype])
        if source.files.folder not in bases:
            kept += weights - (plain - expanded)
        bases[source.files.folder] = weights, expanded
        merged += plain
        sizes = {"tokens": tokens, "longest": source.max_length, "kernel": kernel}
        pack = max(pack, count_reading(source.config, dtype=dtype, r=rank, **sizes))
        products = max(products, measure_int8_products(network, tokens) if device_type == "cuda" else 0)
    stored, added = (sum(sizes) for sizes in zip(*bases.values(), strict=True))
    at_once = torch.get_num_threads() if device_type == "cpu" else 1
    return Needs(stored, adapters, merged, kept, added, at_once * pack, products)


def format_plans(plans: Mapping[str, MemoryPlan]) -> str:
    """The plans side by side, in GB."""
    parts = [*dict.fromkeys(part for plan in plans.values() for part in plan.parts), "total"]
    sizes = [{**plan.parts, "total": plan.total} for plan in plans.values()]
    rows = [(part, *(f"{each[part] / 1e9:.2f}" if part in each else "" for each in sizes)) for part in parts]
    return format_table([("GB", *plans), *rows])
