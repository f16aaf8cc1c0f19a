"""A benchmark's results as text, for the screen and the documentation."""

import json
import statistics
from collections.abc import Mapping

from benchmarks.speed.prediction import NOISE


def format_results(results: Mapping) -> str:
    """Returns a Markdown table; JSON for a benchmark without one."""
    formats = {
        "prediction": format_ways,
        "training": format_ways,
        "second_readings": format_curve,
        "growth": format_growth,
        "encoding": format_encoding,
    }
    return formats.get(results["what"], lambda found: json.dumps(found, indent=2))(results)


def format_ways(results: Mapping) -> str:
    """Returns a row per way: rates, ratios to the notebook's with their spread, and peak memory.

    For prediction, also how much its answers differ from the notebook's.
    """
    answers = results["what"] == "prediction"
    lines = [
        "| way | tokens/s | battles/s | times the notebook's tokens/s | times its battles/s | peak GB |"
        + " largest dp | other winners | from float32: largest dp | other winners |" * answers,
        "|---|---|---|---|---|---|" + "---|---|---|---|" * answers,
    ]
    for name, way in results["ways"].items():
        tokens, battles = ("{:.2f} ({:.2f} to {:.2f})".format(*way[f"{unit}_ratio"]) for unit in ("tokens", "battles"))
        line = f"| {name} | {way['tokens_per_second']:,.0f} | {way['battles_per_second']:.2f} | {tokens} | {battles} |"
        line += f" {way['peak_memory_gb']:.2f} |"
        if answers:
            line += format_answers(way)
        lines.append(line)
    if answers:
        lines.append(f"| {NOISE} |  |  |  |  |  |{format_answers(results[NOISE])}")
    return "\n".join(lines)


def format_answers(way: Mapping) -> str:
    """Returns four cells: largest difference of a probability and number of other winners, from the notebook's way
    and from float32. They are empty for a peer, whose head is untrained.
    """
    cells = [
        f" {found['largest_dp']:.4f} | {found['other_winners']} of {found['battles']} |"
        for found in (way[key] for key in ("answers", "from_float32") if key in way)
    ]
    return "".join(cells) or " |" * 4


def format_curve(results: Mapping) -> str:
    """Returns a row per share, and one for every pass at once."""
    lines = ["| second reading for | times faster | accuracy [95%] | log loss [95%] |", "|---|---|---|---|"]
    rows = [(f"{row['share']:.0%}", row) for row in results["curve"]] + [("all, read together", results["together"])]
    for name, row in rows:
        accuracy, log_loss = ("{:.3f} [{:.3f}, {:.3f}]".format(*row[key]) for key in ("accuracy", "log_loss"))
        lines.append(f"| {name} | {row['times_faster']:.2f} | {accuracy} | {log_loss} |")
    return "\n".join(lines)


def format_growth(results: Mapping) -> str:
    """Returns both tables, each with a last row of exponents."""
    parts = []
    for name, table in results["tables"].items():
        lines = [f"| {name} | seconds | tokens/s | seconds to encode | peak GB |", "|---|---|---|---|---|"]
        for size, row in table.items():
            speed = row["tokens"] / row["seconds"]
            lines.append(
                f"| {int(size):,} | {row['seconds']:.1f} | {speed:,.0f} | {row['encoding_seconds']:.2f} | "
                f"{row['peak_memory_gb']:.2f} |"
            )
        seconds, encoding, memory = (
            results["exponents"][name][key] for key in ("seconds", "encoding_seconds", "peak_memory_gb")
        )
        lines.append(f"| exponent | {seconds:.2f} |  | {encoding:.2f} | {memory:.2f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def format_encoding(results: Mapping) -> str:
    """Returns what was encoded, each way's median, and the speedup with its spread."""
    speedup, counts = results["speedup"], f"{results['battles']:,} battles, {results['tokens']:,} tokens"
    lines = [f"encoding: {counts}, {results['machine']['device']}; {results['method']}"]
    lines += [f"{way:<16}{statistics.median(seconds):8.2f} s" for way, seconds in results["seconds"].items()]
    return "\n".join(
        [*lines, f"{'times faster':<16}{speedup['median']:8.1f}   ({speedup['least']:.1f} to {speedup['most']:.1f})"]
    )
