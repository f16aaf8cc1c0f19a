"""Reads encoded battles with one model: packs under a token budget, shared out over processes, resumable.

Packs are formed before they are shared out, from the readings alone, so neither the number of processes nor a restart
changes what is computed. Results carry their row with them; whoever reorders restores.

Read in another pack, or at another place of it, a battle's probability moves by at most 1e-5 in float32 and 0.02 in
bf16, on 8-bit and 4-bit bases too (on a CPU, where tests/test_inference.py holds it to that).
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
from torch import nn
from tqdm.auto import tqdm

from modeling.data.battles import orient_label
from modeling.encoding.packing import PackedSequence, count_added_tokens, pack_sequences

# Least and most of a pack, by kind of device: on a CPU few battles make smaller packs, so that no core waits for long
# at the end; a GPU wants many at once, but how many was not measured yet.
TOKENS_PER_BATCH = {"cpu": (1024, 4096), "cuda": (16384, 16384)}
MIN_PACKS = 12  # that there should be at least, within these bounds


def build_batches(readings: Sequence[Sequence[int]], tokens_per_batch: int) -> list[list[int]]:
    """Row numbers grouped into packs: readings that begin alike stand together, and share their beginnings.

    Args:
        readings: Token ids of each.
        tokens_per_batch: Most tokens of a pack. A reading longer than that makes a pack of its own.

    Example: `build_batches([[3] * 30, [2] * 30, [2] * 40], 60)` is `[[1, 2], [0]]`, packs of 40 and of 30 tokens.
    """
    order = sorted(range(len(readings)), key=lambda row: readings[row])
    batches: list[list[int]] = []
    room = 0
    for row, added in zip(order, count_added_tokens([readings[row] for row in order]), strict=True):
        if batches and added <= room:
            batches[-1].append(row)
            room -= added
        else:
            batches.append([row])
            room = tokens_per_batch - len(readings[row])
    return batches


def choose_budget(readings: Sequence[Sequence[int]], device_type: str) -> int:
    """Most tokens of a pack where nobody says: by device and readings alone, whatever the number of processes."""
    least, most = TOKENS_PER_BATCH.get(device_type, TOKENS_PER_BATCH["cuda"])
    return min(most, max(least, sum(map(len, readings)) // MIN_PACKS))


def predict_battles(
    model: nn.Module,
    encoded: Sequence[dict],
    orientations: str | Sequence[str],
    *,
    tokens_per_batch: int | None = None,
    num_workers: int | None = None,
    deadline: float | None = None,
    name: str = "",
    progress_dir: Path | None = None,
) -> np.ndarray:
    """Probability of each label for encoded readings of battles, in one order or in several.

    Args:
        model: A preference model, on its device, in eval mode.
        encoded: What `BattleEncoder.encode` returned.
        orientations: The order in which they were encoded, of all or of each; columns come back by label whatever it
            is. Two orders of a battle share the tokens of its prompt.
        tokens_per_batch: Most tokens of a pack; see `choose_budget` if None.
        num_workers: Packs that are read at once; if None one on a GPU, and on a CPU one for each core, because a core
            reads a pack of its own faster than many share one.
        deadline: Of `time.monotonic()`: from then on no pack is begun, and the rows of those that were not are NaN.
        name: Names the reading: on the progress bar, and in `progress_dir`, where it must identify the weights.
        progress_dir: Where finished packs are kept until the reading is complete; a later call takes them up.

    Returns:
        Shape (readings, labels), float64, row for row as in `encoded`, the same on every process.
    """
    state, device = PartialState(), next(model.parameters()).device
    readings = [battle["input_ids"] for battle in encoded]
    orders = [orientations] * len(encoded) if isinstance(orientations, str) else orientations
    batches = build_batches(readings, tokens_per_batch or choose_budget(readings, device.type))
    record = None
    if progress_dir is not None:
        record = _ProgressFile(progress_dir, _identify(name, orders, batches, readings), state.process_index)
    done = record.read() if record else {}
    mine = range(state.process_index, len(batches), state.num_processes)
    packs = {index: [readings[row] for row in batches[index]] for index in mine if index not in done}
    found = {index: done[index] for index in mine if index in done}
    num_workers = num_workers or (torch.get_num_threads() if device.type == "cpu" else 1)
    shown = name.split("@")[0] if state.is_main_process else None
    for index, rows in _read_packs(model, packs, num_workers, deadline, shown):
        found[index] = rows
        if record:
            record.append(index, rows)
    by_slot = {index: rows for part in gather_object([found]) for index, rows in part.items()}
    probabilities = _place_rows(by_slot, batches, orders, (len(encoded), model.config.num_labels))
    assert deadline is not None or not np.isnan(probabilities).any(), "a battle was not predicted"
    if record:
        state.wait_for_everyone()
        record.path.unlink(missing_ok=True)
    return probabilities


def _read_packs(
    model: nn.Module, packs: Mapping[int, list], num_workers: int, deadline: float | None, name: str | None
) -> Iterator[tuple[int, list[list[float]]]]:
    """Each pack's number and its readings' probabilities by slot, in order, but for those that come too late.

    A bar counts the readings' tokens and so shows tokens/s and the time left; without a name there is none.
    """

    def read(readings: list) -> list[list[float]] | None:
        """One pack; None once it is too late."""
        late = deadline is not None and time.monotonic() >= deadline
        return None if late else _predict_pack(model, pack_sequences(readings))

    sizes = [sum(map(len, readings)) for readings in packs.values()]
    with tqdm(total=sum(sizes), unit="tok", unit_scale=True, desc=name, disable=name is None) as bar:
        found = map_on_cores(read, list(packs.values()), num_workers)
        for index, rows, size in zip(packs, found, sizes, strict=True):
            if rows is not None:
                yield index, rows
            bar.update(size)


def _place_rows(
    by_slot: Mapping, batches: list[list[int]], orders: Sequence[str], shape: tuple[int, int]
) -> np.ndarray:
    """Each pack's probabilities, by slot, at its readings' rows, by label; NaN at those of packs that were not read."""
    probabilities = np.full(shape, np.nan)
    for index, rows in by_slot.items():
        for row, values in zip(batches[index], rows, strict=True):
            probabilities[row] = orient_label(values, orders[row])
    return probabilities


def map_on_cores(function: Callable, tasks: Sequence, num_workers: int) -> Iterator:
    """The function's results, task for task, from so many threads at once, among which the cores are shared out."""
    threads, num_workers = torch.get_num_threads(), min(num_workers, len(tasks))
    if num_workers <= 1:  # with all cores on one task
        yield from map(function, tasks)
        return
    try:
        # How many cores a thread uses is each thread's own, so it is set in each.
        share = max(1, threads // num_workers)
        with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield from pool.map(function, tasks)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _predict_pack(model: nn.Module, pack: PackedSequence) -> list[list[float]]:
    """Softmax over the slots, one list per reading of the pack."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in pack.to_batch().items()}
    probabilities = torch.softmax(model(**batch).logits.double(), dim=-1)
    if not torch.isfinite(probabilities).all():
        raise ValueError(
            "Prediction: expected finite probabilities; found NaN. The adapter or its base is damaged: train it again. "
            "(In float16 a number may also have exceeded the largest one, 65,504: read with --dtype float32.)"
        )
    return probabilities.tolist()


def _identify(name: str, orders: Sequence[str], batches: list, readings: Sequence[Sequence[int]]) -> str:
    """Hash of all that decides a reading's numbers, so that progress of another run is never taken up."""
    digest = hashlib.sha256(json.dumps([name, list(orders), batches]).encode())
    for reading in readings:
        digest.update(np.asarray(reading, dtype=np.int64).tobytes())
    return digest.hexdigest()[:24]


class _ProgressFile:
    """Finished batches of one reading, a JSON line each; one file per process, all of them read at the start."""

    def __init__(self, folder: Path, identity: str, process: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.identity = folder, identity
        self.path = folder / f"{identity}.{process}.jsonl"
        if self.path.exists():
            # A killed process leaves a torn last line, onto which the next one would be appended.
            written = self.path.read_bytes()
            self.path.write_bytes(written[: written.rfind(b"\n") + 1])

    def read(self) -> dict[int, list[list[float]]]:
        """Probabilities by slot, per batch; the torn last line of a killed process is left out."""
        done = {}
        for path in sorted(self.folder.glob(f"{self.identity}.*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    index, rows = json.loads(line)
                    done[index] = rows
        return done

    def append(self, index: int, rows: list[list[float]]) -> None:
        """Adds one finished batch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([index, rows]) + "\n")
