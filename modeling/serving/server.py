"""One judge for many users: single battles are read together, files one packed sequence at a time in between.

It must not know a web framework, so that every answer can be tested without one.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from modeling.data.battles import TEXTS, read_battles
from modeling.data.outcomes import TIE, match_labels
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.metrics import compute_accuracy
from modeling.evaluation.report import stack_probabilities
from modeling.judging.judge import Judge
from modeling.judging.member import JUDGE_FILE
from modeling.judging.predictions import write_verdicts
from modeling.judging.provenance import describe_predictions
from modeling.judging.verdicts import Verdict, explain_verdict, name_by_order
from modeling.runtime.logs import build_logger
from modeling.serving.batching import BatchingQueue
from modeling.serving.requests import RequestLimits, check_battle, load_upload

logger = build_logger(__name__)

# Most tokens of one order that are read together, by kind of device.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
BYTES_PER_TOKEN = 4  # of English in UTF-8; only for the size of a batch


@dataclass(frozen=True)
class FileVerdicts:
    """The verdicts on a file: the two files that predict.py writes, a one-line summary, and what is in them."""

    predictions: Path
    submission: Path
    summary: str
    verdicts: pd.DataFrame
    battles: Dataset


class ServedJudge:
    """One loaded judge that any number of threads may ask.

    Battles that wait at the same time are read together. `close` must be called at the end.

    Example: `await ServedJudge(judge, limits).judge_battle({"prompt": ..., "response_a": ..., "response_b": ...})`.

    Args:
        judge: The judge.
        limits: Of one request.
        max_waiting: Most battles that may wait to be read.
        readings: See `Judge.plan_passes`.
        count_batch: Called after each batch with its battles, their tokens and the seconds that it took.
        count_file: Called after each file with its battles and their tokens.
    """

    def __init__(
        self,
        judge: Judge,
        limits: RequestLimits,
        max_waiting: int = 100,
        readings: str = "both",
        *,
        count_batch: Callable[[int, int, float], None] = lambda battles, tokens, seconds: None,
        count_file: Callable[[int, int], None] = lambda battles, tokens: None,
    ):
        self.judge, self.limits, self.name = judge, limits, judge.name
        self._count_batch, self._count_file = count_batch, count_file
        self.readings = readings
        if judge.plan_passes() != judge.plan_passes(readings):
            logger.warning(
                f"The app runs --readings {readings}, whereas this judge's {JUDGE_FILE} says {judge.readings}: its "
                f"probabilities are those of predict.py --readings {readings}, not calibrated"
            )
        # A plain lock is not fair: a file that releases it between two packs would nearly always take it right back.
        # A batch therefore waits for the model while it holds the entrance, where the file must queue up as well.
        self._entrance, self._model_in_use = threading.Lock(), threading.Lock()
        device = next(judge.members[0].model.parameters()).device.type
        self.queue = BatchingQueue(
            self._read, _estimate_tokens, BATCH_TOKENS.get(device, BATCH_TOKENS["cuda"]), max_waiting=max_waiting
        )

    def submit(self, battles: Sequence[Mapping]) -> list[Future[Verdict]]:
        """Adds checked battles to those that wait, all or none, and returns a future for each verdict.

        Args:
            battles: What `check_battle` returned.

        Raises:
            QueueFullError: If too many wait.
        """
        return self.queue.submit(battles)

    async def judge_battles(self, battles: Sequence[Mapping]) -> list[Verdict]:
        """Returns the verdicts on checked battles. Cancelling it takes those out that still wait.

        Raises:
            QueueFullError: If too many wait.
        """
        return await asyncio.gather(*map(asyncio.wrap_future, self.submit(battles)))

    async def judge_battle(self, body: object) -> dict:
        """Returns the fields of the `Verdict` on one battle, and `seconds`, from the request to the answer.

        Args:
            body: See `check_battle`.

        Raises:
            InvalidRequest: See `check_battle`.
            QueueFullError: If too many wait.
        """
        start = time.perf_counter()
        (verdict,) = await self.judge_battles([check_battle(body, self.limits)])
        return verdict.to_dict() | {"seconds": round(time.perf_counter() - start, 3)}

    def close(self) -> None:
        """Accepts no more battles, and returns when all that wait are answered."""
        self.queue.close()

    def _read(self, battles: Sequence[Mapping]) -> list[Verdict]:
        """Reads a batch of battles."""
        # Two users may send the same id.
        rows = [{**battle, "id": number} for number, battle in enumerate(battles)]
        # Read as they are: `check_battle` has checked them, and a text may look like a list of turns.
        checked = read_battles(rows, schema="unlabelled", blank_policy="keep")
        with self._use_model():
            start = time.perf_counter()
            table = self.judge.predict(checked, readings=self.readings)
            self._count_batch(len(rows), int(table["tokens"].sum()), time.perf_counter() - start)
        return [
            replace(explain_verdict(table.iloc[[number]], battle), id=battle["id"])
            for number, battle in enumerate(battles)
        ]

    def judge_file(
        self, path: Path, folder: Path, report_progress: Callable[[float], None] = lambda share: None
    ) -> FileVerdicts:
        """Writes the verdicts on all battles of a file. A single battle that arrives meanwhile is answered first.

        Args:
            path: A parquet, csv or jsonl file.
            folder: Where to write; created if it does not exist.
            report_progress: Called before each packed sequence with the share of passes done, from 0 to 1.

        Raises:
            ValueError: See `load_upload`.
        """
        battles = load_upload(path, self.limits)
        start = time.perf_counter()
        num_reads, done = len(battles) * len(self.judge.plan_passes(self.readings)), 0

        def start_pack(sequences: int) -> None:
            """Reports progress and lets a batch that waits go first."""
            nonlocal done
            report_progress(min(1.0, done / num_reads))
            done += sequences
            self._model_in_use.release()
            self._wait_for_model()

        with self._use_model():
            # One pack at a time, because others must not run while a batch of battles is read.
            verdicts = self.judge.predict(battles, readings=self.readings, num_workers=1, start_pack=start_pack)
        seconds = time.perf_counter() - start
        paths = write_verdicts(folder, verdicts, describe_predictions(self.judge, verdicts, str(path), self.readings))
        self._count_file(len(battles), int(verdicts["tokens"].sum()))
        return FileVerdicts(*paths, summarise_verdicts(verdicts, battles, seconds), verdicts, battles)

    def _wait_for_model(self) -> None:
        """Takes the model, behind the request at the entrance, if there is one."""
        with self._entrance:
            self._model_in_use.acquire()

    @contextmanager
    def _use_model(self) -> Iterator[None]:
        """Holds the model for one request."""
        self._wait_for_model()
        try:
            yield
        finally:
            self._model_in_use.release()


def _estimate_tokens(battle: Mapping) -> int:
    """About the tokens of a battle in one order."""
    return sum(len(battle[name].encode()) for name in TEXTS) // BYTES_PER_TOKEN


def summarise_verdicts(verdicts: pd.DataFrame, battles: Dataset, seconds: float) -> str:
    """Returns one line about the verdicts on a file, with the accuracy if the file has labels."""
    winners = [np.array(names) for names in name_by_order(verdicts).values()]
    wins, num_cut = verdicts["winner"].value_counts(), verdicts[list(CUT_COLUMNS)].any(axis=1).sum()
    ties = f", ties {wins.get(TIE, 0):,}" * ("p_tie" in verdicts)
    parts = [
        f"{len(verdicts):,} battles in {seconds:.1f} s",
        f"A wins {wins.get('model_a', 0):,}, B {wins.get('model_b', 0):,}{ties}",
        f"the order changed the winner in {(winners[0] != winners[-1]).sum():,}",
        f"{num_cut:,} truncated",
    ]
    if "label" in battles.column_names:
        p = stack_probabilities(verdicts)
        parts.append(f"accuracy {compute_accuracy(p, match_labels(np.array(battles['label'][:]), p.shape[1]))}")
    return "; ".join(parts) + "."
