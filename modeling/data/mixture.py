"""Mixes sources of training battles: drops contamination and duplicates, weights, softens labels, counts.

It must not know where the battles come from or how a model is trained on them.
"""

import math
from collections import Counter
from collections.abc import Sequence

from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import Sequence as Floats

from modeling.data.battles import RESPONSES, TEXTS
from modeling.data.cells import RowError, read_probability
from modeling.data.near_duplicates import DuplicateIndex, normalize_text
from modeling.data.outcomes import LABELS, find_outcome
from modeling.data.reader import Fault
from modeling.runtime.logs import build_logger
from modeling.runtime.text_tables import format_table

logger = build_logger(__name__)
MOST_LANGUAGES = 12  # per source in the table of counts; the others share a row

PROBABILITIES = Floats(Value("float64"))
MIXED = Features(
    {name: Value("string") for name in ("id", *TEXTS, "language", "train_source")}
    | {"label": PROBABILITIES, "teacher": PROBABILITIES, "weight": Value("float64")}
)


def drop_duplicates(source: str, battles: Dataset, *, repeat_policy: str, identical_policy: str) -> Dataset:
    """Counts, and optionally drops, duplicates and battles with two equal responses.

    Args:
        source: The name of the battles in the log.
        battles: Labelled battles.
        repeat_policy: "keep" or "drop" for a battle with the prompt and the two responses of an earlier one, in either
            order, ignoring case and white space. Duplicates with the opposite winner are counted apart, because they
            show that voters disagreed.
        identical_policy: "keep" or "drop" for a battle whose responses are equal.

    Returns:
        The remaining battles in the same order.
    """
    ids, dropped = battles["id"][:], set()
    policies = {"repeat_policy": repeat_policy, "identical_policy": identical_policy}
    for (kind, flag), rows in _find_duplicates(battles).items():
        policy, fault = policies[flag], Fault()
        for row in rows:
            fault.add(ids[row], None)
        if rows:
            done = {"keep": "kept", "drop": "dropped"}[policy]
            logger.warning(f"{source}: {done} {len(rows)} of {len(ids)} battles {kind} (--{flag} {policy}): {fault}")
        dropped.update(rows if policy == "drop" else ())
    return battles.select([row for row in range(len(ids)) if row not in dropped]) if dropped else battles


def _find_duplicates(battles: Dataset) -> dict[tuple[str, str], list[int]]:
    """Returns the rows of each kind of duplicate, by its description and its flag."""
    repeats, opposed, identical = [], [], []
    leads: dict[int, float] = {}
    for row, battle in enumerate(battles.select_columns([*TEXTS, "label"])):
        prompt, *responses = (normalize_text(battle[name]) for name in TEXTS)
        p_a, p_b = battle["label"][:2]
        # The lead of the response that sorts first does not change when a battle's sides are swapped.
        lead = p_a - p_b if responses[0] < responses[1] else p_b - p_a
        key = hash((prompt, *sorted(responses)))  # a hash, to keep no texts in memory
        if responses[0] == responses[1]:
            identical.append(row)
            lead = 0  # equal responses: no repeat of this battle opposes it
        if key in leads:
            (opposed if leads[key] * lead < 0 else repeats).append(row)
        leads.setdefault(key, lead)
    return {
        ("that repeat another", "repeat_policy"): repeats,
        ("that repeat another with the opposite winner", "repeat_policy"): opposed,
        ("with two equal responses", "identical_policy"): identical,
    }


def drop_contaminated(source: str, battles: Dataset, evaluation: DuplicateIndex, *, leak_policy: str) -> Dataset:
    """Counts the battles whose prompt is, exactly or nearly, in the evaluation part, and applies `leak_policy` to them.

    Args:
        source: The name of the battles in the log.
        battles: Battles that would be trained on.
        evaluation: The prompts of the evaluation part.
        leak_policy: "drop" leaves contaminated battles out, "keep" keeps them, "error" stops. All three count them.

    Returns:
        The remaining battles in the same order.

    Raises:
        ValueError: If there are contaminated battles and the policy is "error".
    """
    exact, near, kept = Fault(), Fault(), []
    prompts = battles["prompt"][:]
    for row, found in enumerate(evaluation.find(prompts)):
        if found:
            (exact if prompts[row] in evaluation else near).add(battles[row]["id"], None)
        else:
            kept.append(row)
    count = exact.count + near.count
    summary = (
        f"{source}: {count} of {len(battles)} battles are contaminated: {exact.count} have a prompt of the evaluation "
        f"part and {near.count} a near-duplicate of one"
    )
    if not count:
        logger.info(summary)
        return battles
    if leak_policy == "keep":
        logger.warning(f"{summary}; kept (--leak_policy keep)")
        return battles
    named = "; ".join(f"{kind}: {fault}" for kind, fault in (("same", exact), ("near", near)) if fault.count)
    if leak_policy == "error":
        raise ValueError(f"{summary}; expected none. {named}. Pass --leak_policy drop to leave them out of training.")
    logger.warning(f"{summary}; dropped from training (--leak_policy drop). {named}")
    return battles.select(kept)


