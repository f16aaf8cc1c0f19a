"""One judge for many users: checks what they send against limits, judges one request at a time, returns plain values.

It must not know a web framework, so that every refusal and every answer can be tested without one.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftModel
from torch import nn

from modeling.data.battles import LABELS, ORIENTATIONS, TEXTS, load_battles, name_winners
from modeling.data.text import replace_surrogates
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.metrics import compute_accuracy
from modeling.judging.judge import Judge
from modeling.judging.member import JUDGE_FILE
from modeling.judging.predictions import write_verdicts
from modeling.judging.provenance import describe_predictions
from modeling.runtime.paths import BATTLE_ENDINGS
from modeling.runtime.sources import iterate_columns

logger = get_logger(__name__)

TITLES = dict(zip(TEXTS, ("Prompt", "Answer A", "Answer B"), strict=True))
MAX_ID_LENGTH = 200
# Rows of an upload read at once. Few, because a parquet file of some kilobytes can hold the same megabyte on every row.
UPLOAD_CHUNK_ROWS = 16
MAX_EXPANSION = 8  # a compressed file may unpack to this many times the upload limit


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Upper limits of one request: characters per text, battles and bytes per file."""

    max_characters: int
    max_battles: int
    max_bytes: int


@dataclass(frozen=True)
class FileVerdicts:
    """The verdicts on a file: the two files that predict.py writes, and a one-line summary."""

    predictions: Path
    submission: Path
    summary: str


# --- requests ---------------------------------------------------------------------------------------------------------


def check_battle(texts: Mapping[str, object], limits: RequestLimits, id: object = "") -> dict:
    """Returns a battle with the texts unchanged, except that lone surrogates become U+FFFD.

    Raises:
        ValueError: If a text is missing or too long, or the id is neither a short text nor a whole number.
    """
    if isinstance(id, bool) or not isinstance(id, str | int) or len(str(id)) > MAX_ID_LENGTH:
        raise ValueError(f"id: expected a text of at most {MAX_ID_LENGTH} characters, or a whole number. Shorten it.")
    battle = {"id": replace_surrogates(id) if isinstance(id, str) else id}
    for name, title in TITLES.items():
        text = texts.get(name)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{title}: expected text; found {type(text).__name__}. Send {name} as a string.")
        if not text or not text.strip():
            raise ValueError(f"{title}: expected some text; found none. Type or paste it.")
        check_bound(title, len(text), limits.max_characters, "characters")
        battle[name] = replace_surrogates(text)  # JSON lets lone ones in; the tokenizer refuses them
    return battle


def check_bound(where: str, found: int, most: int, unit: str) -> None:
    """Raises a ValueError if a request exceeds a limit."""
    if found > most:
        raise ValueError(
            f"{where}: expected at most {most:,} {unit}; found {found:,}. Send less at a time, or run "
            "scripts/predict.py, which has no limit."
        )


def load_upload(path: Path, limits: RequestLimits) -> Dataset:
    """Returns the battles of an uploaded file, in any schema that `load_battles` reads.

    Raises:
        ValueError: If the file exceeds a limit, or `load_battles` refuses it. The message is one line and names the
            file without its folder: users need not know where the server keeps uploads.
    """
    try:
        check_upload(path, limits)
        battles = load_battles(path)
    except (ValueError, OSError) as error:
        raise ValueError(" ".join(str(error).replace(str(path), path.name).split())) from error
    if not len(battles):
        raise ValueError(f"{path.name}: expected at least one battle; found none. Send a file with rows.")
    return battles


def check_upload(path: Path, limits: RequestLimits) -> None:
    """Raises a ValueError if the file exceeds a limit. Reads it in small parts, so that a huge one fills no memory."""
    check_bound(str(path), path.stat().st_size, limits.max_bytes, "bytes")
    if path.suffix.lower() not in BATTLE_ENDINGS:  # a small packed file may hold more than the memory
        raise ValueError(
            f"{path}: expected a file ending in {', '.join(BATTLE_ENDINGS)}; found {path.suffix or 'no ending'!r}. "
            "Unpack or convert it."
        )
    if path.suffix.lower() == ".parquet":
        check_bound(str(path), _measure_unpacked(path), MAX_EXPANSION * limits.max_bytes, "bytes once unpacked")
    num_rows = 0
    for columns in iterate_columns(path, UPLOAD_CHUNK_ROWS):
        for name, values in columns.items():
            for number, value in enumerate(values, num_rows + 1):
                where, length = f"{path}, row {number}, {name}", len(value if isinstance(value, str) else str(value))
                check_bound(where, length, limits.max_characters, "characters")
        num_rows += max(map(len, columns.values()), default=0)
        check_bound(str(path), num_rows, limits.max_battles, "battles")


def _measure_unpacked(path: Path) -> int:
    """Bytes of a parquet file's columns before compression, from its metadata; 0 if the file is damaged."""
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return 0  # load_battles will refuse it, with a better message
    return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))


# --- one judge for everybody ------------------------------------------------------------------------------------------


