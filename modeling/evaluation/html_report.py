"""A report as one HTML file: tables, pictures inside it, and, only where asked, the battles that went most wrong."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from modeling.data.battles import TEXTS
from modeling.evaluation.metrics import find_losses
from modeling.evaluation.report import align_verdicts, read_labels, stack_probabilities
from modeling.evaluation.text_report import FIGURES, build_sections, format_estimate, summarize

TEMPLATE = "report_template.html"
MOST_CHARACTERS = 4000  # of a text that is shown


def build_page(
    report: Mapping, pictures: Iterable[Path], *, battles: Iterable[Mapping] = (), title: str = "Evaluation"
) -> str:
    """The report as HTML that needs no other file and no network.

    Args:
        report: What `build_report` returned.
        pictures: What `draw_figures` drew; a picture stands in the section that names its file's stem.
        battles: What `list_wrong_battles` returned.
        title: Heading of the page.

    Returns:
        HTML; whatever comes from data is escaped.
    """
    # Autoescape by hand: the default decides by a file's ending, and a string has none.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headline = [
        (name, *format_estimate(report[key]).partition(" ")[::2])
        for key, name in FIGURES.items()
        if report[key]["value"] is not None
    ]
    encoded = {path.stem: base64.b64encode(path.read_bytes()).decode("ascii") for path in pictures}
    return environment.get_template(TEMPLATE).render(
        title=title,
        summary=summarize(report),
        headline=headline,
        sections=build_sections(report),
        pictures={name: f"data:image/png;base64,{data}" for name, data in encoded.items()},
        battles=list(battles),
        report=report,
    )


def list_wrong_battles(verdicts: pd.DataFrame, battles: Dataset, count: int) -> list[dict]:
    """The battles with the highest loss, worst first: id, p_a, label (of a) and texts, long ones shortened."""
    p, labels = stack_probabilities(align_verdicts(verdicts, battles)), read_labels(battles)
    worst = np.argsort(-find_losses(p, labels), kind="stable")[:count]
    rows = []
    for place in worst.tolist():
        battle = battles[place]
        texts = {name: _shorten(battle[name]) for name in TEXTS}
        rows.append({"id": battle["id"], "p_a": p[place, 0], "label": labels[place, 0], "texts": texts})
    return rows


def _shorten(text: str) -> str:
    left_out = len(text) - MOST_CHARACTERS
    return text if left_out <= 0 else f"{text[:MOST_CHARACTERS]}… ({left_out:,} more characters)"
