"""Labels battles with a judge's probabilities, so that train.py can learn from battles that nobody voted on.

python scripts/pseudolabel.py                                       # configs/demo/pseudolabel.yaml
python scripts/pseudolabel.py --battles pool.parquet --judge outputs/demo/ab outputs/demo/ba --output soft.parquet
accelerate launch --config_file configs/accelerate/ddp.yaml scripts/pseudolabel.py --min_confidence 0.95
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset

from modeling.arguments import PseudolabelArguments, parse_arguments, run_script
from modeling.battles import LABELS, load_battles
from modeling.judge import Judge

logger = get_logger("bothways.pseudolabel")


def main() -> None:
    (arguments,) = parse_arguments(PseudolabelArguments, verb="pseudolabel")
    state = PartialState(cpu=arguments.use_cpu)
    battles = load_battles(arguments.battles, tie_policy=arguments.tie_policy, blank_policy=arguments.blank_policy)
    judge = Judge.from_pretrained(arguments.judge)
    output = Path(arguments.output)
    progress = output.with_name(f".{output.name}.progress")
    verdicts = judge.predict(
        battles,
        readings=arguments.readings,
        tokens_per_batch=arguments.tokens_per_batch,
        progress_dir=progress,
    )
    if state.is_main_process:
        labelled = label_battles(battles, verdicts, arguments.min_confidence)
        labelled.to_parquet(beside := output.with_name(f".{output.name}.new"), index=False)
        beside.rename(output)
        shutil.rmtree(progress, ignore_errors=True)
        logger.info(f"{len(labelled)} of {len(battles)} battles labelled: {output}")


def label_battles(battles: Dataset, verdicts: pd.DataFrame, min_confidence: float | None) -> pd.DataFrame:
    """The battles with the judge's probabilities as their label, or with hard labels where it is sure enough.

    Rows are matched by id. A label that the file had is replaced.
    """
    rows = battles.to_pandas().drop(columns="label", errors="ignore")
    p = verdicts.set_index("id").loc[rows["id"], [f"p_{label}" for label in LABELS]].to_numpy()
    if min_confidence is None:
        return rows.assign(label=p.tolist())
    sure = p.max(axis=1) >= min_confidence
    return rows[sure].assign(label=np.eye(len(LABELS))[p[sure].argmax(axis=1)].tolist())


if __name__ == "__main__":
    run_script(main)
