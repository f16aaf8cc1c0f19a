"""Stages a member, judge or base in a temporary folder, exactly as the Hub will show it, and checks it for secrets.

It must not know how files are uploaded.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
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
    MemberFacts,
    is_merged,
    read_json,
    write_judge,
)
from modeling.judging.provenance import check_provenance
from modeling.publishing.cards import (
    CARD_FILE,
    EVALUATION_FILE,
    FIGURES,
    build_base_card,
    build_judge_card,
    build_member_card,
)
from modeling.runtime.files import write_json
from modeling.runtime.packages import NOTICES

REPORT_FILE = "report.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
)
FACTS_FILES = (MEMBER_FILE, CANARIES_FILE, EVALUATION_FILE, CARD_FILE)
MODEL_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
FIGURE = re.compile(r"figures/[\w-]+\.png")

# At least two parts, and not the end of a word, URL or HTML tag.
ABSOLUTE_PATH = re.compile(r"(?<![\w./:<>()\[\]{}~*+?\\-])(?:(?:~|/[\w.@+-]+)/[\w.@+-]|[A-Za-z]:\\\w|file:/)[^\s'\"]*")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
TEXT_ENDINGS = (".json", ".jinja", ".md", ".txt")
# JSON fields of tokenizers and canary battles whose text may contain anything, paths included.
FREE_TEXTS = ("battles", "vocab", "merges", "chat_template")


@dataclass(frozen=True)
class RepositoryContents:
    """The planned contents of a repository: a member at its root, or a judge with its members in sub-folders.

    Attributes:
        members: Local folder of each member by its sub-folder, "" for the root.
        readings: "own" or "both" for a judge; None for a member.
        whole: A judge's folder, with evaluation and figures of all members together.
        report: A folder that evaluate.py wrote; it replaces the evaluation of the member or judge.
        calibration: A judge's, as in `JudgeFacts`.
        licence: The one that the publisher chose, by the Hub's name.
    """

    members: dict[str, Path]
    readings: str | None = None
    whole: Path | None = None
    report: Path | None = None
    calibration: dict | None = None
    licence: str | None = None

    @property
    def kind(self) -> str:
        """Either "member" or "judge"."""
        return "member" if self.readings is None else "judge"


# --- which files are ours ---------------------------------------------------------------------------------------------


def is_base_file(name: str) -> bool:
    """Whether this is the name of a base's file."""
    return name in (MERGED_FILE, *TOKENIZER_FILES, *NOTICES) or bool(MODEL_WEIGHTS.fullmatch(name))


def is_member_file(name: str, merged: bool) -> bool:
    """Whether this is the name of a file of a member, with an adapter or with merged weights."""
    weights = is_base_file(name) if merged else name in ADAPTER_FILES
    return weights or name in (*FACTS_FILES, *TOKENIZER_FILES, *NOTICES) or bool(FIGURE.fullmatch(name))


def find_published_files(repo: str, names: set[str]) -> set[str]:
    """Returns the names in a repository that an earlier upload of a member or judge wrote.

    Raises:
        ValueError: If the repository belongs to another model.
    """
    figures = {f"figures/{name}.png" for name in FIGURES}  # other pictures in that folder may be the user's own
    members = {name.removesuffix(MEMBER_FILE) for name in names if re.fullmatch(rf"[^/]+/{MEMBER_FILE}", name)}

    def is_ours(name: str) -> bool:
        """Whether an upload writes this name, in a member's folder or at the root."""
        known = any(is_member_file(name, merged) for merged in (True, False)) or name == JUDGE_FILE
        # A notice may be the user's own; ours is replaced by its name, and does no harm if it stays.
        return name in figures or (known and not FIGURE.fullmatch(name) and name not in NOTICES)

    ours = {name for name in names if any(is_ours(name.removeprefix(folder)) for folder in ("", *members))}
    # A new repository may have a README.md already; any other of these files without member.json is another model's.
    if (others := ours - {CARD_FILE}) and not names & {MEMBER_FILE, JUDGE_FILE}:
        raise ValueError(
            f"Publishing to {repo}: expected a new repository, or one with {MEMBER_FILE} or {JUDGE_FILE} to replace; "
            f"found another model's files ({', '.join(sorted(others)[:3])}). Give another name."
        )
    return ours


