"""OpenRLHF's protocol of a remote reward model, read as comparisons between completions. It knows no judge."""

from collections import Counter

from modeling.judging.rewards import Comparisons, Row
from modeling.serving.requests import PairLimits
from modeling.serving.validation import BodyReader

ALONE = (
    "expected another completion of its prompt, or a label; found neither. Send all completions of a prompt in one "
    "request, or an answer to compare each with as its label."
)
MORE = "Send less at a time, or start the app with a larger --max_waiting: a request may fill a quarter of it."


def parse_rewards(body: object, limits: PairLimits) -> Comparisons:
    """Reads the body of a request to `/get_reward`.

    Args:
        body: The parsed JSON: `query`, each a prompt with its completion as one text; `prompts`, the prompts alone;
            and, if wanted, `labels`, an answer to compare each completion with, or "" or null.
        limits: Upper limits.

    Raises:
        InvalidRequest: If the request is malformed, asks for too much, or has a single completion of a prompt without a
            label.
    """
    reader = BodyReader(limits.max_characters)
    fields = reader.read_object(body, (), ("query", "prompts"), ("labels",))
    queries = reader.read_list(fields.get("query"), ("query",)) if "query" in fields else []
    columns = [queries]
    for name in ("prompts", "labels"):
        if fields.get(name) is None and name == "labels":
            columns.append([None] * len(queries))
        elif name in fields:
            columns.append(values := reader.read_list(fields[name], (name,)))
            if len(values) != len(queries):
                reader.refuse((name,), f"expected one for each of {len(queries)} queries; found {len(values)}.")
    # A request of pairs alone has no more texts than this; checked first, because n completions make n² / 2 pairs.
    if len(queries) > 2 * limits.max_pairs:
        reader.refuse(("query",), f"expected at most {2 * limits.max_pairs:,}; found {len(queries):,}. {MORE}")
    reader.finish()
    rows = [_read_row(reader, number, *row) for number, row in enumerate(zip(*columns, strict=True))]
    reader.finish()
    group_sizes = Counter(prompt for prompt, _, label in rows if label is None)
    for number, (prompt, _, label) in enumerate(rows):
        if label is None and group_sizes[prompt] == 1:
            reader.refuse(("query", number), ALONE)
    comparisons = Comparisons(rows)
    if (found := len(comparisons.battles)) > limits.max_pairs:
        reader.refuse(("query",), f"expected at most {limits.max_pairs:,} pairs; found {found:,}. {MORE}")
    reader.finish()
    return comparisons


def _read_row(reader: BodyReader, number: int, query: object, prompt: object, label: object) -> Row:
    """Returns the prompt, the completion and the label of one query."""
    query, prompt = reader.read_text(query, ("query", number)), reader.read_text(prompt, ("prompts", number))
    label = None if label is None or label == "" else reader.read_text(label, ("labels", number))
    if query is None or prompt is None:
        return "", "", None
    if not query.startswith(prompt):
        reader.refuse(("query", number), "expected its prompt at the beginning; found another text. Send both as one.")
    return prompt, query.removeprefix(prompt), label
