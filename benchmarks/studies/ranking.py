"""How well do fewer passes rank n answers, and how many tokens does a ranking read?

    python -m benchmarks.studies.ranking --battles soft_labels_en.parquet

The default judge reads all pairs of 16 short answers to each of a few prompts of the files. Its verdicts then answer
each method of `rank.py`, also for 8 and 4 of the 16. Few prompts have 32 answers, so these are simulated: normal scores
and normal noise in log odds, with the spreads that the real verdicts have. Writes benchmarks/results/ranking.json.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from benchmarks import RESULTS
from benchmarks.speed.machine import describe_machine
from modeling.data.battles import load_battles
from modeling.encoding.encoder import BattleEncoder
from modeling.encoding.packing import pack_sequences
from modeling.evaluation.bootstrap import Resampler, format_estimate
from modeling.judging.judge import Judge, describe_members
from modeling.judging.pairings import count_pairs
from modeling.judging.predictor import build_batches, choose_budget
from modeling.judging.ranking import fit_scores, list_pairs, list_texts
from modeling.judging.tournament import Ranking, rank_answer_sets
from modeling.runtime.choices import BUDGETED, ORIENTATIONS

NUM_READ, NUM_SIMULATED = 16, 32  # answers to a prompt
SIZES = (4, 8, NUM_READ)
BUDGETS = (0.25, 0.5, 0.75)
UNCUT = 8192  # tokens

Verdicts = dict[tuple[str, str, str], float]  # p_a by prompt, response_a and response_b


def collect_answer_sets(files: Sequence[str], num_prompts: int, longest: int, seed: int) -> list[dict]:
    """Returns prompts with at least `NUM_READ` different answers of at most so many characters, and so many of these.

    Prompts and answers are drawn without replacement.
    """
    answers: dict[str, dict[str, None]] = {}  # a dict, because it keeps order and drops repeats
    for battle in (battle for file in files for battle in load_battles(file, blank_policy="drop")):
        answers.setdefault(battle["prompt"], {}).update(dict.fromkeys((battle["response_a"], battle["response_b"])))
    rng = np.random.default_rng(seed)
    short = {prompt: [text for text in texts if len(text) <= longest] for prompt, texts in answers.items()}
    found = [(prompt, texts) for prompt, texts in short.items() if len(texts) >= NUM_READ]
    drawn = [found[place] for place in rng.permutation(len(found))[:num_prompts]]
    return [
        {
            "id": number,
            "prompt": prompt,
            "responses": [texts[place] for place in rng.permutation(len(texts))[:NUM_READ]],
        }
        for number, (prompt, texts) in enumerate(drawn)
    ]


def draw_subsets(answer_sets: Sequence[Mapping], size: int, draws: int, seed: int) -> list[dict]:
    """Returns `draws` subsets of each answer set, or the sets themselves if they have this size; the id stays."""
    if size == NUM_READ:
        return list(answer_sets)
    rng = np.random.default_rng(seed)
    return [
        each | {"responses": [each["responses"][place] for place in rng.permutation(NUM_READ)[:size]]}
        for each in answer_sets
        for _ in range(draws)
    ]


def read_verdicts(judge: Judge, answer_sets: Sequence[Mapping], progress: Path) -> Verdicts:
    """Lets the judge read all pairs of all answer sets in both orders."""
    rows = [
        (each["prompt"], texts[i], texts[j])
        for each in answer_sets
        for texts in [list_texts(each["responses"])]
        for i, j in list_pairs(len(texts))
    ]
    return dict(zip(rows, judge.predict(rows, readings="both", progress_dir=progress)["p_a"], strict=True))


def simulate(spread: float, scatter: float, num_sets: int, seed: int) -> tuple[list[dict], Verdicts]:
    """Draws answer sets whose answers have normal scores, and verdicts with normal noise in their log odds."""
    rng, verdicts, sets = np.random.default_rng(seed), {}, []
    texts = [f"{number:02}" for number in range(NUM_SIMULATED)]
    for number in range(num_sets):
        scores = rng.normal(0, spread, NUM_SIMULATED)
        sets.append({"id": number, "prompt": str(number), "responses": texts})
        for i, j in list_pairs(NUM_SIMULATED):
            noise = rng.normal(0, scatter)
            verdicts[str(number), texts[i], texts[j]] = float(expit(scores[i] - scores[j] + noise))
    return sets, verdicts


def measure_noise(answer_sets: Sequence[Mapping], verdicts: Verdicts) -> tuple[float, float]:
    """Returns the standard deviations of the scores, and of the verdicts' log odds around them."""
    spreads, scatters = [], []
    for each in answer_sets:
        texts, pairs = list_texts(each["responses"]), list_pairs(len(each["responses"]))
        p = np.array([verdicts[each["prompt"], texts[i], texts[j]] for i, j in pairs])
        scores = fit_scores(len(texts), pairs, p)
        first, second = np.array(pairs).T
        spreads.append(scores.var())
        scatters.append(((logit(p) - scores[first] + scores[second]) ** 2).mean())
    return float(np.sqrt(np.mean(spreads))), float(np.sqrt(np.mean(scatters)))


