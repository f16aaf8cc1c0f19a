"""Measurements and studies, run from the root of a clone. They are not in the wheel, and nothing in it uses them."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