def mix_sources(
    sources: Sequence[tuple[str, Dataset]],
    weights: Sequence[float] | None = None,
    confidences: Sequence[float] | None = None,
    teacher_columns: Sequence[str] = (),
) -> Dataset:
    """Returns one set of training battles from several sources.

    Args:
        sources: Name and labelled battles of each source.
        weights: Weight in the loss of each source's battles, scaled to a mean of 1 over all battles. None: all equal.
        confidences: Probability for each source that a label is right: a label [1, 0] becomes [c, 1 - c].
        teacher_columns: Columns with a teacher's probabilities, as [p_a, p_b] or as p_a, or as csv text; where labels
            have three, as [p_a, p_b, p_tie]. The mean of those that are not empty becomes the column `teacher`.

    Returns:
        Rows in the order of the sources. Columns: id (as text), prompt, response_a, response_b, label, language,
        train_source (the source's name), teacher if there are teacher columns, and weight if the weights differ.

    Raises:
        ValueError: If no source has a teacher column, or it holds something other than probabilities.
    """
    for name in teacher_columns:
        if not any(name in battles.column_names for _, battles in sources):
            found = ", ".join(dict.fromkeys(name for _, battles in sources for name in battles.column_names))
            raise ValueError(f"--teacher_column {name}: expected a column of a --train_file; found {found}.")
    counts = [len(battles) for _, battles in sources]
    weights, confidences = weights or [1.0] * len(sources), confidences or [1.0] * len(sources)
    mean = sum(map(math.prod, zip(weights, counts, strict=True))) / sum(counts)
    # Without a weight column the loss is the plain mean, which equal weights would give too.
    optional = {"teacher": bool(teacher_columns), "weight": len(set(weights)) > 1}
    # Only these columns: the others of the sources may differ in type, and could not be concatenated.
    features = Features({name: kind for name, kind in MIXED.items() if optional.get(name, True)})
    mixed = []
    for (source, battles), weight, confidence in zip(sources, weights, confidences, strict=True):
        count = len(battles)
        columns = {name: battles[name][:] for name in ("label", *TEXTS)}
        columns["id"] = [str(id) for id in battles["id"]]  # sources may mix text and whole numbers
        columns["label"] = [soften_label(label, confidence) for label in columns["label"]]
        languages = battles["language"][:] if "language" in battles.column_names else [None] * count
        columns["language"] = [None if language is None else str(language) for language in languages]
        columns["train_source"], columns["weight"] = [source] * count, [weight / mean] * count
        columns["teacher"] = average_teachers(source, battles, teacher_columns)
        mixed.append(Dataset.from_dict({name: columns[name] for name in features}, features=features))
    return concatenate_datasets(mixed)


def soften_label(label: Sequence[float], confidence: float) -> list[float]:
    """Returns a label that is right with probability `confidence`, and else equally likely any other label.

    Example: `soften_label([1.0, 0.0], 0.9)` is `[0.9, 0.1]`; a tie stays a tie.
    """
    return [confidence * p + (1 - confidence) * (1 - p) / (len(label) - 1) for p in label]


def average_teachers(source: str, battles: Dataset, columns: Sequence[str]) -> list[list[float] | None]:
    """Returns the mean of the teachers' probabilities for each battle, or None where no teacher has any."""
    given: list[list] = [[] for _ in range(len(battles))]
    num_labels = len(battles[0]["label"]) if len(battles) else len(LABELS)
    wanted = "null, a probability of a, or [p_a, p_b]" if num_labels == len(LABELS) else "null or [p_a, p_b, p_tie]"
    for name in columns:
        fault = Fault()
        for row, value in enumerate(battles[name][:] if name in battles.column_names else []):
            try:
                if probabilities := read_probability(name, value, num_labels):
                    given[row].append(probabilities)
            except RowError as error:
                fault.add(battles[row]["id"], error.found)
        if fault.count:
            raise ValueError(
                f"{source}: {fault}: --teacher_column {name} must be {wanted}; found {', '.join(fault.found)}. Fix "
                "these rows or leave the column out."
            )
    return [[sum(p) / len(some) for p in zip(*some, strict=True)] if some else None for some in given]


def describe_battles(battles: Dataset) -> str:
    """Returns a table with a row per source and language: battles, wins of each side, ties, wins of the longer text.

    Args:
        battles: Labelled battles, with language and train_source where known.
    """
    counts: dict[tuple[str, str], Counter] = {}
    names = [name for name in ("language", "train_source") if name in battles.column_names]
    for battle in battles.select_columns([*RESPONSES, "label", *names]):
        outcome = find_outcome(battle["label"])
        lengths = [len(battle[name]) for name in RESPONSES]
        # A win between equally long responses is not one of the longer, but counts in the share's denominator.
        longer = outcome != "tie" and lengths[0] != lengths[1] and (lengths[0] > lengths[1]) == (outcome == "a")
        key = battle.get("train_source") or "", battle.get("language") or "-"
        counts.setdefault(key, Counter()).update({outcome: 1, "longer": longer})
    rows = [("source", "language", "battles", "a wins", "b wins", "ties", "longer wins")]
    for source in dict.fromkeys(source for source, _ in counts):
        parts = {language: count for (name, language), count in counts.items() if name == source}
        total = sum(parts.values(), Counter())
        ranked = sorted(parts.items(), key=lambda part: -_count(part[1]))
        shown, others = ranked[:MOST_LANGUAGES], ranked[MOST_LANGUAGES:]
        if others:
            shown.append((f"{len(others)} others", sum((count for _, count in others), Counter())))
        rows += [_describe_row(source, language, count) for language, count in (*shown, ("all", total))]
    return format_table(rows)


def _count(outcomes: Counter) -> int:
    """Returns the number of battles; "longer" is not an outcome of its own."""
    return sum(outcomes[name] for name in ("a", "b", "tie"))


def _describe_row(source: str, language: str, outcomes: Counter) -> tuple[str, ...]:
    """Returns the cells of one row of the table."""
    decided = outcomes["a"] + outcomes["b"]
    longer = f"{outcomes['longer'] / decided:.1%}" if decided else "-"
    numbers = (f"{number:,}" for number in (_count(outcomes), outcomes["a"], outcomes["b"], outcomes["tie"]))
    return source, language, *numbers, longer
