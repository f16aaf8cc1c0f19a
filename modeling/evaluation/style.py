"""Style of answers: how much length and markdown explain verdicts and votes, and what remains without them.

The features are Chatbot Arena's (Li, Angelopoulos and Chiang 2024, "Does style matter?"): of length, headers, bold,
lists and code blocks, the difference of the two answers divided by their sum. They are scaled but not centred, and no
regression has an intercept, so that swapping the answers swaps every prediction. Coefficients come from a logistic
regression by statsmodels with sandwich intervals, clustered by prompt. As in the leaderboard, one draw is added for
each coefficient, which keeps it finite. Pure functions over texts and arrays; this module must not know judges or
files.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from scipy import special

from modeling.evaluation.bootstrap import LEAST_GROUPS, Z_95, Estimate, Resampler
from modeling.evaluation.leaderboard import find_named, scale_strengths
from modeling.evaluation.metrics import SMALLEST_PROBABILITY, find_decided, find_hits

FEATURES = ("length", "headers", "bold", "lists", "code blocks")
CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.S)
MARKS = (
    re.compile(r"^#{1,6} ", re.M),
    re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
    re.compile(r"^[ \t]*(?:[-*+]|\d+[.)]) ", re.M),
)
# Prompts per coefficient: with fewer, a logistic regression's coefficients are biased (Peduzzi et al. 1996).
LEAST_PER_FEATURE = 10
FOLDS = 5
MATCHED = 1 / 3  # share of the decided battles that count as matched in style


def count_marks(text: str) -> tuple[int, ...]:
    """Counts characters, headers, bold passages, list items and code blocks; marks inside code blocks do not count."""
    prose, num_blocks = CODE_BLOCK.subn("", text) if "```" in text else (text, 0)
    return (len(text), *(sum(1 for _ in mark.finditer(prose)) for mark in MARKS), num_blocks)


def measure_style(responses_a: Sequence[str], responses_b: Sequence[str]) -> np.ndarray:
    """Computes the features of battles, shape (battles, features).

    Each is (a - b) / (a + b), and 0 if neither answer has any, divided by the root of its mean square. A feature that
    is never different is 0.
    """
    counts = [
        np.array([count_marks(text) for text in texts], float).reshape(-1, 5) for texts in (responses_a, responses_b)
    ]
    a, b = counts
    shares = np.divide(a - b, a + b, out=np.zeros_like(a), where=a + b > 0)
    sizes = np.sqrt(np.mean(shares**2, axis=0)) if len(shares) else np.zeros(len(FEATURES))
    return np.divide(shares, sizes, out=np.zeros_like(shares), where=sizes > 0)


def split_groups(prompts: Sequence[str], groups: np.ndarray) -> np.ndarray:
    """Returns a fold from 0 to `FOLDS` - 1 for each battle; a group is in one fold, whatever the order of the rows."""
    keys = np.array([zlib.crc32(prompt.encode()) for prompt in prompts], np.int64)
    smallest = np.full(int(groups.max()) + 1 if len(groups) else 0, np.iinfo(np.int64).max)
    np.minimum.at(smallest, groups, keys)
    return smallest[groups] % FOLDS


def build_style(
    resampler: Resampler,
    style: np.ndarray,
    folds: np.ndarray,
    p: np.ndarray,
    labels: np.ndarray,
    models: tuple[Sequence, Sequence] | None = None,
) -> dict | None:
    """Estimates what style does to people's votes and to the judge's verdicts.

    Args:
        resampler: Resampler of the battles, grouped by prompt.
        style: Result of `measure_style`.
        folds: Result of `split_groups`.
        p: The judge's probabilities, shape (battles, 2).
        labels: People's, shape (battles, 2).
        models: Names of both models of the battles; None if they are not known.

    Returns:
        None for fewer than `LEAST_PER_FEATURE` prompts per feature; otherwise JSON values:
        features: {"name", "people", "judge", "difference"} of each: by how much the log-odds of an answer rise if its
            feature does by one standard deviation, and the judge's minus people's.
        people, judge: {"accuracy", "explained"}: how often style alone names their winner, and the share of their
            deviance that it explains (McFadden's R2). Predictions are from other prompts; "explained" may be below 0.
        matched: Accuracy of the judge on the third of the decided battles in which its style term is smallest.
        models: {"name", "people", "judge"}: ratings with style held fixed, best by people first.
    """
    used = np.flatnonzero(style.any(axis=0))
    if not len(used) or resampler.num_groups < LEAST_PER_FEATURE * len(FEATURES):
        return None
    found: dict = {"features": _compare_coefficients(resampler, style, used, labels[:, 0], p[:, 0])}
    terms = [predict_style(style, folds, chances) for chances in (labels[:, 0], p[:, 0])]
    for who, term, chances in zip(("people", "judge"), terms, (labels, p), strict=True):
        found[who] = _estimate_explained(resampler, term, chances)
    decided, size = find_decided(labels), np.abs(terms[1])
    matched = decided & (size <= np.quantile(size[decided], MATCHED)) if decided.any() else decided
    (accuracy,) = resampler.estimate_means(find_hits(p, labels)[:, None], matched[:, None], shares=[0])
    found["matched"] = accuracy.to_dict()
    named = find_named(*models) if models else np.array([False])
    found["models"] = _rate_models(resampler, style, p[:, 0], labels[:, 0], *models, named) if named.any() else []
    return found


def fit_style(features: np.ndarray, chances: np.ndarray, groups: np.ndarray | None = None):
    """Fits a logistic regression without an intercept; returns statsmodels' result.

    Args:
        features: Shape (battles, features).
        chances: Outcomes or probabilities, shape (battles,).
        groups: Group number of each battle, shape (battles,), for a covariance by groups; None if only the
            coefficients are needed.
    """
    # Imported here because it takes a second, and not every report fits one.
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    size = features.shape[1]
    rows, drawn = np.vstack([features, np.eye(size)]), np.append(chances, np.full(size, 0.5))
    model = GLM(drawn, rows, family=Binomial(), hasconst=False)  # looking for a constant would take a third of the time
    if groups is None:
        return model.fit()
    clusters = np.append(groups, groups.max() + 1 + np.arange(size))
    return model.fit(cov_type="cluster", cov_kwds={"groups": clusters})


def predict_style(style: np.ndarray, folds: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Computes the style term of each battle's log-odds, shape (battles,), fitted on the other folds.

    Args:
        style, folds: As in `build_style`.
        chances: Outcomes or probabilities of a, shape (battles,).
    """
    term = np.zeros(len(style))
    for fold in np.unique(folds):
        inside, used = folds == fold, style[folds != fold].any(axis=0)
        if used.any():
            result = fit_style(style[~inside][:, used], chances[~inside])
            term[inside] = style[inside][:, used] @ result.params
    return term


def control_style(style: np.ndarray, folds: np.ndarray, p_a: np.ndarray) -> np.ndarray:
    """Takes the judge's own style term, fitted on other prompts, out of its p_a, shape (battles,)."""
    clipped = np.clip(p_a, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return special.expit(special.logit(clipped) - predict_style(style, folds, p_a))


def _compare_coefficients(
    resampler: Resampler, style: np.ndarray, used: np.ndarray, label_a: np.ndarray, p_a: np.ndarray
) -> list[dict]:
    """Estimates the coefficients of people and judge, and their difference, for the features that are used."""
    # One regression of both, with the columns of each beside the other's: as both share the clusters, its covariance
    # has that between people and judge.
    size, features = len(used), style[:, used]
    both = np.kron(np.eye(2), features)
    result = fit_style(both, np.append(label_a, p_a), np.tile(resampler.groups, 2))
    values, covariance = result.params, result.cov_params()
    rows = []
    for place, feature in enumerate(used):
        contrasts = np.zeros((3, 2 * size))
        contrasts[[0, 1], [place, size + place]] = 1
        contrasts[2] = contrasts[1] - contrasts[0]
        estimates = _bound(contrasts @ values, contrasts @ covariance @ contrasts.T, len(style))
        rows.append({"name": FEATURES[feature]} | dict(zip(("people", "judge", "difference"), estimates, strict=True)))
    return rows


def _bound(values: np.ndarray, covariance: np.ndarray, count: int) -> list[dict]:
    """Builds estimates with normal intervals."""
    halves = Z_95 * np.sqrt(np.diag(covariance))
    return [Estimate(v, v - half, v + half, count).to_dict() for v, half in zip(values, halves, strict=True)]


def _estimate_explained(resampler: Resampler, term: np.ndarray, chances: np.ndarray) -> dict[str, dict]:
    """Estimates how often a style term names the winner, and the share of the deviance that it explains."""
    p = np.column_stack([special.expit(term), special.expit(-term)])
    (accuracy,) = resampler.estimate_means(find_hits(p, chances)[:, None], find_decided(chances)[:, None], shares=[0])
    # The deviance of soft outcomes: cross-entropy less their own entropy, which is 0 for hard ones.
    entropy = -special.xlogy(chances, chances).sum(axis=1)
    left = -special.xlogy(chances, p).sum(axis=1) - entropy
    columns = np.column_stack([left, np.log(2) - entropy])
    explained = resampler.estimate(columns, lambda sums: 1 - sums[:, 0] / sums[:, 1])
    return {"accuracy": accuracy.to_dict(), "explained": explained.to_dict()}


def _rate_models(
    resampler: Resampler, style: np.ndarray, p_a: np.ndarray, label_a: np.ndarray, models_a, models_b, named: np.ndarray
) -> list[dict]:
    """Rates models by people and by the judge, with style in the regression, best by people first."""
    sides = [np.array(models, object)[named].astype(str) for models in (models_a, models_b)]
    names, numbers = np.unique(np.concatenate(sides), return_inverse=True)
    first, second = numbers.reshape(2, -1)
    features = style[named][:, style[named].any(axis=0)]
    design = np.zeros((len(first), len(names)))
    rows = np.arange(len(first))
    design[rows, first], design[rows, second] = 1, -1
    groups, size = resampler.groups[named], len(names)
    columns = []
    for chances in (label_a[named], p_a[named]):
        result = fit_style(np.hstack([design, features]), chances, groups)
        centre = scale_strengths(np.eye(size)) - scale_strengths(np.zeros(size))
        covariance = centre.T @ result.cov_params()[:size, :size] @ centre
        columns.append(_bound(scale_strengths(result.params[:size]), covariance, len(first)))
    for number in range(size):
        met = (first == number) | (second == number)
        is_rare = len(np.unique(groups[met])) < LEAST_GROUPS
        for column in columns:
            column[number] |= {"count": int(met.sum())} | ({"low": None, "high": None} if is_rare else {})
    found = [
        {"name": name, "people": people, "judge": judge}
        for name, people, judge in zip(names.tolist(), *columns, strict=True)
    ]
    return sorted(found, key=lambda row: -row["people"]["value"])
