"""The HTML page: a single file, escaped, without texts of battles unless requested."""

import base64
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from modeling.evaluation.html_report import build_page, list_wrong_battles
from modeling.evaluation.plots import draw_figures
from modeling.evaluation.report import build_comparison, build_report

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
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(|https?://|@import", page)
    encoded = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert sorted(map(base64.b64decode, encoded)) == sorted(path.read_bytes() for path in pictures)
    assert len(pictures) >= 4 and page.count("alt=") == len(pictures)


def test_the_contents_lead_to_every_section(report):
    """Each link to one element, in the order of the page, also if a column is named like a section."""
    found = report | {"tables": report["tables"] | {"Baselines": report["tables"]["language"]}}
    page = build_page(found, [], battles=list_wrong_battles(VERDICTS, BATTLES, 1))
    links, anchors = re.findall('href="#([^"]+)"', page), re.findall(' id="([^"]+)"', page)
    assert links == anchors and len(set(anchors)) == len(anchors) and {"metrics", "baselines", "data"} <= set(anchors)
    assert len(anchors) == page.count("<h2>") and not any(re.search(r"\s", anchor) for anchor in anchors)


@pytest.fixture(scope="module")
def browser():
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("Debian's chromium is not here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox needs more rights than a container gives; the page is our own.
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_a_phone_scrolls_tables_not_the_page_and_a_dark_one_is_dark(report, browser, scheme, is_dark, tmp_path):
    """With names of 200 characters without a space. The sum of red, green and blue is at most 3 x 255 = 765."""
    named = report | {"run": {"judge": "j" * 200, "date": "today", "command": "c" * 200, "versions": {"v": "1"}}}
    named["comparison"] = {"name": "k" * 200} | build_comparison(VERDICTS, VERDICTS, BATTLES, draws=100)
    wrong = list_wrong_battles(VERDICTS, BATTLES, 1)
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.set_content(build_page(named, draw_figures(named, tmp_path), battles=wrong, title="t" * 200))
    width = "node => [node.scrollWidth, node.clientWidth]"
    assert page.locator("html").evaluate(width) == [390, 390]
    scrolled, shown = zip(*(box.evaluate(width) for box in page.locator(".wide").all()), strict=True)
    assert max(scrolled) > 390 >= max(shown)
    style = "(node, name) => getComputedStyle(node)[name].match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    light = {
        name: page.locator(name).first.evaluate(style, rule)
        for name, rule in (("body", "backgroundColor"), ("td", "color"), ("img", "backgroundColor"))
    }
    assert (light["body"] < 150 and light["td"] > 500) == is_dark == (not (light["body"] > 700 and light["td"] < 200))
    assert light["img"] == 765
    page.emulate_media(media="print")
    assert page.locator("body").evaluate(style, "color") < 200 and not page.locator("nav").is_visible()
    page.close()


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


def test_a_tie_among_the_worst_battles_is_called_one(report):
    verdicts = pd.DataFrame({"id": ["a"], "p_a": [0.9], "p_tie": [0.05]})
    battles = Dataset.from_list([{**BATTLES[0], "id": "a", "label": [0.0, 0.0, 1.0]}])
    page = build_page(report, [], battles=list_wrong_battles(verdicts, battles, 1))
    assert "the judge says a 0.900, b 0.050, tie 0.050; people say a 0.000, b 0.000, tie 1.000" in page


def test_an_empty_report_has_a_page():
    empty = Dataset.from_dict({name: [] for name in ("id", "prompt", "response_a", "response_b", "label")})
    report = build_report(pd.DataFrame({"id": [], "p_a": np.zeros(0)}), empty, draws=100)
    assert "<h1>" in build_page(report, [])
