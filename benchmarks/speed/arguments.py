"""The settings of `python -m benchmarks.speed`. Nothing under modeling/ knows them."""

from dataclasses import dataclass
from typing import ClassVar

from modeling.runtime.choices import PRECISIONS, READINGS
from modeling.settings.arguments import BASE_HELP, DTYPE_HELP, option, require

RECIPE = "benchmarks/speed/benchmark.yaml"


@dataclass
class BenchmarkArguments:
    """Times one task against other ways of doing it, in alternating rounds, and writes the results."""

    # Empty: a user who times other battles still wants the recipe's judge and base.
    own_data: ClassVar[tuple[str, ...]] = ()

    what: str = option(
        "prediction",
        "What to time. prediction, training: against the notebook's way and peers. second_readings: accuracy against "
        "seconds as more battles get a second pass. growth: cost against the number and length of battles. encoding: "
        "against row-by-row tokenisation. streaming: a file of any size, read in parts.",
        choices=("prediction", "training", "second_readings", "growth", "encoding", "streaming"),
        group="what is timed",
    )
    battles: list[str] | None = option(
        None, "Battle files: parquet, csv or jsonl. One file; growth takes several.", path="battles"
    )
    judge: list[str] | None = option(None, "Judge to time: members or one whole judge.", path="judge")
    readings: str | None = option(
        "own", "Passes of each member, as in predict.py. The notebook's are own.", choices=READINGS
    )
    base: str = option(None, f"{BASE_HELP} For encoding, a folder with only a tokenizer is enough.")
    max_length: int = option(
        2200, "Maximum tokens of an encoded battle, special tokens included. A judge has its own maximum."
    )
    count: int = option(64, "Battles per round; rounds do not overlap.")
    repeats: int = option(3, "Rounds of each way. Results are medians, and ratios within a round.")
    counts: list[int] | None = option(None, "Numbers of battles for growth; 1000 2000 4000 8000 if left out.")
    rows: int = option(1_000_000, "Battles to stream. The file is repeated until there are enough, with new ids.")
    dtype: str = option("auto", f"{DTYPE_HELP} For prediction and training.", choices=PRECISIONS)
    output: str = option(None, "JSON file to write; a plot of the same name goes beside it.", group="output")

    def __post_init__(self):
        require(self, "battles", "output")
        if self.what in ("prediction", "second_readings", "growth"):
            require(self, "judge")
        if self.what not in ("second_readings", "growth"):
            require(self, "base")
        if min(self.repeats, self.count, self.rows) < 1:
            raise ValueError(f"--repeats {self.repeats} --count {self.count} --rows {self.rows}: expected 1 or more.")
        if self.what != "growth" and len(self.battles) > 1:
            raise ValueError(f"--battles: expected one file for {self.what}; found {len(self.battles)}. Name one.")
