"""A study's figures as markdown tables and as a picture. For benchmarks/study.py, and for the tests of the README."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from modeling.evaluation.text_report import format_estimate


def format_table(title: str, arms: Mapping[str, dict]) -> str:
    """Each arm's accuracy and log loss, and their differences from the arm that it is compared with.

    Args:
        title: Of the first column.
        arms: What `measure_arms` returned.
    """
    lines = [f"| {title} | accuracy [95%] | compared with | difference | log loss | difference |", "|---" * 6 + "|"]
    for arm, found in arms.items():
        other, differences = next(iter(found.get("against", {}).items()), ("", {}))
        cells = [arm, "{:.3f} [{:.3f}, {:.3f}]".format(*found["accuracy"]), other]
        cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*differences["accuracy"]) if differences else "")
        cells.append(f"{found['log_loss'][0]:.3f}")
        cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*differences["log_loss"]) if differences else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_parts(judge: Mapping) -> str:
    """A judge's accuracy and log loss by language, by who gave the verdict, and of its surest battles.

    Args:
        judge: One of `judges` in benchmarks/study.json.
    """
    lines = ["| | battles | accuracy [95%] | log loss [95%] |", "|---" * 4 + "|"]
    for row in [*judge["report"]["tables"]["language"], *judge["report"]["tables"]["verdict"]]:
        accuracy, log_loss = (format_estimate(row[figure]) for figure in ("accuracy", "log_loss"))
        lines.append(f"| {row['name']} | {row['battles']} | {accuracy} | {log_loss} |")
    for row in judge["report"]["selective"]:
        if row["share"] in (0.1, 0.5):
            accuracy = row["accuracy"]
            lines.append(f"| its surest {row['share']:.0%} | {accuracy['count']} | {format_estimate(accuracy)} | |")
    return "\n".join(lines)


def format_judges(figures: Mapping) -> str:
    """What needs no language model, and the judges, as they are and calibrated.

    Args:
        figures: What benchmarks/study.json holds.
    """

    lines = ["| | accuracy [95%] | log loss [95%] | ECE [95%] |", "|---" * 4 + "|"]
    for name, found in figures["baselines"].items():
        log_loss = format_estimate(found["log_loss"]) if "log_loss" in found else ""
        lines.append(f"| {name} | {format_estimate(found['accuracy'])} | {log_loss} | |")
    for name, judge in figures["judges"].items():
        for when, added in (("before", ""), ("after", ", calibrated")):
            cells = [format_estimate(judge[when][figure]) for figure in ("accuracy", "log_loss", "ece")]
            lines.append(f"| {name}{added} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_arms(tables: Mapping[str, Mapping[str, dict]], baselines: Mapping[str, dict], path: Path) -> None:
    """Accuracy of every arm with its 95% interval, a panel for each table, and lines for what is simpler."""
    sizes = [len(arms) for arms in tables.values()]
    figure, panels = plt.subplots(
        len(tables), figsize=(8, 0.27 * sum(sizes) + 0.5 * len(tables)), sharex=True, height_ratios=sizes
    )
    scored = max(found["scored"] for arms in tables.values() for found in arms.values())
    for panel, (title, arms) in zip(panels, tables.items(), strict=True):
        for place, found in enumerate(arms.values()):
            value, low, high = found["accuracy"]
            panel.plot([low, high], [place, place], color="tab:blue", linewidth=1.5)
            panel.plot(value, place, "o", color="tab:blue", markersize=4)
        of_all = next(iter(arms.values()))["scored"] == scored
        for place, (name, value) in enumerate(baselines.items() if of_all else ()):
            panel.axvline(
                value["accuracy"]["value"], color="0.5", linestyle=("--", ":", "-.")[place], linewidth=1, label=name
            )
        panel.set_yticks(range(len(arms)), arms, fontsize=8)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.set_title(title, fontsize=9, loc="left")
    panels[0].legend(fontsize=7, loc="upper left")
    panels[-1].set_xlabel("accuracy on battles without ties, 95% intervals by a bootstrap of prompts", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
