"""Counterfactual pairs: two battles with the same two answers, each of which is right for another prompt.

Only the prompt tells which answer wins, so a model cannot learn such battles without reading it. In one batch, whatever
the two answers give away by themselves cancels out. This module must not know tensors.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from modeling.data.near_duplicates import normalize_text
from modeling.data.outcomes import LABELS, is_tie

MOST_TRIES = 20  # draws for each pair that is wanted, before the battles count as too few
NGRAMS = (2, 4)  # lengths of the parts of words, in characters, that similar texts share
Answers = dict[str | None, list[tuple[str, str]]]  # prompt and winning answer, by language


def make_counterfactuals(battles: Dataset, count: int, seed: int = 0, similar: int = 0) -> Dataset:
    """Makes counterfactual pairs of labelled battles: two prompts in one language, with the answer that won each.

    Args:
        battles: Battles with a column label and, if there are several languages, a column language.
        count: Number of pairs.
        seed: Decides which prompts meet, and which answer comes first.
        similar: Take the second prompt from so many that are most similar to the first in words, answers included, so
            that the pair is harder. Each two prompts meet once. 0: any two prompts of the language.

    Returns:
        Twice as many battles, the two of a pair one after the other, with columns id, prompt, response_a, response_b,
        label and language.

    Raises:
        ValueError: If no language has two decided battles with different prompts and answers, or too few are similar.
    """
    random, rows = np.random.default_rng(seed), []
    no_tie = [0.0] * (len(battles[0]["label"]) - len(LABELS)) if len(battles) else []
    languages = _list_answers(battles)
    draws = _draw_similar(languages, similar, random) if similar else _draw_any(languages, count, random)
    different = (
        (language, (prompt, right), (other, wrong))
        for language, (prompt, right), (other, wrong) in draws
        if normalize_text(prompt) != normalize_text(other) and normalize_text(right) != normalize_text(wrong)
    )
    for language, (prompt, right), (other, wrong) in islice(different, count):
        a_first = bool(random.integers(2))
        answers = {"response_a": right if a_first else wrong, "response_b": wrong if a_first else right}
        for number, (text, a_wins) in enumerate(((prompt, a_first), (other, not a_first))):
            id, label = f"made-{len(rows) // 2}-{number}", [float(a_wins), float(not a_wins), *no_tie]
            rows.append({"id": id, "prompt": text, **answers, "label": label, "language": language})
    if len(rows) < 2 * count:
        raise ValueError(
            f"--counterfactual_pairs {count}: expected so many pairs of decided battles of one language with different "
            f"prompts and answers; found {len(rows) // 2}. Give more battles, or ask for fewer pairs."
        )
    return Dataset.from_list(rows)


def _draw_any(languages: Answers, count: int, random: np.random.Generator) -> Iterator[tuple]:
    """Draws a language and two of its battles, which may be the same, so many times."""
    # By the root of its battles, so that a small language is not lost beside a large one.
    shares = np.sqrt([len(answers) for answers in languages.values()])
    for _ in range(MOST_TRIES * count if languages else 0):
        language = list(languages)[random.choice(len(languages), p=shares / shares.sum())]
        first, second = random.integers(len(languages[language]), size=2)
        yield language, languages[language][first], languages[language][second]


def _draw_similar(languages: Answers, similar: int, random: np.random.Generator) -> Iterator[tuple]:
    """Draws two battles of a language that are similar, each two once, in random order."""
    found = []
    for language, answers in languages.items():
        texts = [" ".join(answer) for answer in answers]
        vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS, sublinear_tf=True).fit_transform(texts)
        nearest = NearestNeighbors(n_neighbors=min(similar + 1, len(texts)), metric="cosine").fit(vectors)
        neighbours = nearest.kneighbors(vectors, return_distance=False)
        pairs = {tuple(sorted((row, other))) for row, others in enumerate(neighbours) for other in others.tolist()}
        found += [(language, answers[first], answers[second]) for first, second in sorted(pairs) if first != second]
    return (found[number] for number in random.permutation(len(found)))


def _list_answers(battles: Dataset) -> Answers:
    """Returns the prompt and the winning answer of each decided battle, by language; languages with at least two."""
    count = len(battles)
    languages = battles["language"][:] if "language" in battles.column_names else [None] * count
    found: Answers = {}
    columns = (battles[name][:] for name in ("prompt", "response_a", "response_b", "label"))
    for language, prompt, a, b, label in zip(languages, *columns, strict=True):
        if not is_tie(label):
            found.setdefault(language, []).append((prompt, a if label[0] > label[1] else b))
    return {language: answers for language, answers in found.items() if len(answers) > 1}


def number_units(battles: Dataset) -> list[int]:
    """Returns a number for each battle, which the two battles of a counterfactual pair share.

    Two battles are a pair if they have the same answers in the same places, other prompts, and opposite winners. Each
    battle is in one pair at most: many battles between "yes" and "no" would otherwise come in one batch, all with the
    same winner.
    """
    units = list(range(len(battles)))
    # Battles without a partner yet, by answers and winner, then by prompt.
    waiting: dict[tuple, dict[str, list[int]]] = {}
    columns = (battles[name][:] for name in ("response_a", "response_b", "prompt", "label"))
    for row, (a, b, prompt, label) in enumerate(zip(*columns, strict=True)):
        if is_tie(label):
            continue
        a_wins = label[0] > label[1]
        partners = waiting.get((a, b, not a_wins), {})
        other = next((asked for asked in partners if asked != prompt), None)
        if other is None:
            waiting.setdefault((a, b, a_wins), {}).setdefault(prompt, []).append(row)
            continue
        units[row] = partners[other].pop()
        if not partners[other]:
            del partners[other]
    return units
