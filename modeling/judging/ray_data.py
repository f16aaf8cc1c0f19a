"""A judge as a callable for Ray Data's `map_batches`, which labels a pool on many machines.

Ray itself is not imported: it builds the class in each of its workers. It must not know how Ray spreads a pool.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState

from modeling.data.battles import read_battles
from modeling.judging.judge import Judge


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
            batch: Column id, and what else `Judge.predict` reads. Ray does not keep the order of batches, so rows are
                matched by id.

        Raises:
            ValueError: If there are no ids, or a row is no battle.
        """
        if "id" not in batch:
            raise ValueError(
                f"Batch: expected a column id, by which verdicts are matched; found {', '.join(batch)}. Add or rename "
                "it before map_batches."
            )
        # Texts as they are: a guess about lists of turns could differ from one batch to the next.
        return self.judge.predict(read_battles(batch, schema="unlabelled"), **self.options)
