"""The results of all parts: compared with the card and with the notebook's way, and as Markdown."""

from collections.abc import Mapping

from benchmarks.speed.gpu.measuring import format_value

# Measured against the card's rate of matrix products.
MODELS = ("prediction", "training", "t4", "small")
# Written once above its table instead of in each row.
SENTENCES = ("stopped", "error")


def compare_results(results: Mapping[str, Mapping]) -> None:
    """Adds to each rate its share of the card's measured rate of matrix products, and its multiple of the notebook's.

    The notebook's way is the first one of the same round of prediction, and the only one in training.
    """
    rate = results.get("machine", {}).get("matrix product", {}).get("tflops")
    for part in MODELS:
        rows = _list_rows(results.get(part, {}))
        records = {key: record for key, record in rows.items() if "tflops" in record}
        for key, record in records.items():
            if rate:
                record["matrix_share"] = record["tflops"] / rate
            turn = key.partition(": ")[0] + ": " if ": " in key else ""
            if notebook := next((records[other] for other in records if other.startswith(f"{turn}notebook")), None):
                record["times_notebook"] = record["tokens_per_second"] / notebook["tokens_per_second"]


def format_results(results: Mapping[str, Mapping]) -> str:
    """Returns a table per part: a row per measurement, and a column per field that any of them has."""
    return "\n\n".join(format_part(name, records) for name, records in results.items())


def format_part(name: str, records: Mapping) -> str:
    """Returns a part's heading, what went wrong, and its table."""
    lines = [f"### {name}", *(f"\n{key}: {records[key]}" for key in SENTENCES if key in records), ""]
    rows = _list_rows(records)
    columns = list(dict.fromkeys(column for record in rows.values() for column in record))
    lines.append(" | ".join(["| measurement", *columns]) + " |")
    lines.append("|" + "---|" * (1 + len(columns)))
    for key, record in rows.items():
        cells = [format_value(record[column]) if column in record else "" for column in columns]
        lines.append(" | ".join([f"| {key}", *cells]).replace("\n", " ") + " |")
    return "\n".join(lines)


def _list_rows(records: Mapping) -> dict[str, dict]:
    """Returns the records of a part's measurements, without what went wrong."""
    return {key: record for key, record in records.items() if key not in SENTENCES}
