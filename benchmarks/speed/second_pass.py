"""Measures accuracy against seconds as the share of battles that get every pass grows."""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.speed import notebook
from benchmarks.speed.padding import PREDICTION_BATCH
from benchmarks.speed.rounds import Round, run_in_rounds
from benchmarks.speed.ways import NOTEBOOK
from modeling.data.battles import load_battles
from modeling.data.near_duplicates import group_texts
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.metrics import find_losses
from modeling.judging.judge import Judge
from modeling.judging.predictions import average_passes
from modeling.judging.schedule import PassSchedule

SHARES = tuple(round(0.1 * n, 1) for n in range(11))
DRAWS = 2000  # of the bootstrap


def build_selective(judge: Sequence[str], rows: Sequence[dict], readings: str | None) -> Round:
    """Returns a round that makes every first pass, then the other passes for one tenth of the battles after another,
    the most uncertain first; and finally every pass at once, as predict.py does without --second_reading.
    """
    loaded = Judge.from_pretrained(judge)
    plan = loaded.plan_passes(readings)

    def run(number: int) -> dict:
        """Seconds and p_a by share, and of every pass at once."""
        schedule, seconds, p = PassSchedule(plan, rows), [], []
        every, order = np.full(schedule.p.shape[:2], True), []
        for share in SHARES:
            start = time.perf_counter()
            if not order:
                schedule.read(schedule.choose_first_passes())
                order = schedule.rank_by_uncertainty().tolist()
            else:
                again = np.full(schedule.p.shape[:2], False)
                again[:, order[: round(share * len(rows))]] = True
                schedule.read(again)  # skips the passes that it made before
            seconds.append(time.perf_counter() - start)
            p.append(average_passes(schedule.p)[:, 0])
        together = PassSchedule(plan, rows)
        start = time.perf_counter()
        together.read(every)
        whole = time.perf_counter() - start
        p_together = average_passes(together.p)[:, 0]
        return {"seconds": np.cumsum(seconds).tolist(), "p_a": p, "together": whole, "p_together": p_together}

    return run


def benchmark_second_pass(battles: str, judge: Sequence[str], readings: str | None, sample: int) -> dict:
    """Returns accuracy, log loss and seconds by share, with bootstrap intervals, beside the notebook's seconds.

    Args:
        battles: File with winners; ties are dropped.
        sample: Battles on which the notebook's way is timed. Its seconds for all battles are scaled up by tokens.
    """
    data = load_battles(battles, tie_policy="drop")
    rows, truth = data.to_list(), np.array(data["label"][:])
    sampled = data.shuffle(seed=0).select(range(min(sample, len(rows)))).to_list()
    loaded = Judge.from_pretrained(judge, merge="never", skip_probes=True)
    tokens = {
        name: int(PassSchedule(loaded.plan_passes(readings), each).lengths[..., 0].sum())
        for name, each in (("all", rows), ("sampled", sampled))
    }
    del loaded  # its memory is for the ways
    ways = {
        NOTEBOOK: partial(notebook.build_predictor, judge, [sampled], readings, PREDICTION_BATCH),
        "ours": partial(build_selective, judge, rows, readings),
    }
    found = {name: rounds[0] for name, rounds in run_in_rounds(ways, 1).items()}
    loop = found[NOTEBOOK]["seconds"] * tokens["all"] / tokens["sampled"]
    ours = found["ours"]
    resampler = Resampler(np.array(group_texts(data["prompt"][:])), DRAWS)
    curve = [
        _score(share, seconds, p_a, loop, truth, resampler)
        for share, seconds, p_a in zip(SHARES, ours["seconds"], ours["p_a"], strict=True)
    ]
    whole = _score(1.0, ours["together"], ours["p_together"], loop, truth, resampler)
    return {"battles": len(rows), "tokens": tokens, "notebook_seconds": loop, "curve": curve, "together": whole}


def _score(share: float, seconds: float, p_a: np.ndarray, loop: float, truth: np.ndarray, resampler: Resampler) -> dict:
    """One point of the curve; accuracy and log loss are [value, low, high]."""
    p = np.column_stack([p_a, 1 - p_a])
    values = np.column_stack([p.argmax(1) == truth.argmax(1), find_losses(p, truth)]).astype(float)
    accuracy, log_loss = resampler.estimate_means(values)
    interval = lambda e: [round(float(number), 4) for number in (e.value, e.low, e.high)]  # noqa: E731
    return {
        "share": share,
        "seconds": seconds,
        "times_faster": loop / seconds,
        "accuracy": interval(accuracy),
        "log_loss": interval(log_loss),
    }
