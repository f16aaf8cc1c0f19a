"""Cards and verdicts become Markdown and HTML without any of a user's markup."""

from modeling.data.battles import TEXTS
from modeling.serving.rendering import read_card, render_verdict
from modeling.serving.requests import TITLES


def test_a_card_comes_without_its_metadata_pictures_and_html(tmp_path):
    assert read_card(tmp_path) == ("This member has no card.", [])
    card = "---\nlicense: gemma\n---\n\n# Judge\n\n![plot](figures/a.png)\n\n---\n\nMore ![far](http://x/y.png)"
    card += "<img src=x> 1 < 2 `<response_a>` </b>\n```\n<b>\n```\n"
    card += "<details>\n<summary>Per <i>language</i></summary>\n\n| a |\n\n</details>\n"
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").touch()
    assert read_card(tmp_path) == (
        "# Judge\n\n\n\n---\n\nMore &lt;img src=x> 1 < 2 `<response_a>` &lt;/b>\n```\n<b>\n```\n"
        "**Per &lt;i>language&lt;/i>**\n\n| a |\n\n",
        [tmp_path / "figures" / "a.png"],
    )


def test_a_verdict_is_shown_with_both_orders_and_what_was_truncated():
    verdict = {"winner": "model_b", "p_a": 0.4, "p_b": 0.6, "readings": {"ab": 0.55, "ba": 0.25}, "tokens": 128}
    verdict |= {"order_mattered": True, "cut": {"prompt": 0, "response_a": 1200, "response_b": 3}, "seconds": 0.25}
    html = render_verdict(verdict)
    assert "Answer B wins" in html and "60.0%" in html and "A 55.0%" in html and "A 25.0%" in html
    assert "order changes the winner" in html and "30.0 points" in html and "width: 40.0%" in html
    assert f"Tokens truncated: {TITLES['response_a']} 1,200, {TITLES['response_b']} 3 · 128 tokens" in html
    steady = verdict | {"order_mattered": False, "cut": dict.fromkeys(TEXTS, 0)}
    assert "Answer B wins in both orders" in render_verdict(steady)
    assert "Nothing was truncated" in render_verdict(steady)
