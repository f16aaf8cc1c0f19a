"""Scores public benchmarks by their authors' rules, beside baselines that read no prompt, with intervals.

A number of a benchmark is a weighted sum of means over some of its questions. It has a 95% interval from a bootstrap
over prompts. Beside it are the scores of rules that always pick the longest, the shortest or the first answer, and the
share of the judge's verdicts that change with the order of the answers. How a benchmark's files are read is in
data/benchmarks.py. This module must not know judges or files.

Authors run a judge in both orders. One that reads both orders itself gives the same verdict either way, so that their
two runs come to one number. Where a rule compares the two orders, it is applied to the passes of each order alone.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from datasets import Dataset

from modeling.data.benchmarks import (
    ADVERSARIAL,
    EXPERT,
    FORMATS,
    REWARDBENCH_SECTIONS,
    RM_BENCH_DOMAINS,
    RM_BENCH_LEVELS,
    TIES,
)
from modeling.data.outcomes import halve_ties
from modeling.evaluation.biases import pair_orders
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.report import halve_passes, read_passes, stack_probabilities

JUDGE, FLIPS = "judge", "flips"
BASELINES = ("longest", "shortest", "always a")
COLUMNS = ("question", "right_a", "right_b", "subset", "tags", "group", "language")

Rate = Callable[[int, Sequence[float]], np.ndarray]
Earned = dict[str, np.ndarray]  # by player: what each question earns, from 0 to 1
Term = tuple[np.ndarray, float, Earned]  # the questions of a mean, as booleans, its weight, and what they earn
Row = tuple[str, list[Term]]


def score_benchmark(
    name: str, battles: Dataset, verdicts: pd.DataFrame, rate: Rate, *, draws: int = 1000, seed: int = 0
) -> dict:
    """Scores a judge's verdicts on a benchmark.

    Args:
        name: Of the benchmark, one of `FORMATS`.
        battles: What `load_benchmark` returned.
        verdicts: Verdicts on the battles, in their order, with p_a and the passes.
        rate: Computes the score of each of n answers, in log odds, from the probabilities of all pairs.
        draws, seed: Of the bootstrap.

    Returns:
        name; questions, and size, their official number or None; absent, the subsets without any question; rows, each
        {"name", "judge", "longest", "shortest", "always a", "flips"} with estimates as JSON values. flips is over the
        questions that a member read in both orders, and None if there are none. Weighted sums leave absent subsets out,
        and the other weights grow in proportion.
    """
    questions = Questions(battles, verdicts, rate)
    resampler = Resampler(np.unique(questions.table["group"], return_inverse=True)[1], draws, seed)
    present = set(questions.table["subset"])
    rows = [
        {"name": title} | _estimate_row(resampler, terms, questions.flips)
        for title, terms in ROWS[name](questions)
        if terms
    ]
    absent = [subset for subset in FORMATS[name].subsets if subset not in present]
    return {
        "name": name,
        "questions": len(questions.table),
        "size": FORMATS[name].size,
        "absent": absent,
        "rows": rows,
    }


def _estimate_row(resampler: Resampler, terms: list[Term], flips: np.ndarray) -> dict:
    """Estimates a number for the judge and each baseline, and the judge's flips on the same questions."""
    parts, weights, earned = zip(*terms, strict=True)
    values = [np.column_stack([each[name] for name in (JUDGE, *BASELINES)]) for each in earned]
    estimates = resampler.estimate_weighted(values, parts, weights)
    row = {name: each.to_dict() for name, each in zip((JUDGE, *BASELINES), estimates, strict=True)}
    compared = weigh(
        [(part & ~np.isnan(flips), weight, {FLIPS: flips}) for part, weight in zip(parts, weights, strict=True)]
    )
    if not compared:
        return row | {FLIPS: None}
    parts, weights, _ = zip(*compared, strict=True)
    (flipped,) = resampler.estimate_weighted([flips[:, None]] * len(parts), parts, weights)
    return row | {FLIPS: flipped.to_dict()}


