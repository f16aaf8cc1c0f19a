"""A judge as a callable for Ray Data's `map_batches`, which labels a pool on many machines.

Ray itself is not imported: it builds the class in each of its workers. It must not know how Ray spreads a pool.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState

from modeling.data.battles import TEXTS
from modeling.data.text import is_blank
from modeling.judging.judge import Judge

COLUMNS = ("id", *TEXTS)


class JudgeBatches:
    """Gives each battle of a batch a verdict, as `Judge.predict` does. A worker loads the judge once.

    Example: `pool.map_batches(JudgeBatches, fn_constructor_kwargs={"judge": ["outputs/demo/ab"]},
    batch_format="pandas", batch_size=512, concurrency=2)`.
    """

    def __init__(
        self,
        judge: str | Path | Sequence[str | Path],
        *,
        dtype: str = "auto",
        merge: str = "auto",
        skip_probes: bool = False,
        readings: str | None = None,
        calibrated: bool = True,
        tokens_per_batch: int | None = None,
    ):
        """Loads the judge on this worker's device: its GPU if Ray gave it one, otherwise the CPU.

        Args:
            judge: Members or judges as for `Judge.from_pretrained`: Hub ids, or folders that every worker can read.
            dtype: "auto" is chosen by each worker for its own device; name a precision where machines differ.
            merge, skip_probes: As for `load_members`.
            readings, calibrated, tokens_per_batch: As for `Judge.predict`.
        """
        PartialState(cpu=not torch.cuda.is_available())
        self.judge = Judge.from_pretrained(judge, dtype=dtype, merge=merge, skip_probes=skip_probes)
        self.options = {"readings": readings, "calibrated": calibrated, "tokens_per_batch": tokens_per_batch}

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        """Returns the verdicts of a batch, with the columns of `Judge.predict` and in the batch's order.

        Args:
            batch: Columns id, prompt, response_a, response_b; others are ignored. Ray does not keep the order of
                batches, so rows are matched by id.

        Raises:
            ValueError: If a column is missing, or a text is null or blank.
        """
        if missing := [name for name in COLUMNS if name not in batch]:
            raise ValueError(
                f"Batch: expected the columns {', '.join(COLUMNS)}; found none named {', '.join(missing)}. Rename the "
                "pool's columns before map_batches."
            )
        battles = batch[list(COLUMNS)].to_dict("records")
        if bad := [battle["id"] for battle in battles if any(_is_unreadable(battle[name]) for name in TEXTS)]:
            raise ValueError(
                f"Batch: battles {', '.join(map(repr, bad[:5]))}: expected a text in each of {', '.join(TEXTS)}; found "
                f"null or blank ones in {len(bad)} battles. Filter them out before map_batches."
            )
        return self.judge.predict(battles, **self.options)


def _is_unreadable(text: object) -> bool:
    """Whether a cell is no text, or a blank one."""
    return not isinstance(text, str) or is_blank(text)
