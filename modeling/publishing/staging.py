"""A member, judge or base as it will stand on the Hub: its own files, a base that others can fetch, a card, and nothing
that must not be published. It must not know how files get there.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from modeling.judging.member import (
    ADAPTER_FILES,
    CANARIES_FILE,
    JUDGE_FILE,
    MEMBER_FILE,
    MERGED_FILE,
    JudgeFacts,
    is_merged,
    read_json,
    write_judge,
)
from modeling.publishing.cards import EVALUATION_FILE, FIGURES, build_base_card, build_judge_card, build_member_card
from modeling.runtime.files import write_json

CARD_FILE, REPORT_FILE = "README.md", "report.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
)
FACTS_FILES = (MEMBER_FILE, CANARIES_FILE, EVALUATION_FILE, CARD_FILE)
MODEL_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
FIGURE = re.compile(r"figures/[\w-]+\.png")

# Two parts or more, and not the rest of a word, URL or tag.
ABSOLUTE_PATH = re.compile(r"(?<![\w./:<>()\[\]{}~*+?\\-])(?:(?:~|/[\w.@+-]+)/[\w.@+-]|[A-Za-z]:\\\w|file:/)[^\s'\"]*")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
TEXT_ENDINGS = (".json", ".jinja", ".md", ".txt")
# Of a tokenizer and of the probe battles, where anything may stand.
FREE_TEXTS = ("battles", "vocab", "merges", "chat_template")


@dataclass(frozen=True)
class Contents:
    """What a repository is to hold: a member at its root, or a judge's members in sub-folders.

    `members` are folders by sub-folder, "" for the root. `readings` ("own" or "both") and `whole`, a folder with an
    evaluation and figures of all members together, are a judge's. `report` is a folder that evaluate.py wrote, which
    takes the place of an evaluation that the member or judge has. `calibration` is a judge's, as in `JudgeFacts`.
    """

    members: dict[str, Path]
    readings: str | None = None
    whole: Path | None = None
    report: Path | None = None
    calibration: dict | None = None

    @property
    def kind(self) -> str:
        """Either "member" or "judge"."""
        return "member" if self.readings is None else "judge"


# --- which files are whose --------------------------------------------------------------------------------------------


def is_base_file(name: str) -> bool:
    """Whether a base has a file of this name."""
    return name in (MERGED_FILE, *TOKENIZER_FILES) or bool(MODEL_WEIGHTS.fullmatch(name))


def is_member_file(name: str, merged: bool) -> bool:
    """Whether a member folder, with an adapter or with merged weights, has a file of this name."""
    weights = is_base_file(name) if merged else name in ADAPTER_FILES
    return weights or name in (*FACTS_FILES, *TOKENIZER_FILES) or bool(FIGURE.fullmatch(name))


def find_published_files(repo: str, names: set[str]) -> set[str]:
    """Of the names in a repository, those that an earlier publication of a member or judge wrote.

    Raises:
        ValueError: If the repository is another model's.
    """
    figures = {f"figures/{name}.png" for name in FIGURES}  # others in that folder may be a person's own
    members = {name.removesuffix(MEMBER_FILE) for name in names if re.fullmatch(rf"[^/]+/{MEMBER_FILE}", name)}

    def is_ours(name: str) -> bool:
        """Whether a publication writes a file of this name, in a member's folder or at the root."""
        known = any(is_member_file(name, merged) for merged in (True, False)) or name == JUDGE_FILE
        return name in figures or (known and not FIGURE.fullmatch(name))

    ours = {name for name in names if any(is_ours(name.removeprefix(folder)) for folder in ("", *members))}
    if (others := ours - {CARD_FILE}) and not names & {MEMBER_FILE, JUDGE_FILE}:
        raise ValueError(
            f"Publishing to {repo}: expected a new repository, or one with {MEMBER_FILE} or {JUDGE_FILE} to replace; "
            f"found another model's files ({', '.join(sorted(others)[:3])}). Give another name."
        )
    return ours


def find_published_base_files(repo: str, names: set[str]) -> set[str]:
    """Of the names in a repository, those that an earlier publication of a base wrote.

    Raises:
        ValueError: If the repository is a member's or judge's.
    """
    if found := names & {MEMBER_FILE, JUDGE_FILE}:
        raise ValueError(
            f"Publishing to {repo}: expected a new repository, or one of a base; found {min(found)}. Give another name."
        )
    return {name for name in names if is_base_file(name)}


# --- staging ----------------------------------------------------------------------------------------------------------


@contextmanager
def stage_base(folder: Path, repo: str) -> Iterator[Path]:
    """A temporary folder with a base's files and a card for the repository, checked; others are left out."""
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and is_base_file(path.name)]
    if MERGED_FILE not in names or not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"Base {folder}: expected {MERGED_FILE} and safetensors; found {', '.join(names) or 'neither'}. Give what "
            "quantize.py wrote."
        )
    with tempfile.TemporaryDirectory(prefix="bothways-") as temporary:
        _bring(folder, Path(temporary), names)
        (Path(temporary) / CARD_FILE).write_text(build_base_card(folder, repo), encoding="utf-8")
        check_contents(Path(temporary), [folder])
        yield Path(temporary)