class Questions:
    """The questions of a benchmark, with the scores of their answers by the judge and by each baseline.

    table: One row per question, with subset, tags, group, language, and of its first pair right_a, right_b, and first
        and second, the mean p_a of each order alone, by members that read both (NaN if none did).
    right: How good each answer of each question is.
    scores: By player, the score of each answer of each question; the highest is the player's choice.
    decided: Whether some answers of a question are better than others.
    earned: By player, 1 for each question where the choice is one of the best answers, else 0.
    flips: Share of a question's pairs and of the members that read both orders whose winner changes with the order; NaN
        if no member read both.
    compared: Whether some member read a question in both orders.
    """

    def __init__(self, battles: Dataset, verdicts: pd.DataFrame, rate: Rate):
        pairs = battles.select_columns([name for name in COLUMNS if name in battles.column_names]).to_pandas()
        pairs["p"] = halve_ties(stack_probabilities(verdicts))[:, 0]
        for side in "ab":
            pairs[f"length_{side}"] = [float(len(text)) for text in battles[f"response_{side}"][:]]
        unread = [np.full((2, len(pairs)), np.nan)]
        orders = np.array(pair_orders(halve_passes(read_passes(verdicts))) or unread)  # (members, 2, pairs)
        known = ~np.isnan(orders).any(axis=1)  # (members, pairs)
        pairs["first"], pairs["second"] = (_average_members(orders[:, place], known) for place in (0, 1))
        pairs["flips"] = _average_members((orders[:, 0] >= 0.5) != (orders[:, 1] >= 0.5), known)
        self.table = pairs.drop_duplicates("question").reset_index()  # index: where a question begins
        for name in {"subset", "language"} & set(self.table):
            self.table[name] = self.table[name].astype("category")  # which is compared faster than text
        starts = self.table["index"].to_numpy()
        self.flips = pairs.groupby("question", sort=False)["flips"].mean().to_numpy()  # without NaN
        self.compared = ~np.isnan(self.flips)
        self.right: list[np.ndarray] = []
        self.scores: dict[str, list[np.ndarray]] = {name: [] for name in (JUDGE, *BASELINES)}
        columns = {name: pairs[name].to_numpy() for name in ("p", "right_a", "right_b", "length_a", "length_b")}
        for start, stop in pairwise([*starts.tolist(), len(pairs)]):
            self._add({name: values[start:stop] for name, values in columns.items()}, rate)
        best = [right == right.max() for right in self.right]
        self.decided = np.array([not each.all() for each in best])
        self.earned = {
            name: np.array([right[score.argmax()] for right, score in zip(best, scores, strict=True)], float)
            for name, scores in self.scores.items()
        }

    def _add(self, pairs: dict[str, np.ndarray], rate: Rate) -> None:
        """Adds a question from the columns of its pairs."""
        p = pairs["p"]
        num_answers = round((1 + np.sqrt(1 + 8 * len(p))) / 2)
        # The pairs are (0, 1), (0, 2), ...: the first n - 1 of them show all n answers.
        right, lengths = (
            np.append(pairs[f"{name}_a"][0], pairs[f"{name}_b"][: num_answers - 1]) for name in ("right", "length")
        )
        judge = rate(num_answers, p)  # as a reward model scores: p = 1 / (1 + exp(score_b - score_a))
        self.right.append(right)
        for name, score in zip(self.scores, (judge, lengths, -lengths, -np.arange(num_answers)), strict=True):
            self.scores[name].append(score)

    def find(self, *tags: str, **values: str) -> np.ndarray:
        """Returns which questions have these tags and values of `table`."""
        part = np.full(len(self.table), True)
        for name, value in values.items():
            part &= (self.table[name] == value).to_numpy()
        return part & np.array([set(tags) <= set(each) for each in self.table["tags"]]) if tags else part

    def take(self, *tags: str, **values: str) -> list[Term]:
        """Returns the mean over the decided questions with these tags and values; empty if there is none."""
        return weigh([(self.find(*tags, **values) & self.decided, 1, self.earned)])

    def list_values(self, name: str) -> list[str]:
        """Returns the values of a column of `table`, the most frequent first; none if there is no such column."""
        return self.table[name].value_counts().index.tolist() if name in self.table else []


