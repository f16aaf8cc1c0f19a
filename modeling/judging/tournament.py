"""Ranks the answers to many prompts with a judge: each round's pairs of all prompts are read together.

It must not know how the pairs are read (`judge.py`), chosen (`pairings.py`) or scored (`ranking.py`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling.data.battles import TEXTS
from modeling.judging.pairings import choose_pairs, count_pairs, count_rounds
from modeling.judging.predictions import PROVENANCE
from modeling.judging.ranking import Pair, list_texts, score_answers
from modeling.runtime.files import replace_file
from modeling.settings.reading_arguments import read_budget

RANKINGS_FILE = "rankings.parquet"


@dataclass(frozen=True)
class Ranking:
    """The answers to one prompt, ranked. All lists but `ranking` are in the order of the answers.

    Its text is one line: "answer 2 is best (58.1%): 2 > 0 > 1".

    id: The answer set's.
    ranking: Numbers of the answers from 0, the best first. Equal answers are in their given order.
    p_best: Probability that people prefer the answer to all others; sums to 1.
    scores: Bradley-Terry scores: a difference is the log odds that one answer beats the other. Their mean is 0.
    score_low, score_high: Ends of the scores' 95% intervals, see `bound_scores`; NaN where unknown.
    passes: Passes that were run. Equal answers are read once.
    """

    id: object
    ranking: list[int]
    p_best: list[float]
    scores: list[float]
    score_low: list[float]
    score_high: list[float]
    passes: int

    def __str__(self) -> str:
        best = self.ranking[0]
        return f"answer {best} is best ({self.p_best[best]:.1%}): {' > '.join(map(str, self.ranking))}"

    def to_dict(self) -> dict:
        """The fields as JSON values; unknown ends are None."""
        ends = {
            name: [None if np.isnan(end) else end for end in vars(self)[name]] for name in ("score_low", "score_high")
        }
        return vars(self) | ends


def rank_answer_sets(
    predict: Callable[[list[dict]], Sequence[float]],
    answer_sets: Sequence[Mapping],
    method: str,
    budget: float | None,
    num_passes: int,
) -> list[Ranking]:
    """Ranks the answers of each answer set.

    Args:
        predict: Returns p_a of battles, read as the judge does. It is called once per round.
        answer_sets: From `check_answer_sets`.
        method: See `choose_pairs`.
        budget: Share of each answer set's pairs that may be read. Those that connect all answers always are.
        num_passes: Passes per battle.
    """
    budget = read_budget(method, budget)
    texts = [list_texts(each["responses"]) for each in answer_sets]
    most = [count_pairs(method, len(each), budget) for each in texts]
    verdicts: list[dict[Pair, float]] = [{} for _ in answer_sets]
    while asked := [
        (number, pair)
        for number, (each, found) in enumerate(zip(texts, verdicts, strict=True))
        for pair in choose_pairs(method, len(each), found, most[number])
    ]:
        battles = [
            dict(zip(TEXTS, (answer_sets[number]["prompt"], *(texts[number][place] for place in pair)), strict=True))
            for number, pair in asked
        ]
        for (number, pair), p_a in zip(asked, predict(battles), strict=True):
            verdicts[number][pair] = float(p_a)
    return [_rank(each, found, method, num_passes) for each, found in zip(answer_sets, verdicts, strict=True)]


def _rank(answer_set: Mapping, verdicts: Mapping[Pair, float], method: str, num_passes: int) -> Ranking:
    """The ranking by score; that of a knock-out by the round reached, then by score."""
    answers = answer_set["responses"]
    scored = score_answers(answers, verdicts)
    texts = list_texts(answers)
    reached = dict.fromkeys(texts, 0)
    if method == "knockout":
        reached = dict(zip(texts, count_rounds(len(texts), verdicts).tolist(), strict=True))
    # The text decides between equal scores, so that the order of different answers never does.
    order = sorted(range(len(answers)), key=lambda at: (-reached[answers[at]], -scored.scores[at], answers[at]))
    return Ranking(
        answer_set["id"],
        order,
        scored.p_best,
        scored.scores,
        scored.low,
        scored.high,
        len(verdicts) * num_passes,
    )


def write_rankings(folder: Path, rankings: Sequence[Ranking], provenance: Mapping) -> Path:
    """Writes rankings.parquet, one row per ranking, with their provenance as its metadata; returns its path."""
    numbers = pa.list_(pa.float64())
    id_type = pa.int64() if rankings and isinstance(rankings[0].id, int) else pa.string()
    types = {"id": id_type, "ranking": pa.list_(pa.int64()), "passes": pa.int64()}
    schema = pa.schema([(field.name, types.get(field.name, numbers)) for field in fields(Ranking)])
    table = pa.Table.from_pylist([each.to_dict() for each in rankings], schema)
    stored = json.dumps(provenance, ensure_ascii=False, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RANKINGS_FILE
    with replace_file(path) as beside:
        pq.write_table(table.replace_schema_metadata({PROVENANCE: stored}), beside)
    return path
