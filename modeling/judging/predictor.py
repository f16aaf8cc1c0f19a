"""Runs models over encoded battles: packs sequences under a token budget, spreads packs over processes, resumes.

Packs are formed from the sequences alone, before they are spread, so neither the number of processes nor a restart
changes a result. Every result carries its row number. Prediction, calibration and evaluation during training all come
through here. It must not know members, judges or files of battles.

A battle's probability depends on its pack, and on its place in the pack, by at most 1e-5 in float32 and 0.02 in bf16,
on 8-bit and 4-bit bases too (measured on a CPU; tests/judging/test_predictor.py holds it to that).
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from bitsandbytes.nn import Linear8bitLt
from torch import nn

from modeling.data.battles import orient_label
from modeling.encoding.packing import PackedSequence, count_added_tokens, pack_sequences
from modeling.network.frozen import replay_states, run_up_to
from modeling.runtime.devices import measure_gpu
from modeling.runtime.progress import show_progress

# Smallest and largest token budget of a pack, by kind of device. On a CPU each core runs its own pack, and smaller
# packs keep every core busy until the end. The GPU's was used on an H200; others were not compared. On a card of 16 GB,
# Gemma-2-9B in 8 bit has room for the smaller one (`predict.py --dry_run true` computes it).
TOKENS_PER_BATCH = {"cpu": (1024, 4096), "small": (8192, 8192), "cuda": (16384, 16384)}
SMALL_GPU = 20_000_000_000  # bytes
MIN_PACKS = 12  # aim for this many packs, within the bounds above


def build_batches(sequences: Sequence[Sequence[int]], tokens_per_batch: int) -> list[list[int]]:
    """Groups sequences into packs, and returns the row numbers of each pack.

    Sequences are sorted by their ids, so that those with a shared prefix are neighbours and mostly share a pack.

    Args:
        sequences: Token ids of each.
        tokens_per_batch: Most tokens of a pack. A longer sequence gets a pack of its own.

    Example: `build_batches([[3] * 30, [2] * 30, [2] * 40], 60)` is `[[1, 2], [0]]`, packs of 40 and of 30 tokens.
    """
    order = sorted(range(len(sequences)), key=lambda row: sequences[row])
    batches: list[list[int]] = []
    room = 0
    for row, added in zip(order, count_added_tokens([sequences[row] for row in order]), strict=True):
        if batches and added <= room:
            batches[-1].append(row)
            room -= added
        else:
            batches.append([row])
            # The first sequence of a pack shares its prefix with nothing: it counts in full.
            room = tokens_per_batch - len(sequences[row])
    return batches


def choose_budget(sequences: Sequence[Sequence[int]], device_type: str) -> int:
    """Default token budget of a pack.

    It depends on sequences and kind of device only. With the number of processes in it, a launch on more processes
    would form other packs and so give slightly different probabilities.
    """
    least, most = get_bounds(device_type)
    lengths = [len(sequence) for sequence in sequences]
    budget = min(most, max(least, sum(lengths) // MIN_PACKS))
    pairs = round(sum(lengths) / budget / 2)
    if least == most or not pairs:
        return budget
    # An even number of packs of about one size: of three packs, one of two cores would get two.
    return min(most, sum(lengths) // (2 * pairs) + max(lengths) // 2)


def get_bounds(device_type: str) -> tuple[int, int]:
    """Returns the smallest and the largest default token budget on such a device."""
    if device_type == "cuda" and torch.cuda.is_available() and measure_gpu() < SMALL_GPU:
        return TOKENS_PER_BATCH["small"]
    return TOKENS_PER_BATCH.get(device_type, TOKENS_PER_BATCH["cuda"])


def predict_battles(
    model: nn.Module, encoded: Sequence[Mapping], orientations: str | Sequence[str], **options
) -> np.ndarray:
    """Predicts the probability of each label for encoded battles, shape (sequences, labels).

    Args:
        model: A preference model, on its device, in eval mode; not wrapped for distributed training.
        encoded, orientations, options: See `predict_together`.
    """
    return predict_together([model], encoded, orientations, **options)[0]


def predict_together(
    models: Sequence[nn.Module],
    encoded: Sequence[Mapping],
    orientations: str | Sequence[str],
    *,
    num_shared_layers: int = 0,
    tokens_per_batch: int | None = None,
    num_workers: int | None = None,
    deadline: float | None = None,
    name: str | None = "",
    progress_dir: Path | None = None,
    start_pack: Callable[[int], None] = lambda sequences: None,
) -> np.ndarray:
    """Predicts the probability of each label for encoded battles, by several models.

    Every process of a launch has to call this. All run the same number of forwards, unless there is a `deadline` or a
    `progress_dir`.

    Args:
        models: Preference models, on one device, in eval mode; not wrapped for distributed training.
        encoded: What `BattleEncoder.encode` returned; only `input_ids` are read. To read a battle in both orders,
            pass both of its encodings: they share the tokens of the prompt.
        orientations: The order in which all of them, or each of them, was encoded.
        num_shared_layers: Lowest layers that are the same in all models, see `count_shared_layers`. Each pack goes
            through them once.
        tokens_per_batch: Most tokens of a pack; `choose_budget` decides if None.
        num_workers: Packs that run at once. None: one on a GPU, and one per core on a CPU, where a core with its own
            pack is faster than several cores sharing one.
        deadline: A time of `time.monotonic()`. No pack starts after it; the rows of packs that did not start are NaN.
        name: Shown on the progress bar; None shows no bar. With `progress_dir` it must identify the weights.
        progress_dir: Folder that keeps finished packs, so that a later call with the same input resumes. It grows with
            every call: whoever asked for the predictions removes it once they are written, and no sooner, or a crash in
            the last of many passes would cost all of them.
        start_pack: Called before each pack with its number of sequences, on the thread that runs it.

    Returns:
        Shape (models, sequences, labels), float64, in the order of `encoded`, by label (not by slot), the same on every
        process.

    Raises:
        ValueError: If a probability is not finite.
    """
    state, device = PartialState(), next(models[0].parameters()).device
    # Equal texts are read once. Read twice, in two packs, they could differ by a rounding, and a battle of two equal
    # answers would get a winner.
    sequences, places = _drop_repeated([battle["input_ids"] for battle in encoded])
    orders = [orientations] * len(encoded) if isinstance(orientations, str) else orientations
    batches = build_batches(sequences, tokens_per_batch or choose_budget(sequences, device.type))
    record = None
    if progress_dir is not None:
        record = _ProgressFile(progress_dir, _identify(name, orders, batches, sequences), state.process_index)
    done = record.read() if record else {}
    mine = _share_out(len(batches), state.process_index, state.num_processes)
    packs = {index: [sequences[row] for row in batches[index]] for index in mine if index not in done}
    found = {index: done[index] for index in mine if index in done}
    num_workers = num_workers or (torch.get_num_threads() if device.type == "cpu" else 1)
    shown = name.split("@")[0] if state.is_main_process and name is not None else None

    def run(sequences: list) -> list | None:
        """Probabilities of one pack; None after the deadline."""
        if deadline is not None and time.monotonic() >= deadline:
            return None
        start_pack(len(sequences))
        return _predict_pack(models, pack_sequences(sequences), num_shared_layers)

    for model in models:
        _prepare_8bit_layers(model)
    for index, rows in _run_packs(run, packs, num_workers, shown):
        found[index] = rows
        if record:
            record.append(index, rows)
    by_slot = {index: rows for part in gather_object([found]) for index, rows in part.items()}
    unique = _place_rows(by_slot, batches, (len(models), len(sequences), models[0].config.num_labels))
    probabilities = np.array([orient_label(unique[:, at].T, order) for at, order in zip(places, orders, strict=True)])
    probabilities = probabilities.reshape(len(encoded), models[0].config.num_labels, len(models)).transpose(2, 0, 1)
    assert deadline is not None or not np.isnan(probabilities).any(), "a battle was not predicted"
    return probabilities


def _drop_repeated(sequences: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """The sequences without repetitions, in the order of their first appearance, and the place of each among them."""
    # By a hash: the ids themselves as keys would take the memory of all sequences again.
    numbers: dict[bytes, int] = {}
    unique, places = [], []
    for ids in sequences:
        number = numbers.setdefault(hashlib.sha256(np.asarray(ids, dtype=np.int64)).digest(), len(unique))
        if number == len(unique):
            unique.append(ids)
        places.append(number)
    return unique, places


def _share_out(num_packs: int, process: int, num_processes: int) -> list[int]:
    """Numbers of the packs that a process runs, unless finished or late: as many as every other process."""
    # ZeRO-3 collects each layer's weights from all processes, so a process with a forward less than the others would
    # leave them waiting for ever. In the last round the last pack fills up; its results are the same from each process,
    # and it costs no time, because the other processes are busy with that round anyway.
    return [min(first + process, num_packs - 1) for first in range(0, num_packs, num_processes)]


def _run_packs(
    run: Callable[[list], list | None], packs: Mapping[int, list], num_workers: int, name: str | None
) -> Iterator[tuple[int, list]]:
    """Yields each pack's number and what `run` returned, in order, without the packs that came after the deadline.

    The bar counts tokens, which makes it show tokens/s and a true remaining time. Without a name there is none.
    """
    sizes = [sum(map(len, sequences)) for sequences in packs.values()]
    with show_progress(total=sum(sizes), unit="tok", unit_scale=True, desc=name, disable=name is None) as bar:
        found = map_on_cores(run, list(packs.values()), num_workers)
        for index, rows, size in zip(packs, found, sizes, strict=True):
            if rows is not None:
                yield index, rows
            bar.update(size)


def _prepare_8bit_layers(model: nn.Module) -> None:
    """Does now what the first forward of an 8-bit layer would do."""
    # That forward moves the scales from the weight to the layer's state, which two threads must not do at once.
    for module in model.modules():
        if isinstance(module, Linear8bitLt) and module.weight.CB is not None:
            module.init_8bit_state()


def _place_rows(by_slot: Mapping, batches: list[list[int]], shape: tuple[int, int, int]) -> np.ndarray:
    """Probabilities by slot in the order of the sequences, from those of each pack; NaN where a pack did not run."""
    probabilities = np.full(shape, np.nan)
    for index, rows in by_slot.items():
        probabilities[:, batches[index]] = rows
    return probabilities


def map_on_cores(function: Callable, tasks: Sequence, num_workers: int) -> Iterator:
    """Yields the function's result for each task, in order, from threads that split the cores between them."""
    threads, num_workers = torch.get_num_threads(), min(num_workers, len(tasks))
    if num_workers <= 1:  # all cores work on one task
        yield from map(function, tasks)
        return
    try:
        # torch keeps the number of cores per thread, so each thread has to set its own.
        share = max(1, threads // num_workers)
        with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield from pool.map(function, tasks)
    finally:
        torch.set_num_threads(threads)


# Not inference_mode: what a forward stores in it, such as weights that ZeRO-3 collects or states of bitsandbytes, could
# not take part in the training that goes on after an evaluation.
@torch.no_grad()
def _predict_pack(models: Sequence[nn.Module], pack: PackedSequence, num_shared_layers: int) -> list[list[list[float]]]:
    """Softmax over the slots: for each model, one list per sequence of the pack."""
    device = next(models[0].parameters()).device
    batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in pack.to_batch().items()}
    states = None
    if num_shared_layers:
        states = run_up_to(models[0].list_layers()[num_shared_layers - 1], models[0], batch)
    logits = []
    for model in models:
        with replay_states(model.list_layers()[:num_shared_layers] if num_shared_layers else [], states):
            logits.append(model(**batch).logits.float())
    # On the CPU, because Apple's GPUs have no float64.
    probabilities = torch.softmax(torch.stack(logits).cpu().double(), dim=-1)
    if not torch.isfinite(probabilities).all():
        raise ValueError(
            "Prediction: expected finite probabilities; found NaN. The adapter or its base is damaged, or training "
            "diverged: train again. (In float16 a number may also have exceeded the largest one, 65,504: take "
            "--dtype float32.)"
        )
    return probabilities.tolist()