class ServedJudge:
    """One loaded judge that any number of threads may ask; it runs one request at a time, every member in both orders.

    Example: `ServedJudge(judge, limits).judge_battle({"prompt": ..., "response_a": ..., "response_b": ...})`.
    """

    def __init__(self, judge: Judge, limits: RequestLimits):
        self.judge, self.limits = judge, limits
        if judge.plan_passes() != judge.plan_passes("both"):
            logger.warning(
                f"The page reads both orders, whereas this judge's {JUDGE_FILE} says --readings {judge.readings}: its "
                "probabilities are those of predict.py --readings both, not calibrated"
            )
        # A plain lock is not fair: a file that releases it between two packs would nearly always take it right back.
        # A request therefore waits for the model while it holds the entrance, where the file must queue up as well.
        # First come, first served among battles is the job of Gradio's queue, which lets in one battle and one file.
        self._entrance, self._model_in_use = threading.Lock(), threading.Lock()

    def judge_battle(self, texts: Mapping[str, object], id: object = "") -> dict:
        """Returns the verdict on one battle, as `explain_verdict` describes it.

        Args:
            texts: prompt, response_a and response_b.
            id: Returned unchanged, so that callers can match answers to requests.

        Raises:
            ValueError: See `check_battle`.
        """
        battle = check_battle(texts, self.limits, id)
        with self._use_model():
            start = time.perf_counter()
            verdicts = self.judge.predict([battle], readings="both")
            seconds = time.perf_counter() - start
        return explain_verdict(verdicts, self._member_names, seconds)

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
        with self._use_model(), self._yield_between_packs(len(battles), report_progress):
            # One pack at a time: a battle judged between two packs may switch the adapter of a shared base.
            verdicts = self.judge.predict(battles, readings="both", num_workers=1)
        seconds = time.perf_counter() - start
        paths = write_verdicts(folder, verdicts, describe_predictions(self.judge, verdicts, str(path), "both"))
        return FileVerdicts(*paths, summarise_verdicts(verdicts, battles, self._member_names, seconds))

    @property
    def _member_names(self) -> list[str]:
        """Names of the judge's members, in order."""
        return [member.name for member in self.judge.members]

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

    @contextmanager
    def _yield_between_packs(self, num_battles: int, report_progress: Callable[[float], None]) -> Iterator[None]:
        """Lets a waiting battle go first before each pack of this thread: a hook on the models, as predict has none."""
        num_passes, done, reader = num_battles * len(self.judge.plan_passes("both")), 0, threading.get_ident()

        def yield_model(model: nn.Module, _, batch: dict) -> None:
            """Reports progress and hands the model over once."""
            nonlocal done
            if threading.get_ident() != reader:
                return  # the battle that goes first runs the same model, and so this hook
            report_progress(done / num_passes)
            done += len(batch["ends"])
            adapter = model.active_adapter if isinstance(model, PeftModel) else None
            self._model_in_use.release()
            self._wait_for_model()
            if adapter is not None:  # the battle may have switched to another member's
                model.set_adapter(adapter, inference_mode=True)

        with ExitStack() as hooks:
            for model in {member.model for member in self.judge.members}:  # members of one base share one model
                hooks.enter_context(model.register_forward_pre_hook(yield_model, with_kwargs=True))
            yield


# --- answers ----------------------------------------------------------------------------------------------------------


def average_orders(verdicts: pd.DataFrame, members: list[str]) -> dict[str, pd.Series]:
    """Returns the mean p_a of the members, shape (battles,), for each order."""
    return {order: verdicts[[f"p_a_{name}_{order}" for name in members]].mean(axis=1) for order in ORIENTATIONS}


def explain_verdict(verdicts: pd.DataFrame, members: list[str], seconds: float) -> dict:
    """Returns the verdict on one battle as JSON values.

    Args:
        verdicts: The single row that `Judge.predict` returned.
        members: Their names.
        seconds: Time that the judge took.

    Returns:
        id; winner ("model_a" or "model_b"); p_a and p_b; readings (p_a for each order; "ab" shows a first);
        order_mattered (whether the two orders give different winners); cut (tokens truncated in each field);
        tokens (of the longest pass); seconds.
    """
    row = verdicts.to_dict("records")[0]
    p_by_order = {order: float(p_a.iloc[0]) for order, p_a in average_orders(verdicts, members).items()}
    return {
        "id": row["id"],
        "winner": row["winner"],
        **{f"p_{label}": float(row[f"p_{label}"]) for label in LABELS},
        "readings": p_by_order,
        "order_mattered": len(set(name_winners(p_by_order.values()))) > 1,
        "cut": {name: int(row[column]) for name, column in zip(TEXTS, CUT_COLUMNS, strict=True)},
        "tokens": int(row["tokens"]),
        "seconds": round(seconds, 3),
    }


def summarise_verdicts(verdicts: pd.DataFrame, battles: Dataset, members: list[str], seconds: float) -> str:
    """Returns one line about the verdicts on a file, with the accuracy if the file has labels."""
    first, second = (np.array(name_winners(p_a)) for p_a in average_orders(verdicts, members).values())
    num_a, num_cut = (verdicts["winner"] == "model_a").sum(), verdicts[list(CUT_COLUMNS)].any(axis=1).sum()
    parts = [
        f"{len(verdicts):,} battles in {seconds:.1f} s",
        f"A wins {num_a:,}, B {len(verdicts) - num_a:,}",
        f"the order changed the winner in {(first != second).sum():,}",
        f"{num_cut:,} truncated",
    ]
    if "label" in battles.column_names:
        p = verdicts[[f"p_{label}" for label in LABELS]].to_numpy()
        parts.append(f"accuracy {compute_accuracy(p, np.array(battles['label'][:]))}")
    return "; ".join(parts) + "."
