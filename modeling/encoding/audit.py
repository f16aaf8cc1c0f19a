"""Reports what encoding does to battles, to be read before a long run: lengths, cut tokens, repaired texts.

It shows counts only, because the battles may be private.
"""

from collections import Counter

import ftfy
import numpy as np
from datasets import Dataset

from modeling.data.battles import TEXTS, list_orders
from modeling.encoding.encoder import BattleEncoder
from modeling.runtime.text_tables import format_table

MAX_BATTLES = 2000  # encoded for the audit, evenly spaced over the set


def audit_battles(battles: Dataset, encoder: BattleEncoder, orientation: str) -> str:
    """Formats a table with a row per field: its tokens, how much is cut, and how many texts are repaired.

    Args:
        battles: At most `MAX_BATTLES` of them are used, evenly spaced; the last line says how many.
        encoder: Encodes them.
        orientation: For "both" only the first order is audited.

    Returns:
        Lines of text: for each field the mean, median and 90% quantile of its tokens before the cut, the share of
        battles in which it is cut, the share of its tokens cut, and the share of its texts that cleaning changed; last
        which repairs were made how often.
    """
    rows = battles.select(np.unique(np.linspace(0, len(battles) - 1, MAX_BATTLES).astype(int))).to_list()
    cleaned = encoder.clean_battles(rows)
    encoded = encoder.encode(cleaned, list_orders(orientation)[0])
    table = [("field", "mean tokens", "median", "90%", "battles cut", "tokens cut", "repaired")]
    steps: Counter = Counter()
    for name in TEXTS:
        lengths = np.array([len(ids) for ids in encoder.template.tokenize([battle[name] for battle in cleaned])])
        cut = np.array([battle[f"cut_{name}"] for battle in encoded])
        changed = [row[name] for row, battle in zip(rows, cleaned, strict=True) if row[name] != battle[name]]
        for text in changed:
            # A text that ftfy left alone was changed by the other half of cleaning.
            steps.update({step for step in _explain(text)} or {"a field marker disarmed"})
        counts = (lengths.mean(), np.median(lengths), np.quantile(lengths, 0.9))
        shares = (np.mean(cut > 0), cut.sum() / max(lengths.sum(), 1), len(changed) / len(rows))
        table.append((name, *(f"{count:.0f}" for count in counts), *(f"{share:.1%}" for share in shares)))
    repairs = ", ".join(f"{step} {count}" for step, count in steps.most_common()) or "nothing"
    return f"{format_table(table)}\n{len(rows):,} of {len(battles):,} battles audited; texts repaired by: {repairs}"


def _explain(text: str) -> list[str]:
    """Names the steps of ftfy that change a text."""
    explanation = ftfy.fix_and_explain(text).explanation or []
    return [" ".join(step) if step[0] != "apply" else step[1] for step in map(tuple, explanation)]