def _identify(name: str | None, orders: Sequence[str], batches: list, sequences: Sequence[Sequence[int]]) -> str:
    """Hash of everything that decides the numbers, so that a call never resumes the progress of another one."""
    digest = hashlib.sha256(json.dumps([name, list(orders), batches]).encode())
    for ids in sequences:
        digest.update(np.asarray(ids, dtype=np.int64).tobytes())
    return digest.hexdigest()[:24]


class _ProgressFile:
    """Finished packs of one call as JSON lines: a file per process, all of them read at the start."""

    def __init__(self, folder: Path, identity: str, process: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.identity = folder, identity
        self.path = folder / f"{identity}.{process}.jsonl"
        if self.path.exists():
            # A killed process leaves half a line, to which the next line would be appended.
            written = self.path.read_bytes()
            self.path.write_bytes(written[: written.rfind(b"\n") + 1])

    def read(self) -> dict[int, list]:
        """Probabilities by model, sequence and slot of each finished pack, from the files of all processes."""
        done = {}
        # All files: a restart may have another number of processes.
        for path in sorted(self.folder.glob(f"{self.identity}.*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # another process may be cutting its half line off right now
                    index, rows = json.loads(line)
                    done[index] = rows
        return done

    def append(self, index: int, rows: list) -> None:
        """Adds one finished pack."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([index, rows]) + "\n")
