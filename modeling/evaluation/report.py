"""The evaluation report: all statistics of predictions on labelled battles, as a dictionary of JSON values.

report.json and a member's evaluation.json hold this dictionary. It contains numbers and the values of columns such as
language, source and model, but never a battle's text. This module must not know judges or how a report is shown.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.cluster.hierarchy import DisjointSet

from modeling.data.battles import TEXTS
from modeling.data.near_duplicates import group_texts, normalize_text
from modeling.data.outcomes import LABELS, WITH_TIE, halve_ties, match_labels
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.baselines import estimate_baselines, measure_lengths
from modeling.evaluation.biases import estimate_length_bias, estimate_position_bias, find_first
from modeling.evaluation.bootstrap import CONFIDENCE, Resampler
from modeling.evaluation.leaderboard import build_leaderboard
from modeling.evaluation.metrics import (
    compute_mcnemar,
    estimate_metrics,
    estimate_reliability,
    estimate_selective,
    find_decided,
    find_hits,
    find_losses,
)
from modeling.evaluation.style import build_style, control_style, measure_style, split_groups
from modeling.evaluation.text_report import PAIR
from modeling.evaluation.text_report import format_report as format_report
from modeling.evaluation.votes import build_votes

PASS_PREFIX, TIE_PREFIX = "p_a_", "p_tie_"  # of a pass's columns, p_a_<member>_<order> and p_tie_<member>_<order>
# Finding near-identical prompts among this many takes about 3 s. Among more, only equal prompts share a group.
MOST_COMPARED = 10_000
MOST_ROWS = 50  # rows of a table; rarer values share the last one
COLUMN_TABLES = ("language", "source", "verdict")
IN_PAIRS, ALONE = "in counterfactual pairs", "by themselves"  # rows of the table PAIR
NOT_GIVEN, OTHERS = "not given", "others"


def build_report(
    verdicts: pd.DataFrame,
    battles: Dataset,
    *,
    train_battles: Dataset | None = None,
    answers_alone: pd.DataFrame | None = None,
    by: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
) -> dict:
    """Builds the report of verdicts, with 95% intervals from a bootstrap over prompts.

    Args:
        verdicts: One row per battle, in any order, with columns id and p_a, and optionally p_tie, p_a_<member>_<order>,
            p_tie_<member>_<order>, cut_prompt, cut_response_a and cut_response_b. With p_tie everything is scored on
            three labels, and otherwise a tie is half a win for each answer.
        battles: Battles with labels, and optionally with columns language, source, verdict, model_a and model_b.
        train_battles: Other battles, for the baselines that learn.
        answers_alone: The judge's verdicts on the same battles without their prompts, for one more baseline.
        by: Further columns of the battles to tabulate by.
        draws: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        JSON values without NaN. An estimate is {"value", "low", "high", "count"}, with None for what is unknown.

    Raises:
        ValueError: If the ids do not match the battles', a probability is missing or out of range, or there are no
            labels.
    """
    verdicts = align_verdicts(verdicts, battles)
    p = stack_probabilities(verdicts)
    labels = read_labels(battles, p.shape[1])
    halves, label_halves = halve_ties(p), halve_ties(labels)
    groups, grouping = group_battles(battles)
    resampler, passes = Resampler(groups, draws, seed), read_passes(verdicts)
    report: dict = {"battles": len(battles), "decided": int(find_decided(labels).sum())}
    report |= {"prompts": resampler.num_groups, "grouping": grouping, "draws": draws, "seed": seed}
    report["confidence"] = CONFIDENCE
    report |= {name: metric.to_dict() for name, metric in estimate_metrics(resampler, p, labels).items()}
    report |= {"labels": list(WITH_TIE)} if p.shape[1] == len(WITH_TIE) else {}
    blind = None if answers_alone is None else stack_probabilities(align_verdicts(answers_alone, battles))
    report["baselines"] = estimate_baselines(resampler, battles, p, train_battles, blind)
    report["position_bias"] = estimate_position_bias(resampler, halve_passes(passes), label_halves)
    report["length_bias"] = estimate_length_bias(resampler, p, labels, measure_lengths(battles))
    tables = _find_tables(verdicts, battles, dict.fromkeys([*COLUMN_TABLES, *by]))
    report["tables"] = {name: _build_table(resampler, p, labels, *rows) for name, *rows in tables}
    report["reliability"] = estimate_reliability(resampler, p, labels)
    report["selective"] = estimate_selective(resampler, p, labels)
    report["readings"] = _build_passes(resampler, passes, labels)
    report |= _build_ratings(resampler, battles, halves, label_halves)
    return report | {"cut_fields": _count_cuts(verdicts), "data": {}}


def _build_ratings(resampler: Resampler, battles: Dataset, halves: np.ndarray, label_halves: np.ndarray) -> dict:
    """The leaderboard, if the battles name their models, and what style explains, if they have enough prompts."""
    found, models = {}, read_models(battles)
    if models:
        found["leaderboard"] = build_leaderboard(resampler, halves[:, 0], label_halves[:, 0], *models)
    style = measure_style(battles["response_a"][:], battles["response_b"][:])
    folds = split_groups(battles["prompt"][:], resampler.groups)
    if facts := build_style(resampler, style, folds, halves, label_halves, models):
        found["style"] = facts
    return found


def build_metrics(verdicts: pd.DataFrame, battles: Dataset, *, draws: int = 1000, seed: int = 0) -> dict[str, dict]:
    """Builds the metrics of a report alone; arguments as in `build_report`."""
    p = stack_probabilities(align_verdicts(verdicts, battles))
    resampler, labels = Resampler(group_battles(battles)[0], draws, seed), read_labels(battles, p.shape[1])
    return {name: metric.to_dict() for name, metric in estimate_metrics(resampler, p, labels).items()}


def build_comparison(
    verdicts: pd.DataFrame, against: pd.DataFrame, battles: Dataset, *, draws: int = 1000, seed: int = 0
) -> dict:
    """Compares two judges on the same battles by paired differences.

    Args:
        verdicts: Verdicts of the first judge.
        against: Verdicts of the second judge.
        battles: Battles with labels.
        draws, seed: See `build_report`.

    Returns:
        accuracy_difference, log_loss_difference: First judge minus second; both judges share the bootstrap draws.
        accuracy, log_loss: Those of the second judge.
        mcnemar: See `compute_mcnemar`.

    Raises:
        ValueError: See `build_report`.
    """
    first, second = (stack_probabilities(align_verdicts(each, battles)) for each in (verdicts, against))
    if first.shape != second.shape:  # otherwise one would be scored on ties that it cannot predict
        first, second = halve_ties(first), halve_ties(second)
    labels = read_labels(battles, first.shape[1])
    resampler = Resampler(group_battles(battles)[0], draws, seed)
    decided = find_decided(labels)
    hits, losses = ([find(p, labels) for p in (first, second)] for find in (find_hits, find_losses))
    differences = np.column_stack([hits[0].astype(float) - hits[1], losses[0] - losses[1], hits[1], losses[1]])
    everything = np.full(len(labels), True)
    parts = np.column_stack([decided, everything, decided, everything])
    names = ("accuracy_difference", "log_loss_difference", "accuracy", "log_loss")
    estimates = resampler.estimate_means(differences, parts, shares=[2])
    comparison: dict = {name: estimate.to_dict() for name, estimate in zip(names, estimates, strict=True)}
    return comparison | {"mcnemar": compute_mcnemar(hits[0][decided], hits[1][decided])}


def combine_votes(
    verdicts: pd.DataFrame, battles: Dataset, votes: Dataset, *, draws: int = 1000, seed: int = 0
) -> dict:
    """Estimates win rates, ratings and agreement from votes on some battles and verdicts on all; see `build_votes`.

    Args:
        verdicts: Verdicts on the battles, in any order.
        battles: All judged battles; their labels, if they have any, are not used.
        votes: Those of them that people voted on, with labels.
        draws, seed: See `build_report`.

    Raises:
        ValueError: If a vote is on no battle, or on a battle with other texts.
    """
    verdicts, rows = align_verdicts(verdicts, battles), find_rows(votes, battles)
    label_a = np.full(len(battles), np.nan)
    label_a[rows] = read_labels(votes)[:, 0]
    resampler = Resampler(group_battles(battles)[0], draws, seed)
    models = read_models(battles) or (None, None)
    p_a = halve_ties(stack_probabilities(verdicts))[:, 0]
    return build_votes(resampler, p_a, label_a, halve_passes(read_passes(verdicts)), *models)


def remove_style(verdicts: pd.DataFrame, battles: Dataset) -> pd.DataFrame:
    """Returns id, p_a and p_b without the verdicts' style term, which is fitted on battles with other prompts.

    Half of a tie goes to each answer.
    """
    verdicts, groups = align_verdicts(verdicts, battles), np.array(group_battles(battles)[0], int)
    style = measure_style(battles["response_a"][:], battles["response_b"][:])
    expected = halve_ties(stack_probabilities(verdicts))[:, 0]
    p_a = control_style(style, split_groups(battles["prompt"][:], groups), expected)
    return pd.DataFrame({"id": verdicts["id"], "p_a": p_a, "p_b": 1 - p_a})


# --- verdicts and battles ---------------------------------------------------------------------------------------------


def align_verdicts(verdicts: pd.DataFrame, battles: Dataset, where: str = "Predictions") -> pd.DataFrame:
    """Returns the verdicts in the order of the battles.

    Raises:
        ValueError: If a column is missing, the ids do not match the battles', or a p_a is not a probability.
    """
    if missing := {"id", "p_a"} - set(verdicts):
        raise ValueError(
            f"{where}: expected the columns id and p_a; found no {' and no '.join(sorted(missing))}, but "
            f"{', '.join(map(str, verdicts))}. Write it with scripts/predict.py."
        )
    # Ids are compared as text, because a CSV and a Parquet file may disagree on whether "17" is a number.
    found, ids = verdicts["id"].astype(str), [str(id) for id in battles["id"][:]]
    for problem, wrong in (
        ("each id once; found {} repeated", list(found[found.duplicated()].unique())),
        ("a row for each battle; found none for {}", sorted(set(ids) - set(found))),
        ("no other battles; found {}", sorted(set(found) - set(ids))),
    ):
        if wrong:
            raise ValueError(
                f"{where}: expected {problem.format(len(wrong))}: {_list_some(wrong)}. Give the battles that were "
                "predicted, with the same --schema and policies."
            )
    verdicts = verdicts.set_index(found).loc[ids].reset_index(drop=True)
    for name in ("p_a", "p_tie") if "p_tie" in verdicts else ("p_a",):
        p = pd.to_numeric(verdicts[name], errors="coerce")  # text becomes NaN, which is not between 0 and 1
        if not (odd := verdicts["id"][~p.between(0, 1)]).empty:
            raise ValueError(
                f"{where}: expected {name} from 0 to 1; found other values or NaN for {len(odd)}: "
                f"{_list_some(odd.tolist())}. Predict these battles again."
            )
        verdicts = verdicts.assign(**{name: p.astype(float)})
    return verdicts


def _list_some(ids: list) -> str:
    """Lists the first five ids for an error."""
    return f"{', '.join(map(repr, ids[:5]))}{' and more' * (len(ids) > 5)}"


def stack_probabilities(verdicts: pd.DataFrame) -> np.ndarray:
    """Returns p_a and 1 - p_a, shape (battles, 2), or with a column p_tie the probabilities of three labels."""
    return _complete(verdicts["p_a"], verdicts.get("p_tie"))


def _complete(p_a: pd.Series, p_tie: pd.Series | None) -> np.ndarray:
    """Returns the probabilities of all labels, shape (battles, labels)."""
    if p_tie is None:
        return np.column_stack([p_a, 1 - p_a]).astype(float)
    # A sum of 1 is exact to 16 digits only, and p_b must not be below 0.
    return np.column_stack([p_a, (1 - p_a - p_tie).clip(0, 1), p_tie]).astype(float)


def read_labels(battles: Dataset, num_labels: int = len(LABELS)) -> np.ndarray:
    """Returns the battles' labels, shape (battles, num_labels); raises a ValueError if they have none.

    For two labels ties are halved, and for three an even label of two is a tie: see `match_labels`.
    """
    if len(battles) and "label" not in battles.column_names:
        raise ValueError("Battles: expected outcomes to score against; found none. Add a winner or label column.")
    return match_labels(np.array(battles["label"][:] if len(battles) else np.empty((0, 2)), float), num_labels)


def read_models(battles: Dataset) -> tuple[list, list] | None:
    """Returns the names of both models of the battles; None if they have none."""
    if not {"model_a", "model_b"} <= set(battles.column_names):
        return None
    return battles["model_a"][:], battles["model_b"][:]


def find_rows(votes: Dataset, battles: Dataset) -> list[int]:
    """Returns each vote's row in the battles; a ValueError if it has none, or if its texts are others."""
    places = {str(id): row for row, id in enumerate(battles["id"][:])}
    if unknown := [id for id in votes["id"][:] if str(id) not in places]:
        raise ValueError(
            f"Votes: expected votes on battles that the judge read; found {len(unknown)} on others: "
            f"{_list_some(unknown)}. Add these battles to the judged ones, with the same ids."
        )
    rows = [places[str(id)] for id in votes["id"][:]]
    texts = [list(zip(*(part[name][:] for name in TEXTS), strict=True)) for part in (votes, battles.select(rows))]
    if other := [id for id, mine, theirs in zip(votes["id"][:], *texts, strict=True) if mine != theirs]:
        raise ValueError(
            f"Votes: expected the texts of the judged battles with the same ids; found others for {len(other)}: "
            f"{_list_some(other)}. Give the votes on these battles, with a and b in the same order."
        )
    return rows


