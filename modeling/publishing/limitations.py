"""What follows from a report and from the data for whoever relies on a judge, in plain sentences. Pure functions.

A sentence stands here only if the figures bear it out, interval included.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from modeling.publishing.markdown import format_counts

FEW = 30  # battles, over which an accuracy is uncertain by 18 points either way


def count_languages(data: Sequence[Mapping]) -> Counter:
    """Battles of each language over several sources, as `describe_source` describes them."""
    languages: Counter = Counter()
    for row in data:
        languages.update(row.get("languages") or {})
    return languages


def describe_languages(trained: Mapping[str, int]) -> Iterator[str]:
    """The languages that were trained on."""
    if not trained:
        yield "The languages of its training battles are not recorded."
    elif len(trained) == 1:
        yield f"It was trained on one language, {next(iter(trained))}; the others it knows from its base alone."
    else:
        names = f"{len(trained)} languages ({format_counts(trained)})"
        yield f"It was trained on {names}; the others it knows from its base alone."


def describe_limitations(report: Mapping | None) -> Iterator[str]:
    """What the figures do not show, and the leanings that they do show."""
    if report is None:
        yield "No report on held-out battles comes with it: how often it is right is not known from here."
        return
    yield from _compare_accuracy(report["accuracy"], report["baselines"])
    few = [row for row in report["tables"].get("language", []) if row["battles"] < FEW]
    if few:
        yield (
            f"{len(few)} of the {len(report['tables']['language'])} languages have fewer than {FEW} evaluation battles "
            "each: their rows say next to nothing."
        )
    first = report["position_bias"]["mean_p_first"]
    if _excludes(first, 0.5):
        side = "first" if first["value"] > 0.5 else "second"
        yield f"It leans to the answer that is read {side}: mean probability of the first {first['value']:.3f}."
    length = report["length_bias"]["correlation"]
    if _excludes(length, 0):
        side = "longer" if length["value"] > 0 else "shorter"
        yield f"It leans to the {side} answer: correlation with the length {length['value']:.3f}."


def _excludes(estimate: Mapping, value: float) -> bool:
    """Whether a figure has an interval, and the value lies outside of it."""
    return estimate["low"] is not None and not estimate["low"] <= value <= estimate["high"]


def _compare_accuracy(accuracy: Mapping, baselines: Mapping) -> Iterator[str]:
    """Whether the accuracy can be told from chance and from each baseline."""
    share, low, high = accuracy["value"], accuracy["low"], accuracy["high"]
    if share is None:
        yield "No evaluation battle had a winner, so there is no accuracy."
        return
    if low is None:
        yield f"It was evaluated on {accuracy['count']} battles of too few prompts to say how sure its accuracy is."
        return
    yield (
        f"It was evaluated on {accuracy['count']} battles without ties, so that its accuracy is known to "
        f"{(high - low) * 50:.1f} points either way."
    )
    if high < 0.5:
        yield f"Its accuracy lies below 0.5, at {high:.3f} at most: guessing is right more often."
    elif low <= 0.5:
        yield (
            f"The interval of its accuracy, {low:.3f} to {high:.3f}, includes 0.5: these battles do not show that it "
            "does better than guessing."
        )
    for name, figures in baselines.items():
        other = figures["accuracy"]["value"]
        if other is not None and low <= other:
            side = "below" if share < other else "above" if share > other else "at"
            doubt = "" if high < other else ", which its interval includes: no difference is shown"
            yield f'Its accuracy, {share:.3f}, lies {side} that of "{name}", {other:.3f}{doubt}.'


def describe_cuts(encodings: Sequence[Mapping], report: Mapping | None) -> Iterator[str]:
    """From what length on battles lose a part, and how many did."""
    lengths = sorted({encoding["max_length"] for encoding in encodings if "max_length" in encoding})
    if not lengths:
        return
    cut = {row["name"]: row["battles"] for row in report["tables"].get("cut", [])} if report else {}
    counts = f" Evaluation battles: {format_counts(cut)}." if cut else ""
    tokens = " or ".join(map(str, lengths))
    yield f"Of a battle of more than {tokens} tokens a part is left out, which may be the one that decides.{counts}"
