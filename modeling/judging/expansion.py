"""How loaded members hold their weights while they read: merged, on an expanded base, or as stored.

The faster way takes more memory. What fits is decided here, and the canary battles confirm that it answers alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tqdm.auto import tqdm

from modeling.judging.canaries import CanaryMismatch
from modeling.judging.loaded import Member, check_canaries
from modeling.judging.predictor import get_bounds
from modeling.network.expansion import build_merged, expand_weights, measure_expanded, measure_merged
from modeling.network.footprint import count_reading
from modeling.network.precision import DTYPES
from modeling.runtime.devices import measure_free_memory
from modeling.runtime.distributed import call_on_main
from modeling.runtime.logs import build_logger
from modeling.runtime.progress import describe_step

logger = build_logger(__name__)

# Largest share of the free memory for merged weights, beside which activations need room; and for expanded weights with
# the activations, which are counted, beside which the allocator needs some.
MERGED_SHARE, EXPANDED_SHARE = 0.6, 0.9
ASKED_WAYS = {"always": "merged", "never": "stored"}  # what --merge asks for; auto leaves it to `choose_way`


class ExpansionMismatch(CanaryMismatch):
    """A base that was expanded in place gives the canary battles other probabilities, so it has to be loaded again."""


def prepare_reading(members: Sequence[Member], merge: str, skip_probes: bool, bar: tqdm) -> list[Member]:
    """The members with their weights held as `merge` says, checked by their canary battles.

    Args:
        members: As they were loaded. A base that is expanded changes in place.
        merge: See `load_members`.

    Raises:
        CanaryMismatch: If answers changed in the way that `merge` names, or as the weights are stored.
        ExpansionMismatch: If they changed on an expanded base, which "auto" chose.
    """
    way = ASKED_WAYS.get(merge) or _choose_way(members)
    if way == "merged":
        try:
            return merge_members(members, skip_probes, bar)
        except CanaryMismatch as error:
            if merge == "always":
                raise
            logger.warning(f"Adapters stay unmerged: merged into {members[0].dtype}, their answers change. {error}")
    elif way == "expanded":
        return expand_members(members, skip_probes, bar)
    for member in members:
        check_canaries(member, skip_probes, bar)
    return list(members)


def _choose_way(members: Sequence[Member]) -> str:
    """The way for members on one device, see `choose_way`. Logs why adapters are not merged."""
    adapters = [member for member in members if member.adapter is not None]
    merged = sum(measure_merged(member.model, DTYPES[member.dtype]) for member in adapters)
    expanded = sum(measure_expanded(member.model, DTYPES[member.dtype]) for member in _list_shared(adapters))
    device = next(members[0].model.parameters()).device
    # The main process decides for all: merged weights give slightly other numbers than unmerged ones.
    free = call_on_main(measure_free_memory, device)

    def count_pack() -> int:
        """The bytes of a forward pass on the largest packed sequence."""
        return max(_count_pack(member, get_bounds(device.type)[1]) for member in _list_shared(adapters))

    way = choose_way(merged, expanded, count_pack, free, device.type)
    if way != "merged":
        logger.info(f"Adapters stay unmerged: merged, they would take {merged / 1e9:.1f} of {free / 1e9:.1f} GB free")
    return way


def choose_way(merged: int, expanded: int, count_pack: Callable[[], int], free: int, device_type: str) -> str:
    """Returns how members should hold their weights: "merged", "expanded" or "stored".

    Merging takes the memory of the copies while base and adapters are still held.

    Args:
        merged: Bytes of a merged copy for each member.
        expanded: Bytes that the bases take beyond their quantised weights once they are plain; 0 if none is quantised.
        count_pack: Counts the bytes of a forward pass on the largest packed sequence.
        free: Free bytes of the device that the members are on.
        device_type: Such as "cpu" or "cuda".
    """
    if merged <= MERGED_SHARE * free:
        return "merged"
    # Not on a CPU, whose quantised layers expand their weights for each product: it gained 3% there, and merging 8%
    # (Gemma-3-270M in 8 bit, float32, on one core).
    if device_type != "cpu" and expanded and expanded + count_pack() <= EXPANDED_SHARE * free:
        return "expanded"
    return "stored"


def _list_shared(members: Sequence[Member]) -> list[Member]:
    """One member of each base."""
    return list({id(member.model): member for member in members}.values())


def _count_pack(member: Member, tokens: int) -> int:
    """The bytes of a forward pass on so many tokens."""
    config, longest = member.model.get_base_model().config, member.encoder.encoding.max_length
    return count_reading(
        config,
        dtype=member.dtype,
        r=max(each.r for each in member.model.peft_config.values()),
        tokens=max(tokens, longest),  # a longer sequence has a pack of its own
        longest=longest,
        device_type=member.model.device.type,
        kernel=config._attn_implementation,
    )


def merge_members(members: Sequence[Member], skip_probes: bool, bar: tqdm) -> list[Member]:
    """Members with merged adapters, checked by their canary battles.

    The merged members no longer refer to the shared base, so its memory is freed.
    """
    merged: list[Member] = []
    added = 0
    for member in members:
        if member.adapter is not None:
            describe_step(bar, f"Merging {member.name}")
            # Members of one base share what their adapters leave alone: memory, and time in `PassSchedule`.
            like = next(
                (m.model for m, before in zip(merged, members, strict=False) if before.model is member.model), None
            )
            added += measure_merged(member.model, DTYPES[member.dtype])
            model = build_merged(member.model, member.adapter, DTYPES[member.dtype], like=like)
            member = replace(member, model=model, adapter=None)
        merged.append(member)
    for member in merged:
        check_canaries(member, skip_probes, bar)
    if added:
        gigabytes = added / 1e9
        logger.info(f"Adapters merged into expanded weights, {gigabytes:.1f} GB. --merge never reads them as stored")
    return merged


def expand_members(members: Sequence[Member], skip_probes: bool, bar: tqdm) -> list[Member]:
    """The members on expanded bases, which change in place, checked; adapters are computed beside them."""
    for member in _list_shared([member for member in members if member.adapter is not None]):
        describe_step(bar, f"Expanding the base of {member.name}")
        expand_weights(member.model, DTYPES[member.dtype])
    try:
        for member in members:
            check_canaries(member, skip_probes, bar)
    except CanaryMismatch as error:
        raise ExpansionMismatch(str(error)) from error
    logger.info("Quantised weights expanded once for all members. --merge never reads them as stored")
    return [replace(member, expanded=member.adapter is not None) for member in members]
