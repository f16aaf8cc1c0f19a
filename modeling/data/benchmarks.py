"""Reads public benchmarks of preference models, each in the format in which its authors publish it.

A benchmark is an entry in `FORMATS` and a function that turns one of its rows into questions: a prompt with two answers
or more. A question becomes one battle for each pair of its answers. Columns and subsets are checked, so that a file of
another version is an error. How a benchmark is scored is in evaluation/benchmarks.py.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from datasets import Dataset

from modeling.data.cells import FIX, RowError, parse_list, parse_number
from modeling.data.reader import BattleReader, RowPolicy
from modeling.data.schemas import ARENA_WINNERS, hash_texts, read_helpsteer, read_lmarena
from modeling.runtime.formats import Columns
from modeling.runtime.paths import split_source
from modeling.runtime.sources import iterate_columns

VERSION = "This may be another version of the benchmark, or another file."

# Subsets by section, with the weight of each subset in its section. Source: reward-bench, rewardbench/constants.py.
# The weights are numbers of rows, but for math-prm, whose 447 rows weigh as much as the 984 rows of code.
REWARDBENCH_SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 250,
        "xstest-should-respond": 154,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
REWARDBENCH_SUBSETS = tuple(name for section in REWARDBENCH_SECTIONS.values() for name in section)
TIES = "Ties"  # the subset of RewardBench 2 with several right answers
RM_BENCH_DOMAINS = ("chat", "code", "math", "safety")
RM_BENCH_LEVELS = ("easy", "normal", "hard")
# The beginning of JudgeBench's sources, as of "mmlu-pro-law", by category.
JUDGEBENCH_SOURCES = {
    "knowledge": "mmlu-pro",
    "reasoning": "livebench-reasoning",
    "math": "livebench-math",
    "coding": "livecodebench",
}
PPE_TAGS = {
    "hard_prompt": "hard prompts",
    "easy_prompt": "easy prompts",
    "if_prompt": "instruction following",
    "is_code": "code",
    "math_prompt": "math",
}
LANGUAGES = ("arb_Arab", "ces_Latn", "deu_Latn", "ell_Grek", "fra_Latn", "heb_Hebr", "hin_Deva", "ind_Latn")
LANGUAGES += ("ita_Latn", "jpn_Jpan", "kor_Hang", "nld_Latn", "pes_Arab", "pol_Latn", "por_Latn", "ron_Latn")
LANGUAGES += ("rus_Cyrl", "spa_Latn", "tur_Latn", "ukr_Cyrl", "vie_Latn", "zho_Hans", "zho_Hant")
EXPERT, AUTHOR = "expert", "author"  # who voted in MT-Bench


@dataclass(frozen=True)
class Question:
    """A prompt with its answers, as a row of a benchmark gives them.

    id: The row's own id, or what there is of one; need not be unique.
    right: How good each answer is: 1 and 0 for right and wrong; equal numbers are a tie.
    group: What is drawn together in a bootstrap: questions with one prompt, or its translations.
    has_order: Whether the order of the answers is the benchmark's. Else a hash of the texts decides it, because the
        right answers come first in the row.
    others: Columns to carry along.
    """

    id: object
    prompt: str
    responses: tuple[str, ...]
    right: tuple[float, ...]
    subset: str
    group: str
    has_order: bool = True
    language: str | None = None
    tags: tuple[str, ...] = ()
    others: tuple[tuple[str, object], ...] = ()


# --- one function per benchmark ---------------------------------------------------------------------------------------


def read_rewardbench(row: Mapping, _: str) -> Iterator[Question]:
    """Reads RewardBench 1, split `filtered`. Source: allenai/reward-bench, rewardbench/utils.py."""
    answers = (row["chosen"], row["rejected"])
    yield Question(row["id"], row["prompt"], answers, (1, 0), row["subset"], row["prompt"], has_order=False)


def read_rewardbench2(row: Mapping, _: str) -> Iterator[Question]:
    """Reads RewardBench 2: lists of right and of wrong answers. Source: allenai/reward-bench, scripts/run_v2.py.

    The ids of the subset Ties are `ref:<number>`, with one right answer, and `tied:<number>`, with several.
    """
    right, wrong = (check_texts(row, name) for name in ("chosen", "rejected"))
    kind, _, number = str(row["id"]).partition(":")
    is_tie = row["subset"] == TIES
    if is_tie and (kind not in ("ref", "tied") or not number):
        raise RowError(f"ids of {TIES} must be ref:<number> or tied:<number>", row["id"])
    scores = (1,) * len(right) + (0,) * len(wrong)
    tags, group = ((kind, number), f"{TIES} {number}") if is_tie else ((), row["prompt"])
    answers = (*right, *wrong)
    yield Question(row["id"], row["prompt"], answers, scores, row["subset"], group, has_order=False, tags=tags)


def read_rm_bench(row: Mapping, _: str) -> Iterator[Question]:
    """Reads RM-Bench: three right and three wrong answers, each concise, detailed and detailed in Markdown.

    Each right answer meets each wrong one. The pair is hard if the wrong one has the fancier style, and easy if the
    right one has. Source: THU-KEG/RM-Bench, README.md.
    """
    right, wrong = (check_texts(row, name) for name in ("chosen", "rejected"))
    if (len(right), len(wrong)) != (3, 3):
        raise RowError("chosen and rejected must have three styles each", [len(right), len(wrong)])
    domain = str(row["domain"])
    for i, chosen in enumerate(right):
        for j, rejected in enumerate(wrong):
            level = RM_BENCH_LEVELS[(i < j) - (i > j) + 1]
            place = f"{row['id']}/{i}-{j}"
            tags = (level, domain)
            answers, subset = (chosen, rejected), domain.partition("-")[0]
            yield Question(place, row["prompt"], answers, (1, 0), subset, str(row["id"]), has_order=False, tags=tags)


def read_judgebench(row: Mapping, _: str) -> Iterator[Question]:
    """Reads JudgeBench. Source: ScalerLab/JudgeBench, README.md."""
    labels = {"A>B": (1, 0), "B>A": (0, 1)}
    if row["label"] not in labels:
        raise RowError(f"label must be one of {', '.join(labels)}", row["label"])
    source = str(row["source"])
    subset = next((name for name, begin in JUDGEBENCH_SOURCES.items() if source.startswith(begin)), source)
    answers, right = (row["response_A"], row["response_B"]), labels[row["label"]]
    tags = (str(row["response_model"]),)
    yield Question(row["pair_id"], row["question"], answers, right, subset, row["question"], tags=tags)


def read_llmbar(row: Mapping, place: str) -> Iterator[Question]:
    """Reads LLMBar, whose folders or splits name the subsets. Source: princeton-nlp/LLMBar, README.md."""
    words = place.replace("_", "/").replace(":", "/").split("/")
    subset = next((word for word in reversed(words) if word in FORMATS["llmbar"].subsets), None)
    if subset is None:
        raise RowError(
            f"the folder must tell the subset ({', '.join(FORMATS['llmbar'].subsets)})",
            "none of them",
            "Give the folder Dataset/LLMBar of the benchmark's repository.",
        )
    labels = {1: (1, 0), 2: (0, 1)}
    if (label := parse_number(row["label"])) not in labels:
        raise RowError("label must be 1 or 2", row["label"])
    answers = (row["output_1"], row["output_2"])
    yield Question("", row["input"], answers, labels[int(label)], subset, row["input"])


def read_ppe(row: Mapping, _: str) -> Iterator[Question]:
    """Reads PPE's human preferences, votes of Chatbot Arena. Source: lmarena/PPE's data set and its users' loaders."""
    if row["winner"] not in ARENA_WINNERS:
        raise RowError(f"winner must be one of {', '.join(ARENA_WINNERS)}", row["winner"])
    tags = tuple(name for column, name in PPE_TAGS.items() if str(row[column]).lower() in ("true", "1"))
    answers, right = (row["response_1"], row["response_2"]), tuple(ARENA_WINNERS[row["winner"]])
    found = {"language": str(row["language"]), "tags": tags, "others": read_models(row)}
    yield Question(row["question_id"], row["prompt"], answers, right, "human preference", row["prompt"], **found)


