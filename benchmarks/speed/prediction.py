"""Times prediction: the notebook's way, ours, and pairjudge, on one base and the same battles."""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.speed import notebook, peers
from benchmarks.speed.padding import PREDICTION_BATCH
from benchmarks.speed.rounds import Round, run_in_rounds, summarise_rounds
from benchmarks.speed.ways import NOTEBOOK, OURS, draw_slices, unpack_backbone
from modeling.judging.judge import Judge
from modeling.judging.schedule import PassSchedule

NOISE = "the notebook's in batches of 4"  # a key of the result files


def build_our_predictor(
    judge: Sequence[str],
    slices: Sequence[list[dict]],
    readings: str | None,
    merge: str = "auto",
    dtype: str = "auto",
) -> Round:
    """Returns a round that predicts one slice of the battles as predict.py does."""
    loaded = Judge.from_pretrained(judge, merge=merge, dtype=dtype)
    plan = loaded.plan_passes(readings)
    schedules = [PassSchedule(plan, rows) for rows in slices]

    def run(number: int) -> dict:
        """Seconds and tokens of all passes, battles, and each p_a."""
        schedule = schedules[number]
        start = time.perf_counter()
        schedule.read(np.full(schedule.p.shape[:2], True))
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "tokens": int(schedule.lengths[..., 0].sum()),
            "battles": len(slices[number]),
            "p_a": schedule.p.mean(0)[:, 0],
        }

    return run


def benchmark_prediction(
    battles: str, judge: Sequence[str], backbone: str, count: int, num_rounds: int, readings: str | None, dtype: str
) -> dict:
    """Returns each way's speed, and how much its probabilities differ from the notebook's.

    Args:
        battles: File of battles.
        judge: Names of its members, or of one judge.
        backbone: The model that the judge's base was made from, for the peers.
        count: Battles per round.
        dtype: Precision of all ways; "auto" is resolved here, once for all of them.
    """
    slices = draw_slices(battles, count, num_rounds)
    loaded = Judge.from_pretrained(judge, merge="never", skip_probes=True, dtype=dtype)
    num_passes, max_length = len(loaded.plan_passes(readings)), loaded.members[0].encoder.encoding.max_length
    dtype = loaded.members[0].dtype
    del loaded  # its memory is for the ways
    with tempfile.TemporaryDirectory() as folder:
        plain = unpack_backbone(backbone, Path(folder), dtype)
        ways = {
            NOTEBOOK: partial(notebook.build_predictor, judge, slices, readings, PREDICTION_BATCH, dtype),
            OURS: partial(build_our_predictor, judge, slices, readings, "auto", dtype),
            "ours, unmerged": partial(build_our_predictor, judge, slices, readings, "never", dtype),
        }
        if "pairjudge" in peers.find_peers():
            options = (max_length, min(num_passes, 2), dtype)
            ways["pairjudge"] = partial(peers.build_pairjudge_predictor, plain, slices, *options)
        # Two controls show what the precision alone does to the answers: the notebook's way with another batch size,
        # and ours in float32.
        twice = 2 * PREDICTION_BATCH
        controls = {
            NOISE: partial(notebook.build_predictor, judge, slices[:1], readings, twice, dtype),
            "float32": partial(build_our_predictor, judge, slices[:1], readings, "always", "float32"),
        }
        results = run_in_rounds(ways, num_rounds)
        control_results = run_in_rounds(controls, 1)
    summary = summarise_rounds(results, NOTEBOOK)
    # pairjudge has an untrained head: its answers are not compared.
    answered = {name: found for name, found in results.items() if "p_a" in found[0]}
    for name, found in answered.items():
        summary[name]["answers"] = compare_answers(results[NOTEBOOK], found)
        summary[name]["from_float32"] = compare_answers(control_results["float32"], found[:1])
    noise = {
        "answers": compare_answers(results[NOTEBOOK][:1], control_results[NOISE]),
        "from_float32": compare_answers(control_results["float32"], control_results[NOISE]),
    }
    return {"readings": num_passes, "max_length": max_length, "dtype": dtype, "ways": summary, NOISE: noise}


def compare_answers(first: Sequence[dict], second: Sequence[dict]) -> dict:
    """Returns how much the probabilities of two ways differ over their rounds, and how many winners differ."""
    p, q = (np.concatenate([each["p_a"] for each in rounds]) for rounds in (first, second))
    differences = np.abs(p - q)
    return {
        "battles": len(p),
        "largest_dp": float(differences.max()),
        "dp_99_percent": float(np.quantile(differences, 0.99)),
        "other_winners": int(((p >= 0.5) != (q >= 0.5)).sum()),
        "spread": float(p.std()),
    }
