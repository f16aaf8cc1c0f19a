"""Publishes members, judges and bases: what to upload, in which order, and whether the Hub will take it.

It must not know which flags were typed, beyond naming them in errors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import indent

from accelerate import PartialState
from transformers import TrainingArguments

from modeling.judging.judge import read_calibration
from modeling.judging.loading import find_judge, name_member
from modeling.judging.member import ADAPTER_FILES, JUDGE_FILE, fingerprint_member, is_merged, read_json, read_member
from modeling.network.base import BaseFiles, fingerprint_base
from modeling.publishing.staging import (
    RepositoryContents,
    find_published_base_files,
    find_published_files,
    locate_base,
    stage_base,
    stage_contents,
)
from modeling.runtime.choices import DEFAULT_READINGS
from modeling.runtime.distributed import call_on_main
from modeling.runtime.hub import PushResult, check_login, check_repository, check_repository_name, push_folder
from modeling.runtime.logs import build_logger
from modeling.runtime.packages import WEIGHTS
from modeling.runtime.paths import check_local_folder
from modeling.runtime.text_tables import format_table

logger = build_logger(__name__)

NOT_YET = "0" * 40  # placeholder for the commit of a base that is not pushed yet


@dataclass(frozen=True)
class Destination:
    """Where to publish a member or judge.

    Attributes:
        repo: Hub id of its repository.
        base_repo: Hub id for a base that is only in a local folder.
        private: Whether new repositories are private.
        revision: Branch of `repo`; main if None.
        message: Commit message in `repo`; has a default.
    """

    repo: str
    base_repo: str | None = None
    private: bool = True
    revision: str | None = None
    message: str | None = None

    def __post_init__(self):
        check_repository_name("--repo", self.repo)
        if self.base_repo:
            check_repository_name("--base_repo", self.base_repo)
        if self.repo == self.base_repo:
            raise ValueError(f"--repo and --base_repo: expected two repositories; found {self.repo} twice.")


def plan_push(training: TrainingArguments, orientation: str, base: BaseFiles) -> str | None:
    """Returns the repository to publish a member in, checked before hours of training; None without --push_to_hub."""
    if not training.push_to_hub:
        return None
    if not training.hub_model_id:
        raise ValueError("--push_to_hub: expected a repository; found none. Pass --hub_model_id USER/NAME.")
    training.push_to_hub = False  # the Trainer itself would upload checkpoints with optimizer states
    repo = training.hub_model_id.replace("{orientation}", orientation)
    # Left out, --hub_private_repo is None: private, unlike the Trainer's own default.
    call_on_main(check_publishable, repo, base, training.hub_private_repo is not False)
    return repo


# --- publishing -------------------------------------------------------------------------------------------------------


def publish_member(folder: Path, repo: str, private: bool = True) -> PushResult:
    """Uploads a freshly trained member whose base is on the Hub. Errors as for `publish`."""
    with suggest_upload_command(f"--member {folder} --repo {repo}"):
        return publish(RepositoryContents({"": folder}), Destination(repo, private=private))[-1]


@contextmanager
def suggest_upload_command(flags: str) -> Iterator[None]:
    """Wraps an upload after long work: if the Hub fails, the error gives the command that only uploads."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{error} All files were written. Upload them with `scripts/publish.py {flags}`.") from error


def publish(contents: RepositoryContents, destination: Destination) -> list[PushResult]:
    """Uploads a member or judge, after its base if that is only in a local folder.

    Returns:
        The base, if it had to be uploaded, and then the member or judge.

    Raises:
        ValueError: If files of a member or its base are missing, do not match, or must not be published.
        OSError: If the Hub refuses or does not answer.
    """
    base = find_local_base(contents, destination)
    with stage_contents(contents, destination.repo, (destination.base_repo, NOT_YET)):
        pass  # staging checks everything before anything is sent; the real stage needs the base's commit
    options = {"find_own": partial(find_published_files, destination.repo), "private": destination.private}
    check_login(destination.repo)
    check_repository(destination.repo, **options)
    # The base goes first: the members' adapter_config.json names its commit.
    pushed = [publish_base(base, destination.base_repo, destination.private)] if base else []
    commit = pushed[0].commit if pushed else NOT_YET
    with stage_contents(contents, destination.repo, (destination.base_repo, commit)) as stage:
        pushed.append(
            push_folder(
                stage,
                destination.repo,
                **options,
                branch=destination.revision,
                message=destination.message or f"Bothways {contents.kind}",
            )
        )
    return pushed


def publish_base(folder: Path, repo: str, private: bool = True) -> PushResult:
    """Uploads a base that quantize.py wrote: config, weights and tokenizer. Errors as for `publish`."""
    with stage_base(folder, repo) as stage:
        check_base_repository(repo, private)
        find_own = partial(find_published_base_files, repo)
        return push_folder(stage, repo, find_own=find_own, private=private, message="Bothways base")


def check_base_repository(repo: str, private: bool = True) -> None:
    """Checks, before a base is quantised, that it can be published. Errors as for `publish`."""
    check_login(repo)
    check_repository(repo, find_own=partial(find_published_base_files, repo), private=private)