def read_m_rewardbench(row: Mapping, _: str) -> Iterator[Question]:
    """Reads M-RewardBench, RewardBench 1 in 23 languages. Source: Cohere-Labs-Community/m-rewardbench, scripts."""
    answers, found = (row["chosen"], row["rejected"]), {"language": str(row["language"]), "has_order": False}
    yield Question(row["id"], row["prompt"], answers, (1, 0), row["source"], str(row["id"]), **found)


def read_mt_bench(row: Mapping, _: str) -> Iterator[Question]:
    """Reads MT-Bench's votes by people. Source: lm-sys/FastChat, llm_judge/compute_agreement.py."""
    battle, voter = read_lmarena(row, None), str(row["judge"]).partition("_")[0]
    if voter not in (EXPERT, AUTHOR):
        raise RowError(f"judge must be {EXPERT}_<number> or {AUTHOR}_<number>", row["judge"])
    if (turn := parse_number(row["turn"])) not in (1, 2):
        raise RowError("turn must be 1 or 2", row["turn"])
    subset, right = f"turn {int(turn)}", tuple(battle["label"])
    answers, found = (battle["response_a"], battle["response_b"]), {"tags": (voter,), "others": read_models(row)}
    id = f"{row['question_id']}:{row['model_a']}:{row['model_b']}:{row['judge']}"
    yield Question(id, battle["prompt"], answers, right, subset, str(row["question_id"]), **found)