@contextmanager
def stage_contents(contents: Contents, repo: str, base: tuple[str, str]) -> Iterator[Path]:
    """A temporary folder with what a repository is to hold, cards included, checked.

    Args:
        repo: The repository's id, for the cards.
        base: Hub id and commit to name in the place of a base that is only here.

    Raises:
        ValueError: If a file does not belong to a member, or must not be published.
    """
    with tempfile.TemporaryDirectory(prefix="bothways-") as temporary:
        stage = Path(temporary)
        for name, folder in contents.members.items():
            _stage_member(folder, stage / name, base)
            if contents.kind == "member":
                _stage_report(contents, stage)
            card = build_member_card(stage / name, repo if contents.kind == "member" else None)
            (stage / name / CARD_FILE).write_text(card, encoding="utf-8")
        if contents.kind == "judge":
            write_judge(stage, JudgeFacts(list(contents.members), contents.readings, contents.calibration))
            if contents.whole:
                paths = [contents.whole / EVALUATION_FILE, *sorted((contents.whole / "figures").glob("*.png"))]
                names = [path.relative_to(contents.whole).as_posix() for path in paths if path.is_file()]
                _bring(contents.whole, stage, names)
            _stage_report(contents, stage)
            (stage / CARD_FILE).write_text(build_judge_card(stage, repo), encoding="utf-8")
        check_contents(stage, contents.members.values())
        yield stage


def _stage_member(folder: Path, stage: Path, base: tuple[str, str]) -> None:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    merged = is_merged(folder)
    if others := [name for name in names if not is_member_file(name, merged)]:
        raise ValueError(
            f"Member {folder}: expected its own files alone; found {', '.join(others[:5])}"
            f"{f' and {len(others) - 5} more' if len(others) > 5 else ''}. Move them away: nothing was uploaded."
        )
    _bring(folder, stage, [name for name in names if name != CARD_FILE])
    if locate_base(folder):
        config = read_json(stage / ADAPTER_FILES[0], "Member")
        config["base_model_name_or_path"], config["revision"] = base
        write_json(stage / ADAPTER_FILES[0], config)


def _stage_report(contents: Contents, stage: Path) -> None:
    """Puts what evaluate.py wrote in the place of the evaluation that is there."""
    report = contents.report
    if report is None:
        return
    if not (report / REPORT_FILE).is_file():
        raise ValueError(f"--report {report}: expected a folder with {REPORT_FILE}; found none. Give evaluate.py's.")
    if ("calibration" in read_json(report / REPORT_FILE, "Report")) != bool(contents.calibration):
        raise ValueError(
            f"--report {report}: expected figures of the {contents.kind} as it is published, "
            f"{'' if contents.calibration else 'not '}calibrated; found others. Name the judge's folder, which has its "
            "calibration, or evaluate again with --calibrated false."
        )
    shutil.rmtree(stage / "figures", ignore_errors=True)
    _bring(report, stage, [f"figures/{name}.png" for name in FIGURES if (report / f"figures/{name}.png").is_file()])
    shutil.copyfile(report / REPORT_FILE, stage / EVALUATION_FILE)


def locate_base(folder: Path) -> Path | None:
    """The folder here that a member's adapter names as its base; None if there is none, or the member is merged."""
    if is_merged(folder):
        return None
    name = read_json(folder / ADAPTER_FILES[0], "Member")["base_model_name_or_path"]
    local = Path(os.path.normpath(folder.resolve() / name))
    return local if local.is_dir() else None


def _bring(folder: Path, stage: Path, names: list[str]) -> None:
    """Copies files, and links those that may be gigabytes."""
    for name in names:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            (stage / name).symlink_to((folder / name).resolve())
        else:
            shutil.copyfile(folder / name, stage / name)


# --- what must not be published ---------------------------------------------------------------------------------------


def check_contents(stage: Path, sources: Iterable[Path]) -> None:
    """Raises a ValueError if a staged file holds a token or an absolute path, or is damaged (law 12).

    Args:
        sources: The folders that the files came from, whose own paths must stand nowhere.
    """
    here = [str(source.resolve()) for source in sources]
    for path in sorted(path for path in stage.rglob("*") if path.is_file()):
        name = path.relative_to(stage).as_posix()
        whole, strings = _read_texts(name, path)
        if any(TOKEN.search(text) for text in whole):
            raise ValueError(
                f"{name}: expected no secret; found what looks like a Hub token. Take it out, and make a new one: "
                "nothing was uploaded."
            )
        found = [folder for folder in here for text in whole if folder in text]
        found += [match[0] for text in strings if (match := ABSOLUTE_PATH.search(text))]
        if found:
            raise ValueError(
                f"{name}: expected no absolute path; found {found[0]!r}, which means nothing on another machine. Write "
                "it as relative, or take it out: nothing was uploaded."
            )


def _read_texts(name: str, path: Path) -> tuple[list[str], list[str]]:
    """All text of a file, and what of it was written by a person or program that knows paths."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = list((file.metadata() or {}).values())
            return metadata, metadata
        if path.suffix not in TEXT_ENDINGS:
            return [], []
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return [text], list(_list_strings(json.loads(text)))
        return [text], [text] if path.suffix == ".md" else []
    except (SafetensorError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{name}: expected a whole {path.suffix} file; found {error}. Save it again.") from error


def _list_strings(value: object) -> Iterator[str]:
    """All texts in a JSON value, names included, but for what may say anything."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in FREE_TEXTS:
                yield name
                yield from _list_strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _list_strings(inner)
    elif isinstance(value, str):
        yield value