def find_published_base_files(repo: str, names: set[str]) -> set[str]:
    """Returns the names in a repository that an earlier upload of a base wrote.

    Raises:
        ValueError: If the repository belongs to a member or judge.
    """
    if found := names & {MEMBER_FILE, JUDGE_FILE}:
        raise ValueError(
            f"Publishing to {repo}: expected a new repository, or one of a base; found {min(found)}. Give another name."
        )
    return {name for name in names if is_base_file(name) and name not in NOTICES}


# --- staging ----------------------------------------------------------------------------------------------------------


@contextmanager
def stage_base(folder: Path, repo: str) -> Iterator[Path]:
    """Yields a temporary folder with a base's own files and a card, checked. Other files are left out."""
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and is_base_file(path.name)]
    if MERGED_FILE not in names or not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"Base {folder}: expected {MERGED_FILE} and safetensors; found {', '.join(names) or 'neither'}. Pass the "
            "folder that quantize.py wrote."
        )
    with tempfile.TemporaryDirectory(prefix="bothways-") as temporary:
        _copy(folder, Path(temporary), names)
        (Path(temporary) / CARD_FILE).write_text(build_base_card(folder, repo), encoding="utf-8")
        check_contents(Path(temporary), [folder])
        yield Path(temporary)


@contextmanager
def stage_contents(contents: RepositoryContents, repo: str, base: tuple[str, str]) -> Iterator[Path]:
    """Yields a temporary folder with all files of a repository, cards included, checked.

    Args:
        contents: What the repository will hold.
        repo: The repository's id, for the cards.
        base: Hub id and commit to record in place of a local base.

    Raises:
        ValueError: If a file does not belong to a member, or must not be published.
    """
    with tempfile.TemporaryDirectory(prefix="bothways-") as temporary:
        stage = Path(temporary)
        for name, folder in contents.members.items():
            _stage_member(folder, stage / name, base)
            if contents.kind == "member":
                _stage_report(contents, stage)
            card = build_member_card(stage / name, repo if contents.kind == "member" else None, contents.licence)
            (stage / name / CARD_FILE).write_text(card, encoding="utf-8")
        if contents.kind == "judge":
            write_judge(stage, JudgeFacts(list(contents.members), contents.readings, contents.calibration))
            if contents.whole:
                _check_own_evaluation(contents)
                paths = [contents.whole / EVALUATION_FILE, *sorted((contents.whole / "figures").glob("*.png"))]
                names = [path.relative_to(contents.whole).as_posix() for path in paths if path.is_file()]
                _copy(contents.whole, stage, names)
            _stage_report(contents, stage)
            (stage / CARD_FILE).write_text(build_judge_card(stage, repo, contents.licence), encoding="utf-8")
        check_contents(stage, contents.members.values())
        yield stage


def _stage_member(folder: Path, stage: Path, base: tuple[str, str]) -> None:
    """Stages a member's files, with the base on the Hub in place of a local one."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    merged = is_merged(folder)
    # Unknown files are refused, not skipped: the folder may be a checkpoint, or hold something the user counts on.
    if others := [name for name in names if not is_member_file(name, merged)]:
        raise ValueError(
            f"Member {folder}: expected only a member's own files; found {', '.join(others[:5])}"
            f"{f' and {len(others) - 5} more' if len(others) > 5 else ''}. Move them away. Nothing was uploaded."
        )
    _copy(folder, stage, [name for name in names if name != CARD_FILE])  # the card is built anew, with the Hub id
    if locate_base(folder):
        config = read_json(stage / ADAPTER_FILES[0], "Member")
        config["base_model_name_or_path"], config["revision"] = base
        write_json(stage / ADAPTER_FILES[0], config)


def _stage_report(contents: RepositoryContents, stage: Path) -> None:
    """Replaces the staged evaluation by the one that evaluate.py wrote, if there is one."""
    report = contents.report
    if report is None:
        return
    if not (report / REPORT_FILE).is_file():
        raise ValueError(
            f"--report {report}: expected a folder with {REPORT_FILE}; found none. Pass evaluate.py's --output_dir."
        )
    _check_report(f"--report {report}", read_json(report / REPORT_FILE, "Report"), contents)
    shutil.rmtree(stage / "figures", ignore_errors=True)
    _copy(report, stage, [f"figures/{name}.png" for name in FIGURES if (report / f"figures/{name}.png").is_file()])
    shutil.copyfile(report / REPORT_FILE, stage / EVALUATION_FILE)


def _check_own_evaluation(contents: RepositoryContents) -> None:
    """Raises a ValueError if the evaluation in a judge's folder is about what the judge no longer is."""
    path = contents.whole / EVALUATION_FILE
    if contents.report is None and path.is_file() and "judge" in (report := read_json(path, "Judge")):
        _check_report(f"Judge {contents.whole}, {path.name}", report, contents)


