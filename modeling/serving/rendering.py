"""Model cards and verdicts as Markdown and HTML for the page. Knows no web framework; puts no user text into HTML."""

import re
from pathlib import Path

from modeling.serving.requests import TITLES

METADATA_BLOCK = re.compile(r"---\n.*?\n---\n", re.S)
# Markdown pictures; the page shows the card's own figures in a gallery and fetches no others.
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
FOLD, SUMMARY = re.compile(r"</?details>\n?"), re.compile(r"<summary>(.*?)</summary>")
# Code first, so that a tag inside it is left alone: Markdown shows it as text anyway.
CODE_OR_TAG = re.compile(r"(```.*?```|`[^`\n]*`)|<(?=[A-Za-z/!?])(?!https?://)", re.S)


def read_card(folder: Path) -> tuple[str, list[Path]]:
    """Returns a member's model card as Markdown, without metadata, pictures and HTML, and the paths of its figures."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else "This member has no card."
    text = PICTURE.sub("", METADATA_BLOCK.sub("", text, count=1)).strip()
    text = SUMMARY.sub(r"**\1**", FOLD.sub("", text))  # the only HTML in our cards
    text = CODE_OR_TAG.sub(lambda found: found[1] or "&lt;", text)
    return text, sorted((folder / "figures").glob("*.png"))


def render_verdict(verdict: dict) -> str:
    """Returns HTML for the fields of a `Verdict`, with `seconds`. Only its numbers go in, never a user's text."""
    winner, p_by_order = "A" if verdict["winner"] == "model_a" else "B", verdict["readings"]
    gap = f"{abs(p_by_order['ab'] - p_by_order['ba']) * 100:.1f} points"
    if verdict["order_mattered"]:
        order = f"The order changes the winner. The probability of A differs by {gap} between the two orders."
    else:
        order = f"Answer {winner} wins in both orders. The probability of A differs by {gap} between them."
    rows = "".join(
        f"<div class='order'><span>{first} shown first</span>{_render_bar(p_by_order[order])}"
        f"<span>A {p_by_order[order]:.1%}</span></div>"
        for first, order in (("A", "ab"), ("B", "ba"))
    )
    cut = ", ".join(f"{TITLES[name]} {count:,}" for name, count in verdict["cut"].items() if count)
    facts = [f"Tokens truncated: {cut}" if cut else "Nothing was truncated"]
    facts += [f"{verdict['tokens']:,} tokens", f"{verdict['seconds']:.2f} s"]
    return (
        f"<div class='headline {winner}'><b>Answer {winner} wins</b>"
        f"<span>{max(verdict['p_a'], verdict['p_b']):.1%}</span></div>"
        f"{_render_bar(verdict['p_a'])}"
        f"<div class='ends'><span>A {verdict['p_a']:.1%}</span><span>B {verdict['p_b']:.1%}</span></div>"
        f"<div class='orders'>{rows}</div><p>{order}</p><p class='facts'>{' · '.join(facts)}</p>"
    )


def _render_bar(p_a: float) -> str:
    """Returns a bar divided between A and B."""
    return (
        f"<div class='bar' role='img' aria-label='A {p_a:.1%}, B {1 - p_a:.1%}'><i style='width: {p_a:.1%}'></i></div>"
    )
