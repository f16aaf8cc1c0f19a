"""A judge's limitations as plain sentences, derived from its report and training data. Pure functions.

Each sentence follows from the numbers and their intervals; nothing here is a fixed disclaimer.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from modeling.publishing.markdown import format_counts

FEW = 30  # battles: the 95% interval of their accuracy is 18 points either way


def count_languages(data: Sequence[Mapping]) -> Counter:
    """Counts the battles of each language over several sources, given as `describe_source` returns them."""
    languages: Counter = Counter()
    for row in data:
        languages.update(row.get("languages") or {})
    return languages


def describe_languages(trained: Mapping[str, int]) -> Iterator[str]:
    """Yields a sentence about the training languages."""
    if not trained:
        yield "The languages of its training battles are not recorded."
    elif len(trained) == 1:
        yield f"It was trained on one language, {next(iter(trained))}. It knows others only from its base."
    else:
        names = f"{len(trained)} languages ({format_counts(trained)})"
        yield f"It was trained on {names}. It knows others only from its base."


def describe_limitations(report: Mapping | None) -> Iterator[str]:
    """Yields what the report does not show, and the biases that it does show."""
    if report is None:
        yield "No report on held-out battles comes with it, so its accuracy is not known."
        return
    yield from _compare_accuracy(report["accuracy"], report["baselines"])
    few = [row for row in report["tables"].get("language", []) if row["battles"] < FEW]
    if few:
        yield (
            f"{len(few)} of the {len(report['tables']['language'])} languages have fewer than {FEW} evaluation battles "
            "each: their rows are too uncertain to rely on."
        )
    first = report["position_bias"]["mean_p_first"]
    if _excludes(first, 0.5):
        side = "first" if first["value"] > 0.5 else "second"
        yield f"It favours the answer shown {side}: mean probability of the first answer {first['value']:.3f}."
    length = report["length_bias"]["correlation"]
    if _excludes(length, 0):
        side = "longer" if length["value"] > 0 else "shorter"
        yield f"It favours the {side} answer: correlation with the relative length {length['value']:.3f}."


def _excludes(estimate: Mapping, value: float) -> bool:
    """Whether an estimate has an interval that excludes the value."""
    return estimate["low"] is not None and not estimate["low"] <= value <= estimate["high"]


def _compare_accuracy(accuracy: Mapping, baselines: Mapping) -> Iterator[str]:
    """Yields whether the accuracy differs from chance and from each baseline."""
    share, low, high = accuracy["value"], accuracy["low"], accuracy["high"]
    if share is None:
        yield "No evaluation battle had a winner, so there is no accuracy."
        return
    if low is None:
        yield f"It was evaluated on {accuracy['count']} battles with too few prompts for an accuracy interval."
        return
    # Half the interval's width, in percentage points.
    yield (
        f"It was evaluated on {accuracy['count']} battles without ties, which leaves its accuracy uncertain "
        f"by {(high - low) * 50:.1f} points either way."
    )
    if high < 0.5:
        yield f"Its accuracy is below 0.5, at most {high:.3f}: guessing is right more often."
    elif low <= 0.5:
        yield (
            f"The interval of its accuracy, {low:.3f} to {high:.3f}, includes 0.5: these battles do not show that it "
            "is better than guessing."
        )
    # A baseline is named unless the judge's lead over it lies above 0. Reports without leads compare the judge's whole
    # interval with the baseline's accuracy.
    for name, baseline in baselines.items():
        other, lead = baseline["accuracy"]["value"], baseline.get("difference")
        if lead and lead["low"] is not None:
            if lead["low"] <= 0:
                doubt = "" if lead["high"] < 0 else ", but the interval includes 0: no difference is shown"
                yield f'Its lead over the baseline "{name}", {other:.3f}, is {lead["value"]:+.3f}{doubt}.'
        elif other is not None and low <= other:
            relation = "is below" if share < other else "is above" if share > other else "equals"
            doubt = "" if high < other else ", but the interval includes that value: no difference is shown"
            yield f'Its accuracy, {share:.3f}, {relation} that of the baseline "{name}", {other:.3f}{doubt}.'


def describe_cuts(encodings: Sequence[Mapping], report: Mapping | None) -> Iterator[str]:
    """Yields the length above which battles are truncated, and how many evaluation battles were."""
    lengths = sorted({encoding["max_length"] for encoding in encodings if "max_length" in encoding})
    if not lengths:
        return
    cut = {row["name"]: row["battles"] for row in report["tables"].get("cut", [])} if report else {}
    counts = f" Evaluation battles: {format_counts(cut)}." if cut else ""
    tokens = " or ".join(map(str, lengths))
    yield f"Battles longer than {tokens} tokens are truncated, and the missing text may have decided them.{counts}"
