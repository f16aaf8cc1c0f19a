"""Which battles to have labelled next: those on which a judge is uncertain and its passes disagree, on many prompts.

Pure functions over arrays. It must not know judges, texts or files.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import entr

DIGITS = 6  # the last bits depend on which battles were packed together; they must not decide


def compute_uncertainty(p_a: np.ndarray) -> np.ndarray:
    """Returns the entropy of each verdict in bits, from 0 to 1 at p_a = 1/2."""
    return (entr(p_a) + entr(1 - p_a)) / np.log(2)


def compute_disagreement(passes: np.ndarray) -> np.ndarray:
    """Returns how far the passes of each battle disagree, in bits: 0 if all give the same probability.

    It is the entropy of their mean less the mean of their entropies, the mutual information of the verdict and the
    pass (BALD: Houlsby et al. 2011, "Bayesian Active Learning for Classification and Preference Learning", Eq. 2).
    A battle that is a toss-up for every pass scores 0, however uncertain it is.

    Args:
        passes: p_a of each pass, shape (battles, passes), NaN where a pass was not run.
    """
    if (run := (~np.isnan(passes)).sum(axis=1)).min(initial=2) < 2:
        raise ValueError(
            f"Expected at least two passes of each battle, to see whether they agree; found battles with {run.min()}. "
            "Predict with --readings both and all second passes, or choose by --rank_by uncertainty."
        )
    return compute_uncertainty(np.nanmean(passes, axis=1)) - np.nanmean(compute_uncertainty(passes), axis=1)


def score_battles(p_a: np.ndarray, passes: np.ndarray, rank_by: str) -> pd.DataFrame:
    """Scores battles by how much a label is expected to teach.

    Args:
        p_a: The verdicts, shape (battles,), calibrated or not.
        passes: p_a of each pass, shape (battles, passes).
        rank_by: One of `SELECTIONS`.

    Returns:
        The columns score, uncertainty and disagreement, rounded; without disagreement if there are fewer than two
        passes and `rank_by` does not need them.
    """
    scores = pd.DataFrame({"uncertainty": compute_uncertainty(p_a)})
    if rank_by != "uncertainty" or passes.shape[1] > 1:
        scores["disagreement"] = compute_disagreement(passes)
    ranked = scores.prod(axis=1) if rank_by == "product" else scores[rank_by]
    scores.insert(0, "score", ranked)
    return scores.round(DIGITS) + 0.0  # no negative zeros


def select_battles(scores: np.ndarray, ids: Sequence, groups: Sequence[int] | None, num_battles: int) -> np.ndarray:
    """Returns the rows of the highest-scoring battles, best first, taking one per group before a second from any.

    No group gives a second battle before every group has given one, and so on. Equal scores are ordered by a hash of
    the id. So the rows of the file may have any order.

    Args:
        scores: Shape (battles,).
        ids: The battles' ids.
        groups: The group of each battle; None puts each battle in its own.
        num_battles: At most the number of battles.
    """
    hashes = [hashlib.sha256(str(id).encode("utf-8", "replace")).hexdigest() for id in ids]
    order = np.lexsort([hashes, -np.asarray(scores)])
    if groups is not None:
        turns = pd.Series(np.asarray(groups)[order]).groupby(np.asarray(groups)[order]).cumcount()
        order = order[np.argsort(turns.to_numpy(), kind="stable")]
    return order[:num_battles]