def _check_report(where: str, report: Mapping, contents: RepositoryContents) -> None:
    """Raises a ValueError if a report is about another judge than the one in the contents."""
    members = {
        name or folder.name: MemberFacts(**read_json(folder / MEMBER_FILE, "Member"))
        for name, folder in contents.members.items()
    }
    calibration = {name: value for name, value in (contents.calibration or {}).items() if name != "members"} or None
    readings = contents.readings or JudgeFacts(list(members)).readings
    check_provenance(where, report.get("judge"), members, readings, calibration)


def locate_base(folder: Path) -> Path | None:
    """Returns the local folder that a member's adapter names as its base, or None for a base on the Hub or merged."""
    if is_merged(folder):
        return None
    name = read_json(folder / ADAPTER_FILES[0], "Member")["base_model_name_or_path"]
    # A relative name counts from the member's folder. A Hub id is no folder there, and so gives None.
    local = Path(os.path.normpath(folder.resolve() / name))
    return local if local.is_dir() else None


def _copy(folder: Path, stage: Path, names: list[str]) -> None:
    """Copies small files and links the weights, which may be gigabytes."""
    for name in names:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            (stage / name).symlink_to((folder / name).resolve())
        else:
            shutil.copyfile(folder / name, stage / name)


# --- what must not be published ---------------------------------------------------------------------------------------


def check_contents(stage: Path, sources: Iterable[Path]) -> None:
    """Checks that no staged file contains a token or an absolute path.

    Args:
        stage: The staged folder.
        sources: The folders that the files came from; their own paths must not appear either.

    Raises:
        ValueError: If a file contains one, or is damaged.
    """
    here = [str(source.resolve()) for source in sources]
    for path in sorted(path for path in stage.rglob("*") if path.is_file()):
        name = path.relative_to(stage).as_posix()
        whole, strings = _read_texts(name, path)
        if any(TOKEN.search(text) for text in whole):
            raise ValueError(
                f"{name}: expected no secret; found what looks like a Hub token. Remove it, and revoke it on the "
                "Hub. Nothing was uploaded."
            )
        # A path with spaces escapes the pattern, but the folders that we know can be searched for as they are.
        found = [folder for folder in here for text in whole if folder in text]
        found += [match[0] for text in strings if (match := ABSOLUTE_PATH.search(text))]
        if found:
            raise ValueError(
                f"{name}: expected no absolute path; found {found[0]!r}, which does not exist on other machines. "
                "Make it relative or remove it. Nothing was uploaded."
            )


def _read_texts(name: str, path: Path) -> tuple[list[str], list[str]]:
    """Returns all texts of a file, and those of them in which an absolute path would be a mistake."""
    try:
        # Not read as text: weights hold texts only in their metadata.
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = list((file.metadata() or {}).values())
            return metadata, metadata
        if path.suffix not in TEXT_ENDINGS:
            return [], []
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return [text], list(_list_strings(json.loads(text)))
        # Vocabularies and chat templates (.txt, .jinja) may contain anything that looks like a path.
        return [text], [text] if path.suffix == ".md" else []
    except (SafetensorError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{name}: expected an intact {path.suffix} file; found {error}. Save it again.") from error


def _list_strings(value: object) -> Iterator[str]:
    """Yields all texts in a JSON value, keys included, except in the fields of FREE_TEXTS."""
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
