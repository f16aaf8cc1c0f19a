"""Baselines that a judge must beat: rules on slot and length, language majorities, TF-IDF with logistic regression, and
the judge itself without the prompts.

None of them reads a prompt, so together they say what a judge gets from the answers alone. The learned ones need
training battles. The length rules and TF-IDF are symmetric: swapping a battle's answers swaps their prediction. This
module must not know judges or reports.
"""

from collections import Counter
from functools import lru_cache

import numpy as np
from datasets import Dataset
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from modeling.data.outcomes import LABELS, halve_ties, match_labels, widen_labels
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.metrics import find_decided, find_hits, find_losses

NGRAMS, LEAST_ANSWERS, MOST_NGRAMS = (2, 4), 2, 200_000  # lengths in characters, answers with an n-gram, vocabulary
SURE = np.array([1.0, 0.0])
TFIDF, ANSWERS_ALONE = "tf-idf", "answers alone"  # the baselines that give probabilities


def estimate_baselines(
    resampler: Resampler,
    battles: Dataset,
    p: np.ndarray | None = None,
    train_battles: Dataset | None = None,
    answers_alone: np.ndarray | None = None,
) -> dict[str, dict]:
    """Estimates the accuracy of each baseline, and by how much the judge's is higher.

    Args:
        resampler: Resampler of the battles, grouped by prompt.
        battles: Battles to score, with labels.
        p: The judge's probabilities, shape (battles, labels); None leaves the differences out. With three labels the
            rules never predict a tie, and "tf-idf" gives it the share of ties in the training battles.
        train_battles: Other battles with labels, for "tf-idf" and, if both have a language column, "majority per
            language". None leaves these two out.
        answers_alone: The judge's probabilities without the prompts, in the shape of `p`; None leaves
            them out.

    Returns:
        {name: {"accuracy": estimate[, "difference": estimate][, "log_loss": estimate]}}, as JSON values. The
        difference is the judge's accuracy minus the baseline's on the same battles, with the interval of the
        difference itself.
    """
    labels = np.array(battles["label"][:] if len(battles) else np.empty((0, 2)), float)
    labels = match_labels(labels, len(LABELS) if p is None else p.shape[1])
    lengths = measure_lengths(battles)
    found = {"always a": np.tile(SURE, (len(labels), 1)), "longer wins": lengths, "shorter wins": -lengths}
    if train_battles is not None and len(train_battles):
        if "language" in battles.column_names and "language" in train_battles.column_names:
            found["majority per language"] = predict_majority(train_battles, battles)
        if find_decided(_halve_labels(train_battles)).any():
            found[TFIDF] = predict_tfidf(train_battles, battles)
    if labels.shape[1] > len(LABELS):
        found = {name: _add_tie(scores, name == TFIDF and train_battles) for name, scores in found.items()}
    if answers_alone is not None:
        found[ANSWERS_ALONE] = answers_alone
    hits = np.column_stack([find_hits(scores, labels) for scores in found.values()]).astype(float)
    decided = find_decided(labels)[:, None]
    estimates = resampler.estimate_means(hits, decided, shares=range(len(found)))
    table = {name: {"accuracy": estimate.to_dict()} for name, estimate in zip(found, estimates, strict=True)}
    if p is not None:
        leads = resampler.estimate_means(find_hits(p, labels)[:, None] - hits, decided)
        for name, lead in zip(found, leads, strict=True):
            table[name]["difference"] = lead.to_dict()
    for name in found.keys() & {TFIDF, ANSWERS_ALONE}:
        (log_loss,) = resampler.estimate_means(find_losses(found[name], labels)[:, None])
        table[name]["log_loss"] = log_loss.to_dict()
    return table


def measure_lengths(battles: Dataset) -> np.ndarray:
    """Returns the lengths of both answers in characters, shape (battles, 2)."""
    columns = [[len(text) for text in battles[f"response_{side}"][:]] for side in "ab"]
    return np.array(columns, float).T.reshape(-1, 2)


def _add_tie(scores: np.ndarray, train_battles: Dataset | None) -> np.ndarray:
    """Adds a tie to scores: below all others or, for probabilities, the share of ties in their training battles."""
    if not train_battles:
        return np.hstack([scores, np.full((len(scores), 1), -np.inf)])
    share = widen_labels(np.array(train_battles["label"][:], float))[:, 2].mean()
    return np.hstack([(1 - share) * scores, np.full((len(scores), 1), share)])


def _halve_labels(battles: Dataset) -> np.ndarray:
    """Returns the labels of battles with half of each tie on either side, shape (battles, 2)."""
    return halve_ties(np.array(battles["label"][:], float))


def predict_majority(train_battles: Dataset, battles: Dataset) -> np.ndarray:
    """Predicts, for each battle, the label that won more of the training battles in its language.

    For a language that is balanced or missing in training, it predicts the label that won more battles overall.

    Returns:
        Scores, shape (battles, 2); the larger one marks the predicted label.
    """
    labels = _halve_labels(train_battles)
    balance: Counter = Counter()
    for language, (a, b) in zip(train_battles["language"][:], labels, strict=True):
        balance[language] += a - b
    overall = labels[:, 0].sum() - labels[:, 1].sum()
    leads = np.array([balance[language] or overall for language in battles["language"][:]]).reshape(-1, 1)
    return np.hstack([leads, -leads])


def predict_tfidf(train_battles: Dataset, battles: Dataset) -> np.ndarray:
    """Predicts with a logistic regression on the difference of the two answers' TF-IDF vectors.

    The features are n-grams of 2 to 4 characters, because not every script puts spaces between words. The regression is
    fitted on the decided training battles.

    Returns:
        Probabilities, shape (battles, 2).
    """
    vectorizer, regression = _fit_tfidf(train_battles)
    scored = vectorizer.transform(battles["response_a"][:]) - vectorizer.transform(battles["response_b"][:])
    return regression.predict_proba(scored)[:, ::-1]  # the classes are False (b won) and True (a won)


# Kept for the same object, because a benchmark scores many parts: a fit takes 13 s on 15,729 battles (2-core CPU).
@lru_cache(maxsize=1)
def _fit_tfidf(train_battles: Dataset) -> tuple[TfidfVectorizer, LogisticRegression]:
    labels = _halve_labels(train_battles)
    decided = train_battles.select(np.flatnonzero(find_decided(labels)))
    won = labels[find_decided(labels), 0] > 0.5
    # An n-gram that occurs in a single answer teaches nothing; with hardly any answers it is all there is.
    least = LEAST_ANSWERS if len(decided) > LEAST_ANSWERS else 1
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=NGRAMS, min_df=least, max_features=MOST_NGRAMS)
    answers = vectorizer.fit_transform([*decided["response_a"], *decided["response_b"]])
    differences = answers[: len(decided)] - answers[len(decided) :]
    # Each battle in both orders, so that both classes exist even if a always won. C is halved because that doubles the
    # battles. Without an intercept, swapping the answers swaps the probabilities.
    regression = LogisticRegression(C=0.5, fit_intercept=False, max_iter=1000)
    regression.fit(sparse.vstack([differences, -differences]), np.concatenate([won, ~won]))
    return vectorizer, regression
