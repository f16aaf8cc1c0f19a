"""One attention call per layer for a whole packed sequence, by torch's kernels for GPUs.

`attend_varlen` is FlashAttention over sequences of different lengths; keys of shared prefixes are gathered for it.
`attend_flex` is a compiled kernel that skips blocks of the mask and supports soft-capping. Both give what
`modeling.network.attention` computes segment by segment. This module must not know models.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from modeling.encoding.packing import Segment

BLOCK = 128  # tokens; the side of a mask's blocks
# Tokens. Rows are padded to a power of two from here on, so that few shapes are compiled; empty blocks cost no time.
SHORTEST_ROW = 1024


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[Segment],
    *,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Computes attention with FlashAttention, each segment with the keys of its prefixes before its own.

    Args:
        query: Shape (1, heads, tokens, size), 16 bits; key and value may have fewer heads.
        segments: Spans of the packed sequence, in order.

    Returns:
        Outputs of shape (1, tokens, heads, size).

    Raises:
        RuntimeError: If this device or dtype has no such kernel.
    """
    # Not at the top of the module: older builds of torch lack it, and then the next kernel is taken.
    from torch.nn.attention.varlen import varlen_attn

    spans = _build_spans(tuple(segments), query.device)
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # (tokens, heads, size)
    if spans.gather is not None:
        key, value = key[spans.gather], value[spans.gather]
    options = {"scale": scaling, "window_size": (-1 if sliding_window is None else sliding_window - 1, 0)}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # since torch 2.12; before it was always enabled
        options["enable_gqa"] = True
    lengths = (spans.queries, spans.keys, spans.most_queries, spans.most_keys)
    return varlen_attn(query.contiguous(), key.contiguous(), value.contiguous(), *lengths, **options)[None]


class _Spans:
    """The segments of a packed sequence as FlashAttention needs them.

    queries, keys: First query and key of each segment, and the end, shape (segments + 1,).
    most_queries, most_keys: Of a segment.
    gather: Index in the row of each key, shape (keys,); None if that is the row itself.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device):
        spans = [(*segment.before, (segment.start, segment.stop)) for segment in segments]
        queries = [segment.stop - segment.start for segment in segments]
        keys = [sum(stop - start for start, stop in own) for own in spans]
        self.most_queries, self.most_keys = max(queries), max(keys)
        self.queries, self.keys = (
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device) for lengths in (queries, keys)
        )
        self.gather = None
        if keys != queries:
            index = np.concatenate([np.arange(start, stop) for own in spans for start, stop in own])
            self.gather = torch.from_numpy(index).to(device)


@lru_cache(maxsize=4)  # all layers of a forward pass, and its repetition by gradient checkpointing, share it
def _build_spans(segments: tuple[Segment, ...], device: torch.device) -> _Spans:
    """Returns the segments for FlashAttention, on a device."""
    return _Spans(segments, device)


def attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[Segment],
    *,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """Computes attention with FlexAttention; compiled on a GPU, once per power of two of tokens.

    Args:
        query: Shape (1, heads, tokens, size); key and value may have fewer heads.
        segments: Spans of the packed sequence, in order.
        softcap: Bound of the scores, as `tanh(score / softcap) * softcap`; None leaves them.

    Returns:
        Outputs of shape (1, tokens, heads, size).
    """
    tokens, device = query.shape[2], query.device
    mask = build_block_mask(tuple(segments), sliding_window, device)
    padding = mask.seq_lengths[0] - tokens
    query, key, value = (pad(states, (0, 0, 0, padding)) for states in (query, key, value))
    attend = _compile() if device.type == "cuda" else flex_attention
    cap = None if softcap is None else _build_softcap(softcap)
    grouped = query.shape[1] != key.shape[1]
    output = attend(query, key, value, score_mod=cap, block_mask=mask, scale=scaling, enable_gqa=grouped)
    return output[:, :, :tokens].transpose(1, 2)


@lru_cache(maxsize=1)
def _compile() -> Callable:
    """Returns the compiled kernel."""
    # Past its limit of shapes, torch would silently run a version that stores every score.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=8)  # the same function each time, so that nothing is compiled again
def _build_softcap(softcap: float) -> Callable:
    """Returns the function that soft-caps a score."""

    def cap(score: Tensor, _battle: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        """A score as the model computes it."""
        return torch.tanh(score / softcap) * softcap

    return cap


@lru_cache(maxsize=8)  # for two kinds of layers, and as in _build_spans
def build_block_mask(segments: tuple[Segment, ...], sliding_window: int | None, device: torch.device) -> BlockMask:
    """Returns which keys each token of a packed sequence sees, as blocks of `BLOCK` x `BLOCK`.

    In the row, a segment is followed by all that continue it. So a key is seen by the tokens from itself to the end of
    the last segment that continues its own.

    Args:
        segments: Spans of the packed sequence, in order.
        sliding_window: Number of tokens, itself included, that a token sees; None for all before it.
        device: Device of the mask.
    """
    length = SHORTEST_ROW
    while length < segments[-1].stop:
        length *= 2
    stops, positions = _locate_tokens(segments, length)
    # Bounds for each block of queries (rows) and keys (columns). A block that is said to be partial costs the time of
    # its mask and no more, so the window's bounds need not be tight.
    stops_of, positions_of = stops.reshape(-1, BLOCK), positions.reshape(-1, BLOCK)
    first = np.arange(0, length, BLOCK)
    last = first + BLOCK - 1
    some = (first[None] <= last[:, None]) & (first[:, None] < stops_of.max(axis=1)[None])
    every = (last[None] <= first[:, None]) & (last[:, None] < stops_of.min(axis=1)[None])
    if sliding_window is not None:
        lowest, highest = positions_of.min(axis=1), positions_of.max(axis=1)
        some &= lowest[:, None] - highest[None] < sliding_window
        every &= highest[:, None] - lowest[None] < sliding_window
    stop, position = (torch.from_numpy(values).to(device) for values in (stops, positions))

    def see(_battle: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether the token at `query` sees the one at `key`; both are places in the row."""
        seen = (key <= query) & (query < stop[key])
        return seen if sliding_window is None else seen & (position[query] - position[key] < sliding_window)

    partial, full = (_list_blocks(blocks, device) for blocks in (some & ~every, every))
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=see, seq_lengths=(length, length))


def _locate_tokens(segments: Sequence[Segment], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each token of a padded row, the end of the tokens that see it, and its position in its sequence.

    Padding sees itself alone.
    """
    stops, positions = np.arange(1, length + 1, dtype=np.int32), np.zeros(length, dtype=np.int32)
    for segment in segments:
        stops[segment.start : segment.stop] = segment.stop
        begin = sum(stop - start for start, stop in segment.before)
        positions[segment.start : segment.stop] = np.arange(begin, begin + segment.stop - segment.start)
        for start, stop in segment.before:
            stops[start:stop] = np.maximum(stops[start:stop], segment.stop)
    return stops, positions


def _list_blocks(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the number of blocks of keys in each row, shape (1, 1, rows), and their columns first in each row."""
    counts = blocks.sum(axis=1, dtype=np.int32)
    columns = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(counts).to(device)[None, None], torch.from_numpy(columns).to(device)[None, None]
