"""Sources of training battles put together: guarded against leaks, repeats and empty comparisons, weighted, counted."""

import math
from collections import Counter
from collections.abc import Sequence

from accelerate.logging import get_logger
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import Sequence as Floats

from modeling.data.battles import RESPONSES, TEXTS
from modeling.data.near_duplicates import DuplicateIndex, normalize_text
from modeling.data.reader import Fault
from modeling.data.schemas import RowError, read_probability

logger = get_logger(__name__)
MOST_LANGUAGES = 12  # rows of a source in the table of counts

NUMBERS = Floats(Value("float64"))
MIXED = Features(
    {name: Value("string") for name in ("id", *TEXTS, "language", "train_source")}
    | {"label": NUMBERS, "teacher": NUMBERS, "weight": Value("float64")}
)


def drop_duplicates(source: str, battles: Dataset, *, repeat_policy: str, identical_policy: str) -> Dataset:
    """The battles of a source; those that compare nothing, or what an earlier one compared, are counted and may go.

    Args:
        source: Names the battles in the log.
        battles: With labels.
        repeat_policy: "keep" or "drop" for battles with the prompt and the two answers of an earlier one, in either
            order; case and white space do not count. Those with the other winner are counted by themselves: they are
            no copies, but say that voters disagreed.
        identical_policy: "keep" or "drop" for battles whose answers are the same.
    """
    ids, dropped = battles["id"][:], set()
    for (what, flag), rows in _find_duplicates(battles).items():
        policy = {"repeat_policy": repeat_policy, "identical_policy": identical_policy}[flag]
        fault = Fault()
        for row in rows:
            fault.add(ids[row], None)
        if rows:
            did = {"keep": "kept", "drop": "dropped"}[policy]
            logger.warning(f"{source}: {did} {len(rows)} of {len(ids)} battles {what} (--{flag} {policy}): {fault}")
        dropped.update(rows if policy == "drop" else ())
    return battles.select([row for row in range(len(ids)) if row not in dropped]) if dropped else battles


def _find_duplicates(battles: Dataset) -> dict[tuple[str, str], list[int]]:
    """Rows of each kind of twin, by what they are and the flag that is about them."""
    repeats, opposed, identical = [], [], []
    leads: dict[int, float] = {}
    for row, battle in enumerate(battles.select_columns([*TEXTS, "label"])):
        prompt, *answers = (normalize_text(battle[name]) for name in TEXTS)
        first, second = battle["label"] if answers[0] < answers[1] else reversed(battle["label"])
        # How far the answer that sorts first leads: the same for a battle and the same one turned.
        said, lead = hash((prompt, *sorted(answers))), first - second
        if answers[0] == answers[1]:
            identical.append(row)
            lead = 0
        if said in leads:
            (opposed if leads[said] * lead < 0 else repeats).append(row)
        leads.setdefault(said, lead)
    return {
        ("that repeat another", "repeat_policy"): repeats,
        ("that repeat another with the other winner", "repeat_policy"): opposed,
        ("whose two answers are the same", "identical_policy"): identical,
    }


def drop_contaminated(source: str, battles: Dataset, evaluation: DuplicateIndex, *, leak_policy: str) -> Dataset:
    """The battles of a source without those whose prompt stands, exactly or nearly, in the evaluation part.

    Args:
        source: Names the battles in the log.
        evaluation: The prompts that must not be trained on.
        leak_policy: "drop" leaves them out, "keep" does not, "error" stops; whichever, they are counted.

    Raises:
        ValueError: If there are any and the policy is "error".
    """
    exact, near, kept = Fault(), Fault(), []
    prompts = battles["prompt"][:]
    for row, found in enumerate(evaluation.find(prompts)):
        if found:
            (exact if prompts[row] in evaluation else near).add(battles[row]["id"], None)
        else:
            kept.append(row)
    count = exact.count + near.count
    said = (
        f"{source}: {count} of {len(battles)} battles have a prompt of the evaluation part, {exact.count} the same and "
        f"{near.count} nearly the same"
    )
    if not count or leak_policy == "keep":
        (logger.warning if count else logger.info)(f"{said}{'; kept (--leak_policy keep)' if count else ''}")
        return battles
    named = "; ".join(f"{what}: {fault}" for what, fault in (("same", exact), ("nearly", near)) if fault.count)
    if leak_policy == "error":
        raise ValueError(f"{said}; expected none. {named}. Pass --leak_policy drop to leave them out of training.")
    logger.warning(f"{said}; dropped from training (--leak_policy drop). {named}")
    return battles.select(kept)