def place_answers(ranking: Ranking) -> np.ndarray:
    """The place of each answer, 0 for the best, shape (answers,)."""
    return np.argsort(ranking.ranking)


def measure_methods(answer_sets: Sequence[Mapping], verdicts: Verdicts) -> list[dict]:
    """Compares each method and budget with all pairs, over answer sets of one size; prompts are drawn for intervals.

    Returns:
        {"method", "budget", "passes", "tau", "best"}: the share of the passes, Kendall's tau of the two rankings, and
        how often both have the same best answer.
    """

    def predict(battles: Sequence[Mapping]) -> list[float]:
        """The verdicts as they were read."""
        return [verdicts[battle["prompt"], battle["response_a"], battle["response_b"]] for battle in battles]

    size = len(answer_sets[0]["responses"])
    full = [place_answers(each) for each in rank_answer_sets(predict, answer_sets, "all", None, 1)]
    resampler, rows = Resampler([each["id"] for each in answer_sets]), []
    for method, budget in (("knockout", None), *((method, budget) for method in BUDGETED for budget in BUDGETS)):
        if budget and count_pairs(method, size, budget) == size - 1:
            continue  # the bracket alone
        found = rank_answer_sets(predict, answer_sets, method, budget, 1)
        places = [place_answers(each) for each in found]
        values = [
            (stats.kendalltau(ours, theirs).statistic, ours.argmin() == theirs.argmin())
            for ours, theirs in zip(places, full, strict=True)
        ]
        tau, best = resampler.estimate_means(np.array(values, float), shares=[1])
        passes = np.mean([each.passes for each in found]) / len(list_pairs(size))
        rows.append({"method": method, "budget": budget, "passes": float(passes), "tau": tau.to_dict()})
        rows[-1]["best"] = best.to_dict()
    return rows


def build_counter(encoder: BattleEncoder, counts: list[int]) -> Callable[[Sequence[Mapping]], None]:
    """Returns a function that adds to `counts` the tokens of battles in both orders: as packed, and one by one."""

    def count(battles: Sequence[Mapping]) -> None:
        """Packs the battles as the predictor does on a CPU."""
        encoded = encoder.encode_orders(encoder.clean_battles(battles), ORIENTATIONS)
        sequences = [each["input_ids"] for battles in encoded.values() for each in battles]
        packs = build_batches(sequences, choose_budget(sequences, "cpu"))
        counts[0] += sum(len(pack_sequences([sequences[row] for row in pack]).input_ids) for pack in packs)
        counts[1] += sum(map(len, sequences))

    return count