def read_passes(verdicts: pd.DataFrame) -> dict[str, np.ndarray]:
    """Returns each pass's probabilities, shape (battles, labels), by its name, <member>_<order>.

    Battles without that pass have NaN.
    """
    columns = [name for name in verdicts if name.startswith(PASS_PREFIX) and name.endswith(("_ab", "_ba"))]
    names = [name.removeprefix(PASS_PREFIX) for name in columns]
    return {name: _complete(verdicts[PASS_PREFIX + name], verdicts.get(TIE_PREFIX + name)) for name in names}


def halve_passes(passes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns p_a of each pass, shape (battles,), with half of a tie."""
    return {name: halve_ties(each)[:, 0] for name, each in passes.items()}


def group_battles(battles: Dataset) -> tuple[list[int], str]:
    """Returns the group number of each battle, and in words which battles share a group, not being independent.

    Those whose prompts share a group in `group_prompts`, and the two of a counterfactual pair, which have the same
    answers, if there is a column `counterfactual_pair`.
    """
    groups, grouping = group_prompts(battles["prompt"][:])
    if PAIR not in battles.column_names:
        return groups, grouping
    joined, first = DisjointSet(set(groups)), {}
    for group, pair in zip(groups, battles[PAIR][:], strict=True):
        if pair:  # an empty cell of a csv is an empty text
            joined.merge(first.setdefault(pair, group), group)
    numbers = {root: number for number, root in enumerate(dict.fromkeys(joined[group] for group in groups))}
    return [numbers[joined[group]] for group in groups], f"{grouping}, counterfactual pairs too"


def group_prompts(prompts: Sequence[str]) -> tuple[list[int], str]:
    """Returns the group number of each prompt, and in words which prompts share a group.

    Near-identical prompts share a group, or only equal ones if there are more than `MOST_COMPARED`.
    """
    normalized = [normalize_text(prompt) for prompt in prompts]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(normalized))}
    if len(numbers) > MOST_COMPARED:
        return [numbers[prompt] for prompt in normalized], "equal ones counted once"
    group = group_texts(list(numbers))
    return [group[numbers[prompt]] for prompt in normalized], "near-identical ones counted once"


# --- parts of the report ----------------------------------------------------------------------------------------------


def _find_tables(
    verdicts: pd.DataFrame, battles: Dataset, columns: Iterable[str]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields each table's name, the row that each battle belongs to, and the rows in order."""
    for column in columns:
        if column in battles.column_names:
            values = _name_values(battles[column][:])
            yield column, values, [name for name, _ in Counter(values).most_common()]
    if PAIR in battles.column_names and any(battles[PAIR][:]):
        yield PAIR, [IN_PAIRS if pair else ALONE for pair in battles[PAIR][:]], [IN_PAIRS, ALONE]
    lengths = np.sum([[len(text) for text in battles[name][:]] for name in TEXTS], axis=0)
    if len(battles):  # quartiles; unique(), because many battles may have one length
        ends = np.unique(np.quantile(lengths, (0.25, 0.5, 0.75)).astype(int))
        names = [f"up to {ends[0]:,} characters"]
        names += [f"{low + 1:,} to {high:,} characters" for low, high in pairwise(ends)]
        names.append(f"over {ends[-1]:,} characters")
        yield "length", [names[place] for place in np.searchsorted(ends, lengths)], names
    if set(CUT_COLUMNS) <= set(verdicts):
        cut = verdicts[list(CUT_COLUMNS)].to_numpy().any(axis=1)
        yield "cut", np.where(cut, "cut", "whole").tolist(), ["whole", "cut"]


def _name_values(values: Sequence) -> list[str]:
    """Returns a column's values as row names; if there are too many, the rarest share one name."""
    # value != value is true for NaN only.
    names = [NOT_GIVEN if value is None or value == "" or value != value else str(value) for value in values]
    counts = Counter(names).most_common()
    kept = {name for name, _ in (counts if len(counts) <= MOST_ROWS else counts[: MOST_ROWS - 1])}
    return [name if name in kept else OTHERS for name in names]


def _build_table(
    resampler: Resampler, p: np.ndarray, labels: np.ndarray, values: list[str], names: list[str]
) -> list[dict]:
    """Estimates accuracy and log loss of each row that has battles."""
    decided, rows = find_decided(labels), np.array(values, dtype=object)
    columns = np.column_stack([find_hits(p, labels), find_losses(p, labels)])
    table = []
    for name in names:
        part = rows == name
        parts = np.column_stack([part & decided, part])
        accuracy, log_loss = (each.to_dict() for each in resampler.estimate_means(columns, parts, shares=[0]))
        row = {"name": name, "battles": int(part.sum()), "accuracy": accuracy, "log_loss": log_loss}
        table += [row] * bool(part.any())
    return table


def _build_passes(resampler: Resampler, passes: dict[str, np.ndarray], labels: np.ndarray) -> list[dict]:
    """Estimates accuracy, log loss and position bias of each pass, on the battles that have it."""
    rows = []
    for name, p in passes.items():
        # With a tie band the verdict has three labels and its passes have two.
        known, read = match_labels(labels, p.shape[1]), ~np.isnan(p[:, 0])
        decided, first = find_decided(known), find_first({name: halve_ties(p)[:, 0]})[:, 0]
        values = np.column_stack([find_hits(p, known), find_losses(p, known), first])
        estimates = resampler.estimate_means(values, np.column_stack([read & decided, read, read]), shares=[0])
        names = ("accuracy", "log_loss", "mean_p_first")
        rows.append({"name": name} | {key: e.to_dict() for key, e in zip(names, estimates, strict=True)})
    return rows


def _count_cuts(verdicts: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Counts, for each field, the battles in which it was cut and the tokens that were cut."""
    cuts = {name.removeprefix("cut_"): verdicts[name].to_numpy() for name in CUT_COLUMNS if name in verdicts}
    return {name: {"battles": int((cut > 0).sum()), "tokens": int(cut.sum())} for name, cut in cuts.items()}
