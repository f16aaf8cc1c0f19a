"""One battle's verdict for a person to read: the winner, how sure the judge is, and whether it is too close to call.

It knows no models and no web.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pandas as pd

from modeling.data.battles import ORIENTATIONS, TEXTS
from modeling.data.outcomes import TIE, name_winners
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.report import PASS_PREFIX, TIE_PREFIX
from modeling.judging.predictions import list_pass_columns

CLOSE_BAND = 0.02  # a p_a closer to 1/2 than this is too close to call
EQUAL = "The two answers are the same."
DISAGREE = "The two orders give different winners."
WITHIN_BAND = f"The probability is within {CLOSE_BAND * 100:g} points of 50%."


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a judge says about one battle.

    Its text is one line: "model_a wins, 63.2%" or "too close to call, model_a 50.9%. The two orders give ...".

    id: The battle's.
    winner: "model_a" or "model_b", whichever is more likely; "model_a" at 0.5. "tie" if a tie is likelier than both.
    p_a, p_b: Probability that people prefer this answer.
    margin: |p_a - p_b|.
    close: Why the verdict is too close to call, or None: the answers are equal, the two orders give different winners,
        or p_a, plus half of any p_tie, is within `CLOSE_BAND` of 1/2 although no tie is predicted.
    readings: Mean p_a of the members in each order that was read; "ab" shows a first.
    order_mattered: Whether the two orders give different winners.
    tokens: Of the longest pass.
    cut: Tokens truncated in each text.
    p_tie: Probability that people prefer neither; None if the judge predicts no ties.
    """

    id: object
    winner: str
    p_a: float
    p_b: float
    margin: float
    close: str | None
    readings: dict[str, float]
    order_mattered: bool
    tokens: int
    cut: dict[str, int]
    p_tie: float | None = None

    def __str__(self) -> str:
        likely = f"{max(self.p_a, self.p_b, self.p_tie or 0):.1%}"
        if self.close:
            return f"too close to call, {self.winner} {likely}. {self.close}"
        return f"{self.winner}{' wins' * (self.winner != TIE)}, {likely}"

    def __repr__(self) -> str:
        return f"Verdict({self})"

    @property
    def share_a(self) -> float:
        """The expected score of a, from 0 to 1: p_a + p_tie / 2, or p_a without ties."""
        return self.p_a + (self.p_tie or 0) / 2

    def to_dict(self) -> dict:
        """The fields as JSON values."""
        return asdict(self)


def average_by_order(verdicts: pd.DataFrame) -> dict[str, pd.Series]:
    """Mean p_a of the members, shape (battles,), for each order that was read."""
    return _average_by_order(verdicts, PASS_PREFIX)


def name_by_order(verdicts: pd.DataFrame) -> dict[str, list[str]]:
    """Winner of each battle for each order that was read."""
    ties = _average_by_order(verdicts, TIE_PREFIX)
    return {order: name_winners(p_a, ties.get(order)) for order, p_a in average_by_order(verdicts).items()}


def _average_by_order(verdicts: pd.DataFrame, prefix: str) -> dict[str, pd.Series]:
    """Mean over the members of the passes' columns that begin with a prefix, for each order."""
    columns = [name for name in list_pass_columns(verdicts, ties=True) if name.startswith(prefix)]
    names = {order: [name for name in columns if name.endswith(f"_{order}")] for order in ORIENTATIONS}
    return {order: verdicts[own].mean(axis=1) for order, own in names.items() if own}


def explain_verdict(verdicts: pd.DataFrame, battle: Mapping) -> Verdict:
    """The verdict on one battle.

    Args:
        verdicts: The single row that `Judge.predict` returned for it.
        battle: With response_a and response_b.
    """
    row = verdicts.to_dict("records")[0]
    readings = {order: float(p_a.iloc[0]) for order, p_a in average_by_order(verdicts).items()}
    order_mattered = len({winner for (winner,) in name_by_order(verdicts).values()}) > 1
    p_a, p_b = float(row["p_a"]), float(row["p_b"])
    p_tie = None if "p_tie" not in row else float(row["p_tie"])
    if battle["response_a"] == battle["response_b"]:
        close = EQUAL
    elif order_mattered:
        close = DISAGREE
    else:
        close = WITHIN_BAND if abs(p_a + (p_tie or 0) / 2 - 0.5) < CLOSE_BAND and row["winner"] != TIE else None
    return Verdict(
        id=row["id"],
        winner=row["winner"],
        p_a=p_a,
        p_b=p_b,
        margin=abs(p_a - p_b),
        close=close,
        readings=readings,
        order_mattered=order_mattered,
        tokens=int(row["tokens"]),
        cut={name: int(row[column]) for name, column in zip(TEXTS, CUT_COLUMNS, strict=True)},
        p_tie=p_tie,
    )