def measure_tokens(answer_sets: Sequence[Mapping], encoder: BattleEncoder, seed: int) -> dict[str, float]:
    """Returns the tokens that each way of ranking reads, as shares of all pairs in both orders, one by one.

    Verdicts are drawn at random: which pairs an active ranking reads depends on them, how many tokens hardly does.
    """
    rng, shares, alone = np.random.default_rng(seed), {}, 0
    for name, method, budget in (("all", "all", None), ("active, half of the passes", "active", 0.5)):
        counts = [0, 0]
        count = build_counter(encoder, counts)

        def predict(battles: Sequence[Mapping], count: Callable = count) -> np.ndarray:
            """Random verdicts, after the tokens were counted."""
            count(battles)
            return rng.uniform(0.1, 0.9, len(battles))

        rank_answer_sets(predict, answer_sets, method, budget, len(ORIENTATIONS))
        alone = alone or counts[1]
        shares[name] = counts[0] / alone
    return shares


def format_table(results: Mapping) -> str:
    """Returns a Markdown table with a row per number of answers, method and budget."""
    lines = ["| answers | method | passes | Kendall's tau [95%] | same best answer [95%] |", "|---" * 5 + "|"]
    for size, rows in results["agreement"].items():
        for row in rows:
            cells = [format_estimate(row[name]) for name in ("tau", "best")]
            lines.append(f"| {size} | {row['method']} | {row['passes']:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_tokens(results: Mapping) -> str:
    """Returns a Markdown table of the tokens read, as shares of all pairs one by one."""
    tables = results["tokens"]
    names = next(iter(tables.values()))
    lines = [f"| 8 answers | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    lines += [f"| {title} | {' | '.join(f'{share:.3f}' for share in row.values())} |" for title, row in tables.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--battles", nargs="+", required=True, help="Files of battles with many answers per prompt.")
    parser.add_argument("--prompts", type=int, default=6, help="Prompts whose 16 answers are read.")
    parser.add_argument("--longest", type=int, default=400, help="Characters of an answer that is read.")
    parser.add_argument("--draws", type=int, default=10, help="Subsets of 4 and of 8 answers for each prompt.")
    parser.add_argument("--simulated", type=int, default=60, help="Simulated sets of 32 answers.")
    parser.add_argument("--seed", type=int, default=0, help="Of all draws.")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/ranking"), help="Keeps what the judge has read.")
    parser.add_argument("--output", type=Path, default=RESULTS / "ranking.json", help="Result file.")
    arguments = parser.parse_args()
    judge = Judge.from_pretrained()
    sets = collect_answer_sets(arguments.battles, arguments.prompts, arguments.longest, arguments.seed)
    verdicts = read_verdicts(judge, sets, arguments.work_dir)
    by_size = {size: draw_subsets(sets, size, arguments.draws, arguments.seed) for size in SIZES}
    agreement = {str(size): measure_methods(subsets, verdicts) for size, subsets in by_size.items()}
    spread, scatter = measure_noise(sets, verdicts)
    agreement[f"{NUM_SIMULATED}, simulated"] = measure_methods(
        *simulate(spread, scatter, arguments.simulated, arguments.seed)
    )
    encoder = judge.members[0].encoder
    uncut = BattleEncoder(encoder.tokenizer, replace(encoder.encoding, max_length=UNCUT))
    any_length = collect_answer_sets(arguments.battles, 2 * arguments.prompts, 1_000_000, arguments.seed)
    measured = {
        f"answers of at most {arguments.longest} characters": (sets, encoder),
        f"any answers, battles cut to {encoder.encoding.max_length} tokens": (any_length, encoder),
        "any answers, uncut": (any_length, uncut),
    }
    tokens = {
        title: measure_tokens(draw_subsets(found, 8, 1, arguments.seed), each, arguments.seed)
        for title, (found, each) in measured.items()
    }
    results = {
        "prompts": len(sets),
        "draws": arguments.draws,
        "simulated": arguments.simulated,
        "spread": round(spread, 3),
        "scatter": round(scatter, 3),
        "members": describe_members(judge.members),
        "machine": describe_machine(),
        "agreement": agreement,
        "tokens": tokens,
    }
    print(format_table(results), format_tokens(results), sep="\n\n")
    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