def mix_sources(
    sources: Sequence[tuple[str, Dataset]],
    weights: Sequence[float] | None = None,
    confidences: Sequence[float] | None = None,
    teacher_columns: Sequence[str] = (),
) -> Dataset:
    """One set of training battles from several sources.

    Args:
        sources: Name and labelled battles of each.
        weights: Of each source's battles in the loss, scaled so that their mean over all battles is 1; None: all alike.
        confidences: Probability that a label of the source is right: a label [1, 0] becomes [c, 1 - c].
        teacher_columns: Columns with a teacher's probabilities, as [p_a, p_b] or as p_a, also as texts of a csv; the
            mean of those that are not null (or empty) becomes the column `teacher`.

    Returns:
        Columns id (as text), prompt, response_a, response_b, label, language and train_source (the source's name), and
        where asked for teacher and weight.

    Raises:
        ValueError: If a teacher column is in no source, or holds something else than probabilities.
    """
    for name in teacher_columns:
        if not any(name in battles.column_names for _, battles in sources):
            found = ", ".join(dict.fromkeys(name for _, battles in sources for name in battles.column_names))
            raise ValueError(f"--teacher_column {name}: expected a column of a --train_file; found {found}.")
    numbers = [len(battles) for _, battles in sources]
    weights, confidences = weights or [1.0] * len(sources), confidences or [1.0] * len(sources)
    mean = sum(map(math.prod, zip(weights, numbers, strict=True))) / sum(numbers)
    wanted = {"teacher": bool(teacher_columns), "weight": len(set(weights)) > 1}
    features = Features({name: kind for name, kind in MIXED.items() if wanted.get(name, True)})
    mixed = []
    for (source, battles), weight, confidence in zip(sources, weights, confidences, strict=True):
        count = len(battles)
        columns = {name: battles[name][:] for name in ("label", *TEXTS)}
        columns["id"] = [str(id) for id in battles["id"]]
        columns["label"] = [soften_label(label, confidence) for label in columns["label"]]
        languages = battles["language"][:] if "language" in battles.column_names else [None] * count
        columns["language"] = [None if language is None else str(language) for language in languages]
        columns["train_source"], columns["weight"] = [source] * count, [weight / mean] * count
        columns["teacher"] = average_teachers(source, battles, teacher_columns)
        mixed.append(Dataset.from_dict({name: columns[name] for name in features}, features=features))
    return concatenate_datasets(mixed)


def soften_label(label: Sequence[float], confidence: float) -> list[float]:
    """A label that is right with probability `confidence`, else one of the other labels, each as likely.

    Example: `soften_label([1.0, 0.0], 0.9)` is `[0.9, 0.1]`; a tie stays a tie.
    """
    return [confidence * p + (1 - confidence) * (1 - p) / (len(label) - 1) for p in label]


def average_teachers(source: str, battles: Dataset, columns: Sequence[str]) -> list[list[float] | None]:
    """Mean of the teachers' probabilities of each battle; None where none of them says anything."""
    answers: list[list] = [[] for _ in range(len(battles))]
    for name in columns:
        odd = Fault()
        for row, value in enumerate(battles[name][:] if name in battles.column_names else []):
            try:
                if p := read_probability(name, value):
                    answers[row].append(p)
            except RowError as error:
                odd.add(battles[row]["id"], error.found)
        if odd.count:
            raise ValueError(
                f"{source}: {odd}: --teacher_column {name} must be null, a probability of a, or [p_a, p_b]; found "
                f"{', '.join(odd.found)}. Fix these rows or leave the column out."
            )
    return [[sum(p) / len(said) for p in zip(*said, strict=True)] if said else None for said in answers]


def describe_battles(battles: Dataset) -> str:
    """A table: battles per source and language, how many each side wins, and the share of the longer answer's wins.

    Args:
        battles: With columns label, the texts and, where known, language and train_source.
    """
    counts: dict[tuple[str, str], Counter] = {}
    names = [name for name in ("language", "train_source") if name in battles.column_names]
    for battle in battles.select_columns([*RESPONSES, "label", *names]):
        p_a, p_b = battle["label"]
        outcome = "tie" if p_a == p_b else "a" if p_a > p_b else "b"
        lengths = [len(battle[name]) for name in RESPONSES]
        longer = outcome != "tie" and lengths[0] != lengths[1] and (lengths[0] > lengths[1]) == (outcome == "a")
        key = battle.get("train_source") or "", battle.get("language") or "-"
        counts.setdefault(key, Counter()).update({outcome: 1, "longer": longer})
    rows = [("source", "language", "battles", "a wins", "b wins", "ties", "longer wins")]
    for source in dict.fromkeys(source for source, _ in counts):
        parts = {language: count for (name, language), count in counts.items() if name == source}
        total = sum(parts.values(), Counter())
        common = sorted(parts.items(), key=lambda part: -_count(part[1]))
        rest = sum((count for _, count in common[MOST_LANGUAGES:]), Counter())
        shown = [*common[:MOST_LANGUAGES], *[(f"{len(common) - MOST_LANGUAGES} others", rest)] * bool(rest)]
        rows += [_describe_row(source, language, count) for language, count in (*shown, ("all", total))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def _count(outcomes: Counter) -> int:
    return sum(outcomes[name] for name in ("a", "b", "tie"))


def _describe_row(source: str, language: str, outcomes: Counter) -> tuple[str, ...]:
    decided = outcomes["a"] + outcomes["b"]
    longer = f"{outcomes['longer'] / decided:.1%}" if decided else "-"
    numbers = (f"{number:,}" for number in (_count(outcomes), outcomes["a"], outcomes["b"], outcomes["tie"]))
    return source, language, *numbers, longer