def check_publishable(repo: str, base: BaseFiles, private: bool = True) -> None:
    """Checks, before training, that the member can be published.

    Raises:
        ValueError: If the base is a local folder, or the repository belongs to another model.
        PermissionError: If no login may write there.
    """
    check_repository_name("--hub_model_id", repo)
    if base.repo is None and base.package is None:
        raise ValueError(
            f"--push_to_hub with --base {base.folder.name}: expected a base on the Hub, where others can download "
            "it; found a local folder. Push it with `scripts/publish.py --base DIR --repo USER/BASE` and pass "
            "--base USER/BASE, or publish the member later with `scripts/publish.py --base_repo USER/BASE`."
        )
    check_login(repo)
    check_repository(repo, find_own=partial(find_published_files, repo), private=private)


def describe_publication(contents: RepositoryContents, destination: Destination) -> str:
    """Returns what `publish` would upload: repositories with the names and sizes of their files. Needs no network."""
    base = find_local_base(contents, destination)
    branch = f"@{destination.revision}" if destination.revision else ""
    parts = []
    if base:
        parts.append(describe_base(base, destination.base_repo, destination.private))
    with stage_contents(contents, destination.repo, (destination.base_repo, NOT_YET)) as stage:
        parts.append(_list_files(f"{destination.repo}{branch}", destination.private, stage))
    return "\n".join(parts)


def describe_base(folder: Path, repo: str, private: bool = True) -> str:
    """Returns what `publish_base` would upload. Needs no network."""
    with stage_base(folder, repo) as stage:
        return _list_files(repo, private, stage)


def describe_push(pushed: PushResult) -> str:
    """Returns the URL of an upload, and whether it changed anything."""
    return f"{'Published' if pushed.changed else 'Nothing has changed'}: {pushed.url}"


def _list_files(repo: str, private: bool, stage: Path) -> str:
    """Lists a repository's files and their sizes."""
    sizes = {path.relative_to(stage).as_posix(): path.stat().st_size for path in stage.rglob("*") if path.is_file()}
    title = f"{repo} ({'private' if private else 'public'}), {len(sizes)} files, {sum(sizes.values()):,} bytes:"
    table = format_table([("file", "bytes"), *((name, f"{size:,}") for name, size in sorted(sizes.items()))])
    return f"{title}\n{indent(table, '  ')}"


# --- what to publish --------------------------------------------------------------------------------------------------


def collect_member(folder: Path) -> RepositoryContents:
    """Returns the contents of a repository for one member."""
    check_local_folder(folder, "--member", "a member")
    return RepositoryContents({"": folder})


def collect_judge(folders: Sequence[Path], readings: str | None = None) -> RepositoryContents:
    """Returns the contents of a repository for a judge.

    Args:
        folders: One judge folder, or members; members are named by orientation if all orientations differ.
        readings: "own" or "both"; None takes what the judge folder says, or "both" for members.
    """
    for folder in folders:
        check_local_folder(folder, "--judge", "a member or judge")
    if len(folders) == 1 and (folders[0] / JUDGE_FILE).is_file():
        members, stored = find_judge([str(folders[0])])
        contents = RepositoryContents(dict(members), readings or stored.readings, folders[0])
        if stored.calibration and contents.readings != stored.readings:
            PartialState()  # accelerate's logger needs it
            logger.warning(
                f"--readings {readings}: the calibration is for --readings {stored.readings} and is left out"
            )
        elif stored.calibration:
            # Only for its check: raises if it was fitted with other members.
            read_calibration(stored, {name: fingerprint_member(read_member(folder)) for name, folder in members})
            contents = replace(contents, calibration=stored.calibration)
        return contents
    orientations = [read_member(folder).orientation for folder in folders]
    names: list[str] = []  # name_member appends a number to a name that is taken
    for folder, orientation in zip(folders, orientations, strict=True):
        names.append(name_member(orientation if len(set(orientations)) == len(folders) else str(folder), names))
    return RepositoryContents(dict(zip(names, folders, strict=True)), readings or DEFAULT_READINGS)


def find_local_base(contents: RepositoryContents, destination: Destination) -> Path | None:
    """Returns the local folder of the members' base, checked by fingerprint; None if the base is on the Hub.

    Raises:
        FileNotFoundError: If a base is neither in a local folder nor on the Hub.
        ValueError: If a member is incomplete, its base differs from the one it was trained on, the members have
            several local bases, or there is no repository to push the base to.
    """
    found: dict[Path, Path] = {}  # base folder: one of its members
    for folder in contents.members.values():
        facts, local = read_member(folder), locate_base(folder)
        config = {} if is_merged(folder) else read_json(folder / ADAPTER_FILES[0], "Member")
        name = config.get("base_model_name_or_path")
        if config and not local and not config.get("revision") and name not in WEIGHTS:
            raise FileNotFoundError(f"Member {folder}: expected its base in {name}; found none. Copy the base there.")
        if local and destination.base_repo is None:
            raise ValueError(
                f"Member {folder}: expected a base on the Hub, where others can download it; found the local "
                f"folder {name}. Pass --base_repo USER/NAME to push it there first."
            )
        if local and (fingerprint := fingerprint_base(BaseFiles(local))) != facts.base_fingerprint:
            raise ValueError(
                f"Member {folder}: expected the base it was trained on ({facts.base_fingerprint}); found another in "
                f"{name} ({fingerprint}). Restore the original."
            )
        if local:
            found[local] = folder
    if len(found) > 1:
        raise ValueError(
            f"--base_repo: expected members of one base; found {len(found)} bases, those of "
            f"{', '.join(map(str, found.values()))}. Publish the members one by one, each with its own --base_repo."
        )
    return next(iter(found), None)
