"""The report as a single HTML file with tables, embedded pictures and, if requested, the battles with the highest loss.

It must not compute statistics: it shows what the report holds.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from modeling.data.battles import TEXTS
from modeling.data.outcomes import find_labels
from modeling.evaluation.metrics import find_losses
from modeling.evaluation.report import align_verdicts, read_labels, stack_probabilities
from modeling.evaluation.text_report import METRIC_NAMES, build_sections, describe_origin, format_estimate, summarize

TEMPLATE = "report_template.html"
MOST_CHARACTERS = 4000  # characters shown of a text


def build_page(
    report: Mapping, pictures: Iterable[Path], *, battles: Iterable[Mapping] = (), title: str = "Evaluation"
) -> str:
    """Builds the report as HTML that needs no other file and no network.

    Args:
        report: Result of `build_report`.
        pictures: Result of `draw_figures`; each picture is placed in the section that names its file stem.
        battles: Result of `list_wrong_battles`.
        title: Heading of the page.

    Returns:
        HTML in which all text from data is escaped.
    """
    # jinja2 escapes nothing by default, and names and texts come from strangers.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name in the template is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # "0.634 [0.584, 0.679]" becomes a value and an interval.
    headline = [
        (name, *format_estimate(report[key]).partition(" ")[::2])
        for key, name in METRIC_NAMES.items()
        if report[key]["value"] is not None
    ]
    encoded = {path.stem: base64.b64encode(path.read_bytes()).decode("ascii") for path in pictures}
    return environment.get_template(TEMPLATE).render(
        title=title,
        origin=describe_origin(report),
        summary=summarize(report),
        headline=headline,
        sections=build_sections(report),
        pictures={name: f"data:image/png;base64,{data}" for name, data in encoded.items()},
        battles=list(battles),
        report=report,
    )


def list_wrong_battles(verdicts: pd.DataFrame, battles: Dataset, count: int) -> list[dict]:
    """Returns the battles with the highest loss, worst first.

    Args:
        verdicts: Verdicts with columns id and p_a.
        battles: The same battles, with labels.
        count: Number of battles to return.

    Returns:
        Dictionaries with id, p_a, label (people's probability that a wins) and texts, shortened if long.
    """
    p = stack_probabilities(align_verdicts(verdicts, battles))
    labels = read_labels(battles, p.shape[1])
    worst = np.argsort(-find_losses(p, labels), kind="stable")[:count]
    rows = []
    for place in worst.tolist():
        battle = battles[place]
        texts = {name: _shorten(battle[name]) for name in TEXTS}
        said = (_list_probabilities(each[place]) for each in (p, labels))
        rows.append({"id": battle["id"], "texts": texts, **dict(zip(("judge", "people"), said, strict=True))})
    return rows


def _list_probabilities(probabilities: Sequence[float]) -> str:
    """Returns the probability of each outcome, as "a 0.900, b 0.050, tie 0.050"."""
    names = find_labels(len(probabilities))
    return ", ".join(f"{name} {p:.3f}" for name, p in zip(names, probabilities, strict=True))


def _shorten(text: str) -> str:
    """Returns the first `MOST_CHARACTERS` characters, and how many were left out."""
    left_out = len(text) - MOST_CHARACTERS
    return text if left_out <= 0 else f"{text[:MOST_CHARACTERS]}… ({left_out:,} more characters)"
