"""What encoding does to a set of battles, for a person to read before a long run: lengths, cuts, repairs."""

from collections import Counter

import ftfy
import numpy as np
from datasets import Dataset

from modeling.data.battles import TEXTS, list_orders
from modeling.encoding.encoder import BattleEncoder

MOST_BATTLES = 2000  # looked at, evenly over the set


def audit_battles(battles: Dataset, encoder: BattleEncoder, orientation: str) -> str:
    """A table: tokens of each field, the share of battles and of tokens cut, and of texts that cleaning changed.

    Args:
        battles: Any battles; of more than `MOST_BATTLES`, so many evenly spread ones are taken, which the text says.
        encoder: Encodes them.
        orientation: The order read; of "both", the first.

    Returns:
        Lines of text without any of the battles' own.
    """
    rows = battles.select(np.unique(np.linspace(0, len(battles) - 1, MOST_BATTLES).astype(int))).to_list()
    cleaned = encoder.clean_battles(rows)
    encoded = encoder.encode(cleaned, list_orders(orientation)[0])
    lines = [
        f"{'field':<12}{'tokens: mean':>13}{'median':>8}{'90%':>8}{'cut battles':>13}{'cut tokens':>12}{'mended':>9}"
    ]
    steps: Counter = Counter()
    for name in TEXTS:
        lengths = np.array([len(ids) for ids in encoder.template.tokenize([battle[name] for battle in cleaned])])
        cut = np.array([battle[f"cut_{name}"] for battle in encoded])
        changed = [row[name] for row, battle in zip(rows, cleaned, strict=True) if row[name] != battle[name]]
        for text in changed:
            steps.update({step for step in _explain(text)} or {"a field marker disarmed"})
        lines.append(
            f"{name:<12}{lengths.mean():>13.0f}{np.median(lengths):>8.0f}{np.quantile(lengths, 0.9):>8.0f}"
            f"{np.mean(cut > 0):>13.1%}{cut.sum() / max(lengths.sum(), 1):>12.1%}{len(changed) / len(rows):>9.1%}"
        )
    mended = ", ".join(f"{step} {count}" for step, count in steps.most_common()) or "nothing"
    return "\n".join([*lines, f"of {len(rows):,} of {len(battles):,} battles; texts mended by: {mended}"])


def _explain(text: str) -> list[str]:
    """Names of ftfy's steps that changed a text."""
    explanation = ftfy.fix_and_explain(text).explanation or []
    return [" ".join(step) if step[0] != "apply" else step[1] for step in map(tuple, explanation)]
