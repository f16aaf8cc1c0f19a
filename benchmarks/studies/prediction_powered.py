"""Do the intervals of prediction-powered inference hold the truth, and how much narrower are they than the votes' own?

    python -m benchmarks.studies.prediction_powered     # writes benchmarks/results/prediction_powered.json

Simulated battles of models with known strengths, a random tenth of them with a vote. Two battles share each prompt. The
judge prefers the first model's answers more than people do, so that its own ratings are wrong, and names the winner of
other battles with a given accuracy.
"""

import json
import time

import numpy as np
from scipy import special, stats

from benchmarks import RESULTS
from modeling.evaluation.leaderboard import scale_strengths
from modeling.evaluation.prediction_powered import estimate_mean, rate_models

BATTLES, VOTES = 2000, 200
STRENGTHS = np.array([0.6, 0.3, 0.0, -0.3, -0.6])  # natural logarithms
SELF_PREFERENCE = 0.5  # what the judge adds to the log-odds of the first model
ACCURACIES = (0.6, 0.7, 0.8, 0.9)
REPEATS = 1000
WAYS = ("votes", "judge", "both")


def draw_battles(accuracy: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Returns first and second model, labels (NaN without a vote), the judge's predictions and prompts' numbers."""
    first, second = rng.permuted(np.tile(np.arange(len(STRENGTHS)), (BATTLES, 1)), axis=1)[:, :2].T
    outcomes = (rng.random(BATTLES) < special.expit(STRENGTHS[first] - STRENGTHS[second])).astype(float)
    # A signal of standard deviation 1 around +-mean has the wrong sign in 1 - accuracy of all battles. Log-odds that
    # follow from it are 2 * mean * signal.
    mean = stats.norm.ppf(accuracy)
    signal = (2 * outcomes - 1) * mean + rng.normal(size=BATTLES)
    liked = SELF_PREFERENCE * ((first == 0) * 1.0 - (second == 0))
    voted = rng.permutation(BATTLES) < VOTES
    labels = np.where(voted, outcomes, np.nan)
    return first, second, labels, special.expit(2 * mean * signal + liked), np.arange(BATTLES) // 2


def compute_truth() -> tuple[np.ndarray, np.ndarray]:
    """Returns the models' true win rates against opponents drawn at random, and their true ratings."""
    wins = special.expit(STRENGTHS[:, None] - STRENGTHS)
    np.fill_diagonal(wins, 0)
    return wins.sum(axis=1) / (len(STRENGTHS) - 1), scale_strengths(STRENGTHS)


def simulate(accuracy: float, repeats: int, seed: int) -> dict[str, dict]:
    """Returns for win rates and ratings the coverage and mean width of each way's intervals, and effective votes."""
    rng, truths = np.random.default_rng(seed), compute_truth()
    held, widths, effective = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(2)
    for _ in range(repeats):
        first, second, *rows = draw_battles(accuracy, rng)
        rates = []
        for model in range(len(STRENGTHS)):
            part = (first == model) | (second == model)
            turned = second[part] == model
            labels, predictions = (np.where(turned, 1 - each[part], each[part]) for each in rows[:2])
            rates.append(estimate_mean(labels, predictions, rows[2][part]))
        for kind, found in enumerate((rates, rate_models(first, second, *rows))):
            effective[kind] += np.mean([each.effective_votes / each.votes.count for each in found])
            for way, name in enumerate(WAYS):
                estimates = [vars(each)[name] for each in found]
                held[kind, way] += np.mean([e.low <= t <= e.high for e, t in zip(estimates, truths[kind], strict=True)])
                widths[kind, way] += np.mean([e.high - e.low for e in estimates])
    return {
        kind: {
            "coverage": dict(zip(WAYS, (held[place] / repeats).round(4).tolist(), strict=True)),
            "width": dict(zip(WAYS, (widths[place] / repeats).round(4).tolist(), strict=True)),
            "effective_votes_per_vote": round(effective[place] / repeats, 3),
        }
        for place, kind in enumerate(("win_rate", "rating"))
    }


def format_results(results: dict) -> str:
    """Returns a row per accuracy of the judge: coverage of each way's ratings, and how wide the intervals are."""
    lines = [
        "| judge's accuracy | votes alone hold | judge alone holds | both hold | both, of win rates | width, both : "
        "votes alone | one vote is worth |",
        "|---" * 7 + "|",
    ]
    for accuracy, found in results["accuracies"].items():
        rating, rate = found["rating"], found["win_rate"]
        cells = [accuracy, *(f"{rating['coverage'][way]:.1%}" for way in WAYS), f"{rate['coverage']['both']:.1%}"]
        narrower, worth = rating["width"]["both"] / rating["width"]["votes"], rating["effective_votes_per_vote"]
        lines.append(f"| {' | '.join([*cells, f'{narrower:.2f}', f'{worth:.2f}'])} |")
    return "\n".join(lines)


def main() -> None:
    start = time.perf_counter()
    found = {f"{accuracy}": simulate(accuracy, REPEATS, seed) for seed, accuracy in enumerate(ACCURACIES)}
    results = {"battles": BATTLES, "votes": VOTES, "repeats": REPEATS, "accuracies": found}
    results["seconds"] = round(time.perf_counter() - start)
    (RESULTS / "prediction_powered.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(format_results(results))


if __name__ == "__main__":
    main()