def _average_members(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Means over the members with known values, shape (pairs,); NaN for a pair without any."""
    return np.ma.array(values, dtype=float, mask=~known).mean(axis=0).filled(np.nan)


# --- weighted sums ----------------------------------------------------------------------------------------------------


def weigh(terms: Sequence[Term]) -> list[Term]:
    """Returns the terms that have questions, with weights that add to 1."""
    kept = [term for term in terms if term[0].any()]
    total = sum(weight for _, weight, _ in kept)
    return [(part, weight / total, earned) for part, weight, earned in kept]


def average(*numbers: list[Term]) -> list[Term]:
    """Returns the mean of numbers; those without questions are left out."""
    present = [number for number in numbers if number]
    return [(part, weight / len(present), earned) for number in present for part, weight, earned in number]


# --- one function per benchmark ---------------------------------------------------------------------------------------


def list_rewardbench(questions: Questions) -> Iterator[Row]:
    """Lists RewardBench 1's numbers: the mean of the four sections, the sections, and the subsets."""
    sections = _weigh_sections(questions)
    yield "overall", average(*sections.values())
    yield from sections.items()
    yield from _list_subsets(questions)


def _weigh_sections(questions: Questions, **values: str) -> dict[str, list[Term]]:
    """The sections of RewardBench 1 with the official weights of their subsets."""
    return {
        section: weigh(
            [
                (part, weight * share, earned)
                for subset, weight in subsets.items()
                for part, share, earned in questions.take(subset=subset, **values)
            ]
        )
        for section, subsets in REWARDBENCH_SECTIONS.items()
    }


def _list_subsets(questions: Questions) -> Iterator[Row]:
    """Lists the mean of each subset, in the order of the data."""
    for subset in dict.fromkeys(questions.table["subset"]):
        yield subset, questions.take(subset=subset)


def list_m_rewardbench(questions: Questions) -> Iterator[Row]:
    """Lists M-RewardBench's numbers: RewardBench 1's for each language, and their means over the languages."""
    languages = {name: _weigh_sections(questions, language=name) for name in sorted(questions.list_values("language"))}
    overall = {name: average(*sections.values()) for name, sections in languages.items()}
    yield "overall", average(*overall.values())
    for section in REWARDBENCH_SECTIONS:
        yield section, average(*(sections[section] for sections in languages.values()))
    yield from overall.items()


def list_rewardbench2(questions: Questions) -> Iterator[Row]:
    """Lists RewardBench 2's numbers: the mean of its subsets, and the subsets."""
    subsets = dict(_list_subsets(questions))
    if TIES in subsets:
        subsets[TIES] = score_ties(questions)
    yield "overall", average(*subsets.values())
    yield from subsets.items()


def score_ties(questions: Questions) -> list[Term]:
    """Returns RewardBench 2's score of the subset Ties. Source: allenai/reward-bench, rewardbench/utils.py.

    A question is right if every right answer scores higher than every wrong one. 0.3 of the score is the share of right
    questions with one right answer, 0.3 that of questions with several. 0.2 is how often the margin between right and
    wrong answers is larger than the spread of the right ones, 0.2 how often the smaller of that margin and the margin
    of the paired question with one right answer is. 0.01 is the mean of tanh(smaller margin / spread - 1).
    """
    tied, ref = (questions.find(kind, subset=TIES) for kind in ("tied", "ref"))
    numbers = [tags[1] if len(tags) > 1 else "" for tags in questions.table["tags"]]
    partner = {numbers[place]: place for place in np.flatnonzero(ref)}
    paired = tied & np.array([number in partner for number in numbers])
    earned: dict[str, Earned] = {name: {} for name in ("right", "margin", "both margins", "size")}
    for player, scores in questions.scores.items():
        margins, spreads = np.zeros(len(scores)), np.zeros(len(scores))
        for place in np.flatnonzero(tied | ref):
            good = questions.right[place] == questions.right[place].max()
            margins[place] = scores[place][good].min() - scores[place][~good].max()
            spreads[place] = np.ptp(scores[place][good])
        smaller = margins.copy()
        for place in np.flatnonzero(paired):
            smaller[place] = min(margins[place], margins[partner[numbers[place]]])
        with np.errstate(divide="ignore", invalid="ignore"):  # no spread: tanh of infinity is 1, and 0 / 0 counts 0
            size = np.nan_to_num(np.tanh(smaller / spreads - 1))
        for name, values in zip(earned, (margins > 0, margins > spreads, smaller > spreads, size), strict=True):
            earned[name][player] = values.astype(float)
    terms = [(tied, 0.3, "right"), (ref, 0.3, "right"), (paired, 0.2, "margin"), (paired, 0.2, "both margins")]
    terms += [(paired, 0.01, "size")]
    return [(part, weight, earned[name]) for part, weight, name in terms if part.any()]


def list_rm_bench(questions: Questions) -> Iterator[Row]:
    """Lists RM-Bench's numbers: the mean of the domains, that of easy, normal and hard pairs alone, and the domains.

    The authors publish the rule for the pairs of one file. That domains count alike is inferred from a table of theirs:
    its overall of 85.28 is the mean of its domains, but its hard of 80.24 is only near theirs, 79.9.
    """
    domains = _take_domains(questions)
    yield "overall", average(*domains.values())
    for level in RM_BENCH_LEVELS:
        yield level, average(*_take_domains(questions, level).values())
    yield from domains.items()


def _take_domains(questions: Questions, *tags: str) -> dict[str, list[Term]]:
    """The domains of RM-Bench; safety is the mean of what should be refused and what should be answered."""
    domains = {domain: questions.take(*tags, subset=domain) for domain in RM_BENCH_DOMAINS}
    kinds = sorted({tag for each in questions.table["tags"] for tag in each if tag.startswith("safety-")})
    return domains | {"safety": average(*(questions.take(*tags, kind) for kind in kinds))}


def list_judgebench(questions: Questions) -> Iterator[Row]:
    """Lists JudgeBench's numbers for each model whose answers are compared.

    "Right in both orders" is the authors' rule for the passes of each order alone: a verdict that flips is wrong.
    """
    won = questions.table["right_a"] > questions.table["right_b"]
    both = np.all([(questions.table[order] >= 0.5) == won for order in ("first", "second")], axis=0)
    for model in sorted({tag for tags in questions.table["tags"] for tag in tags}):
        yield f"{model}: overall", questions.take(model)
        earned = questions.earned | {JUDGE: both.astype(float)}
        yield f"{model}: right in both orders", weigh([(questions.find(model) & questions.compared, 1, earned)])
        for subset in FORMATS["judgebench"].subsets:
            yield f"{model}: {subset}", questions.take(model, subset=subset)


def list_llmbar(questions: Questions) -> Iterator[Row]:
    """Lists LLMBar's numbers: the mean of the five subsets, that of the four adversarial ones, and the subsets."""
    subsets = {name: questions.take(subset=name) for name in FORMATS["llmbar"].subsets}
    yield "overall", average(*subsets.values())
    yield "Adversarial", average(*(subsets[name] for name in ADVERSARIAL))
    yield from subsets.items()


def list_mt_bench(questions: Questions) -> Iterator[Row]:
    """Lists the agreement with MT-Bench's votes, by turn; the official numbers are about the experts' votes.

    With ties, a judge says "tie" where its two orders disagree, as the authors' judge does, and baselines never do.
    Questions that were not read in both orders are left out there, unless none was.
    """
    hits = {player: values * questions.decided for player, values in questions.earned.items()}
    first, second = (questions.table[order] >= 0.5 for order in ("first", "second"))
    hits[JUDGE] = np.where(first == second, hits[JUDGE], ~questions.decided)
    judged = questions.compared | ~questions.compared.any()
    for turn in FORMATS["mt-bench"].subsets:
        yield f"{turn}, without ties", questions.take(EXPERT, subset=turn)
        yield f"{turn}, with ties", weigh([(questions.find(EXPERT, subset=turn) & judged, 1, hits)])
    yield "with the authors' votes, without ties", questions.take()


def list_means(questions: Questions) -> Iterator[Row]:
    """Lists the mean over all questions, of each subset if there are several, and of each tag and language."""
    yield "overall", questions.take()
    if len(subsets := questions.list_values("subset")) > 1:
        yield from ((subset, questions.take(subset=subset)) for subset in subsets)
    for tag in sorted({tag for tags in questions.table["tags"] for tag in tags}):
        yield tag, questions.take(tag)
    for language in questions.list_values("language"):
        yield language, questions.take(language=language)


ROWS: dict[str, Callable[[Questions], Iterator[Row]]] = {
    "rewardbench": list_rewardbench,
    "rewardbench2": list_rewardbench2,
    "rm-bench": list_rm_bench,
    "judgebench": list_judgebench,
    "llmbar": list_llmbar,
    "ppe": list_means,
    "m-rewardbench": list_m_rewardbench,
    "mt-bench": list_mt_bench,
    "helpsteer3": list_means,
}
