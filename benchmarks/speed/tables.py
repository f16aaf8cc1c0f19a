"""The figures of a benchmark as text, for the screen and the README."""

import json
import statistics
from collections.abc import Mapping

from benchmarks.speed.speed import NOISE


def format_figures(figures: Mapping) -> str:
    """What was measured, as a Markdown table where there is one."""
    formats = {
        "prediction": format_ways,
        "training": format_ways,
        "second_readings": format_curve,
        "growth": format_growth,
        "encoding": format_encoding,
    }
    return formats.get(figures["what"], lambda found: json.dumps(found, indent=2))(figures)


def format_ways(figures: Mapping) -> str:
    """A row for each way: tokens and battles a second, ratios to the notebook's with their spread, peak of memory; and,
    for prediction, how far its answers lie from the notebook's."""
    answers = figures["what"] == "prediction"
    lines = [
        "| way | tokens/s | battles/s | times the notebook's tokens/s | times its battles/s | peak GB |"
        + " largest dp | other winners | from float32: largest dp | other winners |" * answers,
        "|---|---|---|---|---|---|" + "---|---|---|---|" * answers,
    ]
    for name, way in figures["ways"].items():
        tokens, battles = ("{:.2f} ({:.2f} to {:.2f})".format(*way[f"{unit}_ratio"]) for unit in ("tokens", "battles"))
        line = f"| {name} | {way['tokens_per_second']:,.0f} | {way['battles_per_second']:.2f} | {tokens} | {battles} |"
        line += f" {way['peak_memory_gb']:.2f} |"
        if answers:
            line += format_answers(way)
        lines.append(line)
    if answers:
        lines.append(f"| {NOISE} |  |  |  |  |  |{format_answers(figures[NOISE])}")
    return "\n".join(lines)


def format_answers(way: Mapping) -> str:
    """Four cells: the largest difference of a probability and how many winners differ, from the notebook's way and from
    the same in float32; empty for a peer, which gives other answers."""
    cells = [
        f" {found['largest_dp']:.4f} | {found['other_winners']} of {found['battles']} |"
        for found in (way[key] for key in ("answers", "from_float32") if key in way)
    ]
    return "".join(cells) or " |" * 4


def format_curve(figures: Mapping) -> str:
    """A row for each share, and one for all readings together."""
    lines = ["| second reading for | times faster | accuracy [95%] | log loss [95%] |", "|---|---|---|---|"]
    rows = [(f"{row['share']:.0%}", row) for row in figures["curve"]] + [("all, read together", figures["together"])]
    for name, row in rows:
        accuracy, log_loss = ("{:.3f} [{:.3f}, {:.3f}]".format(*row[key]) for key in ("accuracy", "log_loss"))
        lines.append(f"| {name} | {row['times_faster']:.2f} | {accuracy} | {log_loss} |")
    return "\n".join(lines)


def format_growth(figures: Mapping) -> str:
    """Both tables, one after the other, each with a last row of exponents."""
    parts = []
    for name, table in figures["tables"].items():
        lines = [f"| {name} | seconds | tokens/s | seconds to encode | peak GB |", "|---|---|---|---|---|"]
        for size, row in table.items():
            speed = row["tokens"] / row["seconds"]
            lines.append(
                f"| {int(size):,} | {row['seconds']:.1f} | {speed:,.0f} | {row['encoding_seconds']:.2f} | "
                f"{row['peak_memory_gb']:.2f} |"
            )
        seconds, encoding, memory = (
            figures["exponents"][name][key] for key in ("seconds", "encoding_seconds", "peak_memory_gb")
        )
        lines.append(f"| exponent | {seconds:.2f} |  | {encoding:.2f} | {memory:.2f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def format_encoding(figures: Mapping) -> str:
    """What was timed, the median of each way, and the ratio with its spread."""
    speedup, counts = figures["speedup"], f"{figures['battles']:,} battles, {figures['tokens']:,} tokens"
    lines = [f"encoding: {counts}, {figures['machine']['device']}; {figures['method']}"]
    lines += [f"{way:<16}{statistics.median(seconds):8.2f} s" for way, seconds in figures["seconds"].items()]
    return "\n".join(
        [*lines, f"{'times faster':<16}{speedup['median']:8.1f}   ({speedup['least']:.1f} to {speedup['most']:.1f})"]
    )