def read_helpsteer3(row: Mapping, _: str) -> Iterator[Question]:
    """Reads HelpSteer3's preferences from -3 to 3; 0 is a tie. Source: the data set's card, nvidia/HelpSteer3."""
    battle = read_helpsteer(row, None)
    answers, right = (battle["response_a"], battle["response_b"]), tuple(battle["label"])
    yield Question("", battle["prompt"], answers, right, row["domain"], battle["prompt"], language=str(row["language"]))


def read_models(row: Mapping) -> tuple[tuple[str, object], ...]:
    """Returns the names of the two models as columns to carry along."""
    return tuple((name, row[name]) for name in ("model_a", "model_b"))


def check_texts(row: Mapping, name: str) -> list[str]:
    """Returns a column that must hold at least one text in a list; a RowError if it does not."""
    texts = parse_list(row[name])  # csv holds lists as text
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RowError(f"{name} must be a list of texts", texts)
    return texts


# --- the table of benchmarks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """How a benchmark is published.

    read_row: Takes a row and the file or split that it is in.
    columns: Columns that must be there.
    subsets: All subsets there are.
    splits: Subsets and splits of the Hub data set, as ("/<subset>", "<split>").
    files: Which files of a folder hold it, as a glob pattern.
    size: Number of questions, where it is known.
    """

    read_row: Callable[[Mapping, str], Iterable[Question]]
    columns: tuple[str, ...]
    subsets: tuple[str, ...]
    splits: tuple[tuple[str, str], ...]
    files: str
    size: int | None = None


PAIR_COLUMNS = ("id", "prompt", "chosen", "rejected")
PPE_COLUMNS = ("question_id", "prompt", "response_1", "response_2", "winner", "language", "model_a", "model_b")
VOTE_COLUMNS = ("question_id", "model_a", "model_b", "winner", "judge", "conversation_a", "conversation_b", "turn")
ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
FORMATS = {
    "rewardbench": Format(
        read_rewardbench, (*PAIR_COLUMNS, "subset"), REWARDBENCH_SUBSETS, (("", "filtered"),), "**/filtered-*", 2985
    ),
    "rewardbench2": Format(
        read_rewardbench2,
        (*PAIR_COLUMNS, "subset"),
        ("Factuality", "Precise IF", "Math", "Safety", "Focus", TIES),
        (("", "test"),),
        "**/test-*",
        1865,
    ),
    "rm-bench": Format(
        read_rm_bench, (*PAIR_COLUMNS, "domain"), RM_BENCH_DOMAINS, (("", "train"),), "**/total_dataset.json", 9 * 1327
    ),
    "judgebench": Format(
        read_judgebench,
        ("pair_id", "source", "question", "response_model", "response_A", "response_B", "label"),
        tuple(JUDGEBENCH_SOURCES),
        (("", "gpt"), ("", "claude")),
        "**/*.jsonl",
        620,
    ),
    "llmbar": Format(
        read_llmbar,
        ("input", "output_1", "output_2", "label"),
        ("Natural", *ADVERSARIAL),
        (("/LLMBar", "Natural"), *(("/LLMBar", f"Adversarial_{name}") for name in ADVERSARIAL)),
        "**/dataset.json",
        419,
    ),
    "ppe": Format(
        read_ppe, (*PPE_COLUMNS, *PPE_TAGS), ("human preference",), (("", "test"),), "**/test-*.parquet", 16038
    ),
    "m-rewardbench": Format(
        read_m_rewardbench,
        (*PAIR_COLUMNS, "language", "source"),
        REWARDBENCH_SUBSETS,
        tuple((f"/{language}", "test") for language in LANGUAGES),
        "???_????/test-*",
    ),
    "mt-bench": Format(read_mt_bench, VOTE_COLUMNS, ("turn 1", "turn 2"), (("", "human"),), "**/human-*.parquet", 3355),
    "helpsteer3": Format(
        read_helpsteer3,
        ("domain", "language", "context", "response1", "response2", "overall_preference"),
        ("general", "code", "stem", "multilingual"),
        (("/preference", "validation"),),
        "preference/validation*",
    ),
}


# --- files to battles -------------------------------------------------------------------------------------------------


def load_benchmark(name: str, source: str) -> Dataset:
    """Loads a benchmark as battles, one for each pair of a question's answers.

    Args:
        name: One of `FORMATS`.
        source: A file or folder in the format of the benchmark's authors, or a Hub data set.

    Returns:
        Battles as `load_battles` returns them, with the columns question (the id of the question), row_id (the row's
        own id), right_a and right_b (how good each answer is), subset, tags, group (see `Question`), and language where
        the benchmark names it. The battles of a question are consecutive, in the order of `itertools.combinations` of
        its answers. Ids and sides do not depend on the order of the rows.

    Raises:
        FileNotFoundError: If there is no such source, or a folder holds none of the benchmark's files.
        ValueError: If a column is missing, a subset is unknown, a row is malformed, or `TIES` lacks a kind of question.
    """
    where, found = f"--benchmark {name}", []
    for number, (place, row) in enumerate(_read_rows(name, source), 1):
        try:
            questions = list(FORMATS[name].read_row(row, place))
            if strangers := [each.subset for each in questions if each.subset not in FORMATS[name].subsets]:
                raise RowError(f"the subset must be one of {', '.join(FORMATS[name].subsets)}", strangers[0])
        except RowError as error:
            way_out = VERSION if error.way_out == FIX else error.way_out
            raise ValueError(
                f"{where}: {place}, row {number}: {error.expected}; found {error.found!r:.80}. {way_out}"
            ) from error
        found += questions
    if not found:
        raise ValueError(f"{where}: {source}: expected questions; found none. {VERSION}")
    _check_ties(found, f"{where}: {source}")
    reader = BattleReader(where, RowPolicy(schema="label", blank_policy="keep"), require_labels=True)
    battles = reader.read(_list_battles(found))
    reader.finish()
    return battles


def _check_ties(questions: Iterable[Question], where: str) -> None:
    """Raises a ValueError if `TIES` is there without a pair of its two kinds, of which its score is made."""
    tags = [question.tags for question in questions if question.subset == TIES]
    ref, tied = ({number for each, number in tags if each == kind} for kind in ("ref", "tied"))
    if tags and not ref & tied:
        raise ValueError(
            f"{where}: expected of {TIES} both ref:<number> and tied:<number> of a number; found no number with both. "
            "Give the whole subset, or leave it out."
        )


def _read_rows(name: str, source: str) -> Iterator[tuple[str, Mapping]]:
    """Yields each row with the file or split that it is in, after a check of the columns."""
    for place in _list_places(name, source):
        for columns in _read_columns(place):
            if missing := [column for column in FORMATS[name].columns if column not in columns]:
                raise ValueError(
                    f"--benchmark {name}: {place}: expected the columns {', '.join(FORMATS[name].columns)}; found no "
                    f"{', no '.join(missing)}, only {', '.join(columns) or 'none'}. {VERSION}"
                )
            for values in zip(*columns.values(), strict=True):
                yield place, dict(zip(columns, values, strict=True))


def _list_places(name: str, source: str) -> list[str]:
    """The files or the Hub's splits that hold a benchmark."""
    path, pattern = Path(source), FORMATS[name].files
    if path.is_file():
        return [source]
    if path.is_dir():
        if not (files := sorted(str(file) for file in path.glob(pattern) if file.is_file())):
            raise FileNotFoundError(
                f"--benchmark {name}: {source}: expected files {pattern} in this folder, as the benchmark's authors "
                "name them; found none. Name one file, or the folder that holds them."
            )
        return files
    owner_and_name, revision, split = split_source(source)
    if split:
        return [source]
    at = f"@{revision}" if revision else ""
    return [f"{owner_and_name}{subset}{at}:{split}" for subset, split in FORMATS[name].splits]


