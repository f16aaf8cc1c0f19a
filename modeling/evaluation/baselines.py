"""What a judge must beat: rules that look at places and lengths, and words counted. Learned ones need training battles.

None of them knows position: a battle with its answers exchanged gets the exchanged probability, but for "always a".
"""

from collections import Counter

import numpy as np
from datasets import Dataset
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.metrics import find_decided, find_hits, find_losses

NGRAMS, LEAST_ANSWERS, MOST_NGRAMS = (2, 4), 2, 200_000
SURE = np.array([1.0, 0.0])


def estimate_baselines(resampler: Resampler, battles: Dataset, train_battles: Dataset | None = None) -> dict[str, dict]:
    """Accuracy of each baseline, and the log loss of the one that gives probabilities.

    Args:
        resampler: Of the battles, grouped by prompt.
        battles: To be scored; with labels.
        train_battles: Other battles with labels, for "tf-idf" and, where both have a language, "majority per
            language"; without them these are left out.

    Returns:
        {name: {"accuracy": estimate[, "log_loss": estimate]}}, estimates as JSON values.
    """
    labels = np.array(battles["label"][:], float).reshape(-1, 2)
    lengths = measure_lengths(battles)
    found = {"always a": np.tile(SURE, (len(labels), 1)), "longer wins": lengths, "shorter wins": -lengths}
    if train_battles is not None and len(train_battles):
        if "language" in battles.column_names and "language" in train_battles.column_names:
            found["majority per language"] = predict_majority(train_battles, battles)
        if find_decided(np.array(train_battles["label"][:], float)).any():
            found["tf-idf"] = predict_tfidf(train_battles, battles)
    hits = np.column_stack([find_hits(scores, labels) for scores in found.values()])
    estimates = resampler.estimate_means(hits, find_decided(labels)[:, None], shares=range(len(found)))
    table = {name: {"accuracy": estimate.to_dict()} for name, estimate in zip(found, estimates, strict=True)}
    if "tf-idf" in found:
        (log_loss,) = resampler.estimate_means(find_losses(found["tf-idf"], labels)[:, None])
        table["tf-idf"]["log_loss"] = log_loss.to_dict()
    return table


def measure_lengths(battles: Dataset) -> np.ndarray:
    """Characters of both answers, shape (battles, 2)."""
    columns = [[len(text) for text in battles[f"response_{side}"][:]] for side in "ab"]
    return np.array(columns, float).T.reshape(-1, 2)


def predict_majority(train_battles: Dataset, battles: Dataset) -> np.ndarray:
    """The label that won more often among the training battles of the language, shape (battles, 2).

    A language that training has not seen, or that is even, gets what won more often in all.
    """
    labels = np.array(train_battles["label"][:], float)
    balance: Counter = Counter()
    for language, (a, b) in zip(train_battles["language"][:], labels, strict=True):
        balance[language] += a - b
    overall = labels[:, 0].sum() - labels[:, 1].sum()
    leads = np.array([balance[language] or overall for language in battles["language"][:]]).reshape(-1, 1)
    return np.hstack([leads, -leads])


def predict_tfidf(train_battles: Dataset, battles: Dataset) -> np.ndarray:
    """Probabilities of a logistic regression on the difference of the answers' TF-IDF of 2 to 4 characters.

    Without an intercept, so that exchanging the answers exchanges the probabilities; characters, because not every
    script puts spaces between words. Fitted on the training battles that favour an answer.

    Returns:
        Shape (battles, 2).
    """
    labels = np.array(train_battles["label"][:], float)
    decided = train_battles.select(np.flatnonzero(find_decided(labels)))
    won = labels[find_decided(labels), 0] > 0.5
    # An n-gram of one answer teaches nothing, unless there are hardly others.
    least = LEAST_ANSWERS if len(decided) > LEAST_ANSWERS else 1
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=NGRAMS, min_df=least, max_features=MOST_NGRAMS)
    answers = vectorizer.fit_transform([*decided["response_a"], *decided["response_b"]])
    differences = answers[: len(decided)] - answers[len(decided) :]
    # Every battle in both orders, so that there are two classes; C halves because the battles double.
    regression = LogisticRegression(C=0.5, fit_intercept=False, max_iter=1000)
    regression.fit(sparse.vstack([differences, -differences]), np.concatenate([won, ~won]))
    scored = vectorizer.transform(battles["response_a"][:]) - vectorizer.transform(battles["response_b"][:])
    return regression.predict_proba(scored)[:, ::-1]  # the classes are False, True: b won, a won
