"""Hidden states of lower layers that do not change: computed once, and replayed in later epochs or by other models.

Attention is causal, so a token's state depends on the tokens before it in its own sequence alone, whatever it is packed
with (on a GPU, 8-bit layers choose outliers over the whole pack, as they do without this). This module must not know
how a training run uses it.
"""

import errno
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from modeling.encoding.packing import PackedSequence, pack_sequences
from modeling.runtime.progress import show_progress

ITEM = 4  # bytes of a float32, in which states are kept: rounding them would change the losses


def count_frozen_layers(layers: Sequence[nn.Module]) -> int:
    """Counts the lowest layers that have no trained parameter."""
    trained = (number for number, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
    return next(trained, len(layers))


def count_shared_layers(networks: Sequence[nn.Module]) -> int:
    """Counts the lowest layers whose weights, like the embeddings', are the same memory in all preference models."""
    weights = [network.get_input_embeddings().weight.data_ptr() for network in networks]
    if len(set(weights)) > 1:
        return 0
    number = 0
    for layers in zip(*(network.list_layers() for network in networks), strict=True):
        if len({tuple(weight.data_ptr() for weight in layer.state_dict().values()) for layer in layers}) > 1:
            break
        number += 1
    return number


class _Replayed(threading.local):
    """What this thread's forward passes get instead of the output of the frozen layers."""

    states: Tensor | None = None


_replayed, _lock = _Replayed(), threading.Lock()
_users: Counter[nn.Module] = Counter()  # threads that replay each layer right now


@contextmanager
def replay_states(layers: Sequence[nn.Module], states: Tensor | None) -> Iterator[None]:
    """Inside, on this thread, the last of these layers gives `states` and the ones below it compute nothing.

    Args:
        layers: The frozen layers, from the lowest.
        states: Output of the last of them, shape (1, tokens, hidden); None computes all layers as usual.
    """
    if states is None:
        yield
        return
    with _lock:
        for layer in layers:
            _users[layer] += 1
            if _users[layer] == 1:
                layer.forward = partial(_replay, layer.forward)  # on the instance, where it hides the class's
    _replayed.states = states
    try:
        yield
    finally:
        _replayed.states = None
        with _lock:
            for layer in layers:
                _users[layer] -= 1
                if not _users[layer]:
                    del layer.forward, _users[layer]


def _replay(forward: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """This thread's states, or what the layer computes if the thread replays none."""
    return forward(*args, **kwargs) if _replayed.states is None else _replayed.states


class FrozenStates:
    """The states of a set of sequences after the frozen layers, in a file.

    Example: `FrozenStates(path, sequences, hidden_size=64)`, then `compute` once, then `gather` for each pack.
    """

    def __init__(self, path: Path, sequences: Sequence[Sequence[int]], hidden_size: int):
        """
        Args:
            path: File to create, of about `measure_states` bytes. It may be unlinked at once.
            sequences: Token ids of each sequence.
            hidden_size: Numbers per token.

        Raises:
            OSError: If the disk has no room.
        """
        # The file is sparse: on a full disk, writing to it later would kill the process without a message.
        if shutil.disk_usage(path.parent).free < measure_states(sum(map(len, sequences)), hidden_size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
        self.sequences = sequences
        self.starts = np.cumsum([0, *map(len, sequences)])
        self.states = np.lib.format.open_memmap(path, "w+", np.float32, (int(self.starts[-1]), hidden_size))
        self.dtype = torch.float32

    @torch.no_grad()
    def compute(self, model: nn.Module, layer: nn.Module, batches: Sequence[Sequence[int]]) -> None:
        """Computes the states of all sequences.

        Args:
            model: The model; what it does above `layer` is skipped.
            layer: The last frozen layer.
            batches: Rows of the sequences to pack together.
        """

        device = next(model.parameters()).device
        with show_progress(total=len(self.states), unit="tok", unit_scale=True, desc="Frozen layers") as bar:
            for rows in batches:
                pack = pack_sequences([self.sequences[row] for row in rows])
                batch = pack.to_batch()
                batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
                output = run_up_to(layer, model, batch)
                self.dtype = output.dtype  # below float32 where the model computes in less
                states = output[0].float().cpu().numpy()
                for row, spans in zip(rows, pack.list_spans(), strict=True):
                    at = self.starts[row]
                    for start, stop in spans:
                        self.states[at : at + stop - start] = states[start:stop]
                        at += stop - start
                bar.update(sum(len(self.sequences[row]) for row in rows))

    def gather(self, pack: PackedSequence, rows: Sequence[int]) -> Tensor:
        """Returns the states of a pack's tokens, shape (1, tokens, hidden).

        Args:
            pack: The packed sequences.
            rows: Their rows, in the order in which they were packed.
        """
        found = np.empty((len(pack.input_ids), self.states.shape[1]), np.float32)
        for row, spans in zip(rows, pack.list_spans(), strict=True):
            at = self.starts[row]
            for start, stop in spans:
                found[start:stop] = self.states[at : at + stop - start]
                at += stop - start
        return torch.from_numpy(found).to(self.dtype)[None]


def measure_states(tokens: int, hidden_size: int) -> int:
    """Returns the bytes that the states of so many tokens take."""
    return ITEM * hidden_size * tokens


def run_up_to(layer: nn.Module, model: nn.Module, batch: Mapping) -> Tensor:
    """Returns a layer's output, shape (1, tokens, hidden), without computing what comes above it.

    Other threads may run the model at the same time.
    """
    own = threading.get_ident()

    def stop(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        """Leaves the forward pass, if it is this thread's."""
        if threading.get_ident() == own:
            raise _Reached(output)

    hook = layer.register_forward_hook(stop)
    try:
        model(**batch)
    except _Reached as reached:
        return reached.output
    finally:
        hook.remove()
    raise AssertionError("the model has no such layer")


class _Reached(Exception):
    """Ends a forward pass at a layer, with its output."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output