def _read_columns(place: str) -> Iterator[Columns]:
    """Yields the columns of a file or split; a .json file holds one list of rows."""
    if not (Path(place).is_file() and place.lower().endswith(".json")):
        yield from iterate_columns(place)
        return
    try:
        rows = json.loads(Path(place).read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(f"{place}: expected JSON; found {error}. Download the file again.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{place}: expected one list of JSON objects; found other JSON. {VERSION}")
    names = dict.fromkeys(name for row in rows for name in row)
    yield {name: [row.get(name) for row in rows] for name in names}


def _list_battles(questions: Iterable[Question]) -> Columns:
    """The battles of all questions as columns."""
    rows, seen = [], Counter()
    for question in questions:
        texts = {"id": question.id, "prompt": question.prompt, "answers": list(question.responses)}
        key = hash_texts(texts | {"subset": question.subset}, ("id", "subset", "prompt", "answers"))
        seen[key] += 1
        key += f"-{seen[key]}" * (seen[key] > 1)  # the same row twice is two questions
        pairs = list(combinations(_order_answers(question, key), 2))
        for a, b in pairs:
            lead = question.right[a] - question.right[b]
            row = {"id": key if len(pairs) == 1 else f"{key}/{a}-{b}", "prompt": question.prompt}
            row |= {"response_a": question.responses[a], "response_b": question.responses[b]}
            row |= {"label": [(1 + lead) / 2, (1 - lead) / 2], "question": key, "row_id": str(question.id)}
            row |= {"right_a": float(question.right[a]), "right_b": float(question.right[b])}
            row |= {"subset": question.subset, "tags": list(question.tags), "group": question.group}
            row |= {} if question.language is None else {"language": question.language}
            rows.append(row | dict(question.others))
    return {name: [row[name] for row in rows] for name in rows[0]}


def _order_answers(question: Question, key: str) -> list[int]:
    """The answers' numbers in the order in which they are shown."""
    numbers = list(range(len(question.responses)))
    if question.has_order:
        return numbers
    return sorted(numbers, key=lambda number: hashlib.sha256(f"{key}:{number}".encode()).digest())
