"""The HTML page: a single file, escaped, without texts of battles unless requested."""

import base64
import re

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from modeling.evaluation.html_report import build_page, list_wrong_battles
from modeling.evaluation.plots import draw_figures
from modeling.evaluation.report import build_report

HOSTILE = "</pre><script>alert('x')</script>{{ 7 * 7 }}"
BATTLES = Dataset.from_dict(
    {
        "id": [HOSTILE, "b", "c"],
        **{"prompt": ["secret prompt", HOSTILE, "third"], "response_a": ["one", "two", HOSTILE]},
        **{"response_b": ["uno", "due", "tre" * 3000], "label": [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]},
        **{"language": [HOSTILE, "en", "en"], "model_a": [HOSTILE, "x", "y"], "model_b": ["x", "y", "x"]},
    }
)
VERDICTS = pd.DataFrame({"id": BATTLES["id"][:], "p_a": [0.9, 0.1, 0.7], "p_a_m_ab": [0.9, 0.1, 0.7]})


@pytest.fixture(scope="module")
def report() -> dict:
    return build_report(VERDICTS, BATTLES, draws=100)


def test_the_page_needs_no_other_file(report, tmp_path):
    pictures = draw_figures(report, tmp_path)
    page = build_page(report, pictures)
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|https?://|@import", page)
    encoded = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert sorted(map(base64.b64decode, encoded)) == sorted(path.read_bytes() for path in pictures)
    assert len(pictures) >= 4 and page.count("alt=") == len(pictures)


def test_text_from_data_is_escaped(report):
    page = build_page(report, [], battles=list_wrong_battles(VERDICTS, BATTLES, 3), title=HOSTILE)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page and "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0]


def test_texts_are_shown_only_on_request_worst_first_and_shortened(report):
    page = build_page(report, [])
    assert "secret prompt" not in page and "highest loss" not in page
    wrong = list_wrong_battles(VERDICTS, BATTLES, 2)
    assert [row["id"] for row in wrong] == ["b", "c"]  # -ln 0.1, then -ln 0.3
    page = build_page(report, [], battles=wrong)
    assert "secret prompt" not in page and "5,000 more characters" in page and "The 2 battles" in page


def test_an_empty_report_has_a_page():
    empty = Dataset.from_dict({name: [] for name in ("id", "prompt", "response_a", "response_b", "label")})
    report = build_report(pd.DataFrame({"id": [], "p_a": np.zeros(0)}), empty, draws=100)
    assert "<h1>" in build_page(report, [])
