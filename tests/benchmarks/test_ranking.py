"""The study of ranking: what it draws, and that the documented tables are the measured ones."""

import json
from itertools import combinations

import numpy as np
import pytest

from benchmarks import RESULTS
from benchmarks.studies.ranking import (
    NUM_READ,
    collect_answer_sets,
    draw_subsets,
    format_table,
    format_tokens,
    measure_methods,
    measure_noise,
    measure_tokens,
    simulate,
)
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.encoding.packing import pack_sequences
from tests.benchmarks import describe_default_judge
from tests.helpers import REPOSITORY, write_rows


def test_answer_sets_are_different_short_answers_to_one_prompt(tmp_path):
    """Prompt p has 18 different answers, of which one is too long; q has too few."""
    texts = [f"answer {number}" for number in range(17)] + ["long" * 100]
    rows = [
        {"id": f"p{at}", "prompt": "p", "response_a": text, "response_b": texts[0]} for at, text in enumerate(texts)
    ]
    rows.append({"id": "q", "prompt": "q", "response_a": "a", "response_b": "b"})
    path = str(write_rows(tmp_path / "battles.jsonl", rows))
    (found,) = collect_answer_sets([path], 5, 100, 0)
    assert found["prompt"] == "p" and len(set(found["responses"])) == NUM_READ and set(found["responses"]) < set(texts)
    subsets = draw_subsets([found], 8, 3, 0)
    assert [len(set(each["responses"])) for each in subsets] == [8] * 3 and len({each["id"] for each in subsets}) == 1


def test_verdicts_without_noise_give_the_ranking_from_any_pairs():
    """But for a knock-out, which ranks by rounds: it finds the best."""
    sets, verdicts = simulate(1.0, 0.0, 8, 0)
    rows = measure_methods(sets, verdicts)
    assert [row["method"] for row in rows] == ["knockout"] + ["active"] * 3 + ["swiss"] * 3
    for row in rows:
        assert row["best"]["value"] == 1 and (row["tau"]["value"] == pytest.approx(1) or row["method"] == "knockout")
        assert row["passes"] == pytest.approx(row["budget"] or 31 / 496, abs=1 / 496)


def test_the_noise_is_found_again():
    """16 of the 32 answers would do: the spreads of 40 sets are within a tenth. Fitting 31 scores takes up 31 of 496
    degrees of freedom."""
    spread, scatter = measure_noise(*simulate(0.8, 0.3, 40, 1))
    assert (spread, scatter) == (pytest.approx(0.8, rel=0.1), pytest.approx(0.3 * np.sqrt(1 - 31 / 496), rel=0.1))


def test_the_tokens_are_those_of_the_packs(tokenizer):
    """All pairs in one pack are the least; packs of limited size repeat some of it. An active ranking reads half of the
    pairs, in rounds that share less."""
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, 512, "balanced"))
    answers = [
        f"{letter} is what the tide does, and the moon pulls the sea about twice a day." for letter in "abcdefgh"
    ]
    row = {"id": 0, "prompt": "Why are there tides?", "responses": answers}
    pairs = [{"prompt": row["prompt"], "response_a": a, "response_b": b} for a, b in combinations(answers, 2)]
    encoded = encoder.encode_orders(encoder.clean_battles(pairs), ("ab", "ba"))
    sequences = [each["input_ids"] for battles in encoded.values() for each in battles]
    least = len(pack_sequences(sequences).input_ids) / sum(map(len, sequences))
    shares = measure_tokens([row], encoder, 0)
    assert list(shares) == ["all", "active, half of the passes"]
    assert (
        least <= shares["all"] < 1.2 * least
        and shares["all"] / 2 < shares["active, half of the passes"] < shares["all"]
    )


def test_the_documented_tables_are_the_measured_ones():
    results = json.loads((RESULTS / "ranking.json").read_text())
    page = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    assert results["members"] == describe_default_judge()
    assert format_table(results) in page and format_tokens(results) in page
    assert f"{results['prompts']} prompts" in page and f"{results['draws']} subsets" in page
    assert f"a spread of {results['spread']:.2f} and a scatter of {results['scatter']:.2f}" in page
