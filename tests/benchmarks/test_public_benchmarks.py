"""The table of public benchmarks is the measured one, of the judge that ships, and no vote changes in it."""

import json

from benchmarks import REPOSITORY, RESULTS
from benchmarks.studies.public_benchmarks import format_table, write_llmbar
from modeling.data.battles import swap_responses
from modeling.data.benchmarks import load_benchmark
from tests.benchmarks import describe_default_judge

PAGE = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_table_is_what_was_measured_with_this_judge():
    results = json.loads((RESULTS / "public_benchmarks.json").read_text(encoding="utf-8"))
    assert results["members"] == describe_default_judge()
    (found,) = results["benchmarks"]
    assert format_table(found) in PAGE
    assert f"{found['questions']} of {found['size']} questions" in " ".join(PAGE.split())


def test_votes_keep_their_winner_in_the_benchmark_s_format(sample_battles, tmp_path):
    """Of three votes the source of one is not LLMBar's own; swapped, the labels are the other ones."""
    sources = ["llmbar::llmbar/Natural", "llmbar::llmbar/Adversarial/Manual", "llmbar::llmbar/Processed/FairEval"]
    decided = sample_battles.filter(lambda row: row["label"][0] != 0.5).select(range(3))
    votes = decided.remove_columns([name for name in ("source",) if name in decided.column_names])
    for number, battles in enumerate((votes, swap_responses(votes))):
        write_llmbar(battles.add_column("source", sources), tmp_path / f"{number}")
        found = {row["prompt"]: row for row in load_benchmark("llmbar", str(tmp_path / f"{number}"))}
        assert len(found) == 2 and {row["subset"] for row in found.values()} == {"Natural", "Manual"}
        for battle in battles.select(range(2)):
            row = found[battle["prompt"]]
            assert row["label"] == battle["label"] and row["response_a"] == battle["response_a"]
