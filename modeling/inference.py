"""Reads encoded battles with one model: batches under a token budget, shared out over processes, resumable.

Batches are formed before they are shared out, from lengths alone, so neither the number of processes nor a restart
changes what is computed. Results carry their row with them; whoever reorders restores.

Read in another batch, at another place or padded on another side, a battle's probability moves by at most 1e-5 in
float32 and 0.02 in bf16, on 8-bit and 4-bit bases too (on a CPU, where tests/test_inference.py holds it to that).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm

from modeling.battles import orient_label
from modeling.collation import BattleCollator

DEFAULT_TOKENS_PER_BATCH = 8192


def build_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Row numbers grouped into batches of like length, longest first.

    Args:
        lengths: Tokens of each battle.
        tokens_per_batch: Most tokens of a batch, padding included: its longest battle times its battles. A battle
            longer than that makes a batch of its own.

    Example: `build_batches([3, 9, 4], 9)` is `[[1], [2, 0]]`.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens_per_batch:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def predict_battles(
    model: nn.Module,
    encoded: Sequence[dict],
    orientation: str,
    *,
    pad_token_id: int,
    tokens_per_batch: int = DEFAULT_TOKENS_PER_BATCH,
    padding_side: str = "right",
    name: str = "",
    progress_dir: Path | None = None,
) -> np.ndarray:
    """Probability of each label for battles that were encoded in `orientation`.

    Args:
        model: A preference model, on its device, in eval mode.
        encoded: What `BattleEncoder.encode` returned.
        orientation: The order in which they were encoded; columns come back by label whatever it is.
        name: Names the reading: on the progress bar, and in `progress_dir`, where it must identify the weights.
        progress_dir: Where finished batches are kept until the reading is complete; a later call takes them up.

    Returns:
        Shape (battles, labels), float64, row for row as in `encoded`, the same on every process.
    """
    state = PartialState()
    batches = build_batches([battle["length"] for battle in encoded], tokens_per_batch)
    record = None
    if progress_dir is not None:
        record = _ProgressFile(progress_dir, _identify(name, orientation, batches, encoded), state.process_index)
    done = record.read() if record else {}
    mine = range(state.process_index, len(batches), state.num_processes)
    found = {index: done[index] for index in mine if index in done}
    todo = [index for index in mine if index not in done]
    collate = BattleCollator(pad_token_id, padding_side)
    for index in _show_progress(todo, batches, encoded, name.split("@")[0], shown=state.is_main_process):
        batch = collate([{"input_ids": encoded[row]["input_ids"]} for row in batches[index]])
        found[index] = _predict_batch(model, batch)
        if record:
            record.append(index, found[index])
    by_slot = {index: rows for part in gather_object([found]) for index, rows in part.items()}
    probabilities = _place_rows(by_slot, batches, orientation, (len(encoded), model.config.num_labels))
    if record:
        state.wait_for_everyone()
        record.path.unlink(missing_ok=True)
    return probabilities


def _show_progress(todo: list[int], batches: list, encoded: Sequence[dict], name: str, shown: bool) -> Iterator[int]:
    """The batches to do, one by one, under a bar that counts tokens and so shows tokens/s and the time left."""
    tokens = {index: sum(encoded[row]["length"] for row in batches[index]) for index in todo}
    with tqdm(total=sum(tokens.values()), unit="tok", unit_scale=True, desc=name, disable=not shown) as bar:
        for index in todo:
            yield index
            bar.update(tokens[index])


def _place_rows(by_slot: dict, batches: list[list[int]], orientation: str, shape: tuple[int, int]) -> np.ndarray:
    """Each batch's probabilities, by slot, at its battles' rows, by label."""
    probabilities = np.full(shape, np.nan)
    for index, rows in by_slot.items():
        for row, values in zip(batches[index], rows, strict=True):
            probabilities[row] = orient_label(values, orientation)
    assert not np.isnan(probabilities).any(), "a battle was not predicted"
    return probabilities


@torch.inference_mode()
def _predict_batch(model: nn.Module, batch: dict) -> list[list[float]]:
    """Softmax over the slots, one list per battle of the batch."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    probabilities = torch.softmax(model(**batch).logits.double(), dim=-1)
    if not torch.isfinite(probabilities).all():
        raise ValueError(
            "Prediction: expected finite probabilities; found NaN. The adapter or its base is damaged; train it again."
        )
    return probabilities.tolist()


def _identify(name: str, orientation: str, batches: list, encoded: Sequence[dict]) -> str:
    """Hash of all that decides a reading's numbers, so that progress of another run is never taken up."""
    digest = hashlib.sha256(json.dumps([name, orientation, batches]).encode())
    for battle in encoded:
        digest.update(np.asarray(battle["input_ids"], dtype=np.int64).tobytes())
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
