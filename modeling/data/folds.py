"""Assigns battles to folds so that no prompt is both trained on and evaluated.

The folds depend on the battles alone: on no random state and, but for "modulo", not on the order of the rows. A later
command can therefore recompute a fold and check it by its fingerprint.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from modeling.data.near_duplicates import group_texts, normalize_text
from modeling.data.outcomes import LABELS, TIE, find_outcome
from modeling.runtime.choices import FOLD_METHODS


def assign_folds(battles: Dataset, num_folds: int, method: str = "prompt") -> list[int]:
    """Returns the fold of each battle.

    "prompt" keeps battles with the same prompt, or near-duplicates of it, in one fold, and gives each fold the same
    share of each outcome (a wins, b wins, tie) and language. "modulo" puts row i into fold i % num_folds, as some
    competitions do. It leaks: a prompt on two rows is both trained on and evaluated.

    Args:
        battles: Battles with a column prompt, and label and language if these are to be balanced.
        num_folds: Number of folds, at least 2.
        method: One of `FOLD_METHODS`.

    Returns:
        One number per row, from 0 to num_folds - 1.

    Raises:
        ValueError: If there are fewer than two folds or the method is unknown.
    """
    if num_folds < 2:
        raise ValueError(f"--num_folds {num_folds}: expected num_folds >= 2. Use at least 2 folds.")
    if method not in FOLD_METHODS:
        raise ValueError(f"method: expected one of {', '.join(FOLD_METHODS)}; found {method!r}.")
    assign = dict(zip(FOLD_METHODS, (_assign_by_prompt, _assign_by_row), strict=True))[method]
    return assign(battles, num_folds)


def split_folds(battles: Dataset, num_folds: int, fold: int, method: str = "prompt") -> tuple[Dataset, Dataset]:
    """Returns the battles outside one fold, for training, and those inside it, for evaluation, each in row order.

    Args:
        battles: As in `assign_folds`.
        num_folds: Number of folds, at least 2.
        fold: The fold to evaluate on, from 0.
        method: One of `FOLD_METHODS`.

    Raises:
        ValueError: If the fold does not exist, the method is unknown, or one of the parts is empty.
    """
    if num_folds < 2 or not 0 <= fold < num_folds:
        raise ValueError(f"--num_folds {num_folds} --fold {fold}: expected num_folds >= 2 and 0 <= fold < num_folds.")
    inside = np.array(assign_folds(battles, num_folds, method), int) == fold
    parts = battles.select(np.flatnonzero(~inside)), battles.select(np.flatnonzero(inside))
    if not all(len(part) for part in parts):
        raise ValueError(
            f"--num_folds {num_folds} --fold {fold}: found {len(parts[0])} battles to train on and "
            f"{len(parts[1])} to evaluate on; expected some on both sides. Use fewer folds or another fold."
        )
    return parts


def fingerprint_fold(battles: Dataset) -> str:
    """Returns a hash of the ids of an evaluation part: 16 hexadecimal digits, independent of the order of the rows."""
    ids = sorted(json.dumps(id) for id in battles["id"])  # JSON tells the text "7" from the number 7
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def _assign_by_row(battles: Dataset, num_folds: int) -> list[int]:
    """Puts row i into fold i % num_folds."""
    return [row % num_folds for row in range(len(battles))]


def _assign_by_prompt(battles: Dataset, num_folds: int) -> list[int]:
    """Puts groups of near-duplicate prompts, the largest first, where their most frequent stratum is rarest so far."""
    if not len(battles):
        return []
    prompts = battles["prompt"][:]
    groups = np.array(group_texts(prompts))
    # Group pairs[i, 0] has counts[i] battles of stratum pairs[i, 1]. The pairs of a group start at starts[group].
    strata = _number_strata(battles)
    pairs, counts = np.unique(np.stack([groups, strata], axis=1), axis=0, return_counts=True)
    starts = np.searchsorted(pairs[:, 0], np.arange(groups.max() + 2))
    held = np.zeros((strata.max() + 1, num_folds), np.int64)  # battles of each stratum in each fold
    totals = np.zeros(num_folds, np.int64)
    folds = np.empty(groups.max() + 1, np.int64)
    for group in _order_groups(prompts, groups):
        rows = slice(starts[group], starts[group + 1])
        majority = pairs[rows, 1][np.argmax(counts[rows])]
        # Fewest battles of the stratum, then fewest in all, then the lowest number, because argmin takes the first.
        # No total exceeds len(prompts), so one number orders by both counts.
        fold = np.argmin(held[majority] * (len(prompts) + 1) + totals)
        held[pairs[rows, 1], fold] += counts[rows]
        totals[fold] += counts[rows].sum()
        folds[group] = fold
    return folds[groups].tolist()


def _number_strata(battles: Dataset) -> np.ndarray:
    """Returns the number of each row's stratum: its combination of outcome and language, in sorted order."""
    outcomes = languages = [""] * len(battles)
    if "label" in battles.column_names:
        numbers = {TIE: -1, **{label: number for number, label in enumerate(LABELS)}}
        outcomes = [numbers[find_outcome(label)] for label in battles["label"][:]]
    if "language" in battles.column_names:
        languages = [str(language) for language in battles["language"]]
    strata = list(zip(outcomes, languages, strict=True))
    number = {stratum: number for number, stratum in enumerate(sorted(set(strata)))}
    return np.array([number[stratum] for stratum in strata])


def _order_groups(prompts: Sequence[str], groups: np.ndarray) -> list[int]:
    """Returns the group numbers, largest group first; groups of the same size in the order of a hash."""
    smallest: dict[int, str] = {}
    for group, prompt in zip(groups.tolist(), map(normalize_text, prompts), strict=True):
        smallest[group] = min(prompt, smallest.get(group, prompt))
    sizes = np.bincount(groups)
    # The hash is as good as a random order, but the same for every run and every order of the rows.
    digests = {
        group: hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest() for group, prompt in smallest.items()
    }
    return sorted(smallest, key=lambda group: (-sizes[group], digests[group]))
