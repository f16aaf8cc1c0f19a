"""Downloads repositories from the Hugging Face Hub, uploads folders to it, and explains its refusals.

It must not know what the files are. The token is huggingface_hub's own, from `hf auth login` or HF_TOKEN. It is never
taken from a flag, written or logged.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError  # huggingface_hub does not wrap this error of a failed connection
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    RepoFile,
    constants,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from modeling.runtime.paths import check_hub_name

LOGIN = "Log in with `hf auth login`, or set HF_TOKEN"
REPEAT = "Repeat the command: finished files are not sent again."
DEFAULT_BRANCH = "main"


@dataclass(frozen=True)
class PushResult:
    """Where a folder now is on the Hub: its repository, its commit, and whether the push made that commit."""

    repo: str
    commit: str
    changed: bool

    @property
    def url(self) -> str:
        """Returns the address of the page with this commit's files."""
        return f"{constants.ENDPOINT}/{self.repo}/tree/{self.commit}"


# --- download ---------------------------------------------------------------------------------------------------------


def download_repository(name: str, role: str, patterns: Sequence[str]) -> tuple[Path, str, str]:
    """Downloads what is not yet in the cache of a Hub repository.

    Args:
        name: The repository's id, as id or id@revision.
        role: What the repository is for, in the error: "Judge", "Base".
        patterns: Patterns of the names of the files to download.

    Returns:
        The folder in the cache, the repository's id and the commit.

    Raises:
        FileNotFoundError: If the repository or its revision is neither on the Hub nor in the cache.
        PermissionError: If the Hub does not know the token, or the repository is gated.
        ConnectionError: If the Hub does not answer.
    """
    repo, _, revision = name.partition("@")
    where = f"{role} {name}"
    check_hub_name(name, role)
    with explain_failures(where, f"a folder here or a Hub repository; found neither a folder nor {repo}", revision):
        folder = snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns))
    return Path(folder), repo, Path(folder).name  # the cache names the folder of a snapshot by its commit


# --- upload -----------------------------------------------------------------------------------------------------------


def check_repository_name(flag: str, repo: str) -> None:
    """Raises a ValueError if a repository of a user or organisation cannot have this name."""
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:  # huggingface_hub also allows names without an owner
            raise HFValidationError("there is no user or organisation in it")
    except HFValidationError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{flag} {repo}: expected USER/NAME, as on the Hub; found another form ({reason}).") from error


def check_login(repo: str) -> None:
    """Checks, before long work, that the login may write to a repository of this name.

    The rights of a fine-grained token cannot be checked: they show only when it is used.

    Raises:
        PermissionError: If there is no login, the Hub does not know it, or it may not write there.
        ConnectionError: If the Hub does not answer.
    """
    where = f"Publishing to {repo}"
    with explain_failures(where, "the Hub"):
        account = HfApi().whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PermissionError(
            f"{where}: expected a token that may write; found one of {account['name']} that may only read. Make one "
            f"with write permission at {constants.ENDPOINT}/settings/tokens, then: {LOGIN}."
        )
    owner = repo.partition("/")[0]
    owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs", ()))]
    if role == "write" and owner not in owners:
        raise PermissionError(
            f"{where}: expected a repository of {' or '.join(owners)}, because the login is {account['name']}'s; found "
            f"{owner}. Give another name, or log in as another user."
        )


def check_repository(repo: str, *, find_own: Callable[[set[str]], set[str]], private: bool = True) -> None:
    """Checks, before long work, that `push_folder` can push to a repository, which need not exist yet.

    The arguments and errors are those of `push_folder`.
    """
    try:
        with explain_failures(f"Publishing to {repo}", "the repository"):
            existing = HfApi().model_info(repo)
    except FileNotFoundError:
        return
    _check_existing(existing, repo, find_own, private)


def _check_existing(existing: ModelInfo, repo: str, find_own: Callable[[set[str]], set[str]], private: bool) -> set:
    """Returns the names in a repository that an earlier push wrote; a ValueError if it must not be pushed to."""
    if private != bool(existing.private):
        expected, found = ("private", "public") if private else ("public", "private")
        raise ValueError(
            f"Publishing to {repo}: expected a {expected} repository, as --private is {str(private).lower()}; found a "
            f"{found} one. Pass --private {str(not private).lower()}, or make it {expected} at "
            f"{constants.ENDPOINT}/{repo}/settings."
        )
    return find_own({file.rfilename for file in existing.siblings})


def push_folder(
    folder: Path,
    repo: str,
    *,
    find_own: Callable[[set[str]], set[str]],
    private: bool = True,
    branch: str | None = None,
    message: str,
) -> PushResult:
    """Uploads a folder's files to a repository in one commit, so that it never has only some of them.

    An interrupted call can be repeated: finished files are not sent again, and nothing is committed if nothing changed.

    Args:
        folder: The folder. Its files, at any depth, are uploaded under their relative names.
        repo: The repository, created if needed.
        find_own: Takes the names in the repository and returns those that an earlier push of this kind wrote. Of these,
            files that the folder no longer has are deleted; all other files stay. It may raise a ValueError.
        private: Whether the repository must be private or public.
        branch: The branch, created if needed; None is the default branch.
        message: The commit's message.

    Raises:
        ValueError: If the repository is public but should be private, or the other way round.
        OSError: If the Hub refuses or does not answer; see `explain_failures`.
    """
    # Not huggingface_hub's upload_folder, which commits a large folder in several parts.
    api = HfApi()
    before = _open_repository(api, repo, private, branch)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    leftovers = _check_existing(before, repo, find_own, private) - paths.keys()
    additions = [CommitOperationAdd(name, path) for name, path in paths.items()]
    with explain_failures(f"Publishing to {repo}", "the repository"):
        commit = api.create_commit(
            repo,
            [*additions, *(CommitOperationDelete(name, is_folder=False) for name in sorted(leftovers))],
            commit_message=message,
            revision=branch,
            parent_commit=before.sha,  # the Hub refuses the commit if another one was made since
        ).oid
        _check_commit(api, repo, commit, additions)
    return PushResult(repo, commit, changed=commit != before.sha)


def _open_repository(api: HfApi, repo: str, private: bool, branch: str | None) -> ModelInfo:
    """Returns the state of a repository's branch, and creates both if needed."""
    with explain_failures(f"Publishing to {repo}", "the repository"):
        api.create_repo(repo, private=private, exist_ok=True)
        if branch and branch != DEFAULT_BRANCH:
            api.create_branch(repo, branch=branch, exist_ok=True)
        return api.model_info(repo, revision=branch)


def _check_commit(api: HfApi, repo: str, commit: str, additions: Sequence[CommitOperationAdd]) -> None:
    """Raises an OSError if a commit lacks a file or has a different one."""
    # A .gitignore in the repository makes the Hub leave files out of a commit without an error.
    entries = api.list_repo_tree(repo, recursive=True, revision=commit)
    found = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    for addition in additions:
        entry, content = found.get(addition.path_in_repo), Path(addition.path_or_fileobj)
        if entry and entry.lfs:
            is_same = entry.lfs.sha256 == addition.upload_info.sha256.hex()
        else:  # git's own hash of a file
            data = content.read_bytes() if entry else b""
            is_same = bool(entry) and entry.blob_id == hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()
        if not is_same:
            raise OSError(
                f"Publishing to {repo}: expected {addition.path_in_repo} as it is here in commit {commit[:8]}; found "
                f"{'another' if entry else 'none'}. Look for a .gitignore in the repository, and publish again."
            )


# --- refusals ---------------------------------------------------------------------------------------------------------


@contextmanager
def explain_failures(where: str, expected: str, revision: str = "") -> Iterator[None]:
    """Turns huggingface_hub's errors into one line: where, expected, found, and the way out.

    Args:
        where: The action and its object, as in "Publishing to owner/name".
        expected: What was needed, for the error that it was not found.
        revision: The requested revision.

    Raises:
        FileNotFoundError: If there is no such repository or revision, or the Hub is off and the cache has none.
        PermissionError: If there is no login, an unknown one, or one without the right.
        ConnectionError: If the Hub does not answer, or answers with another error.
    """
    try:
        yield
    except (LocalTokenNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, RuntimeError) as error:
        # huggingface_hub wraps a failed upload in a RuntimeError, and an unreachable Hub in a LocalEntryNotFoundError.
        wrapped = isinstance(error, LocalEntryNotFoundError | RuntimeError)
        kind, text = _describe_failure(error.__cause__ if wrapped and error.__cause__ else error, expected, revision)
        raise kind(f"{where}: expected {text}") from error


def _describe_failure(cause: BaseException, expected: str, revision: str) -> tuple[type[OSError], str]:
    """Returns the type of the error to raise, and its message from "expected" on."""
    absent = expected if "; found" in expected else f"{expected}; found none"
    match cause:  # in this order: most of these classes are subclasses of a later one
        case LocalTokenNotFoundError():
            return PermissionError, f"a login; found none. {LOGIN}."
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return FileNotFoundError, (
                f"{absent} in the cache, and HF_HUB_OFFLINE forbids asking the Hub. Unset it. If it is the demo's, run "
                "`make demo` first."
            )
        case GatedRepoError():
            return PermissionError, (
                "a login with access to this gated repository; found none. Accept its terms on its page at "
                f"{constants.ENDPOINT}, then: {LOGIN}."
            )
        case RevisionNotFoundError():
            return FileNotFoundError, (
                f"the revision {revision or DEFAULT_BRANCH!r}; found none of that name in the repository. Check the "
                "part after @: it must be a branch, a tag or a commit."
            )
        case RepositoryNotFoundError():
            return FileNotFoundError, f"{absent} on the Hub. Check the name. If it is private: {LOGIN}."
        case HfHubHTTPError():
            return _describe_answer(cause)
        case HTTPError():
            found = f"none ({type(cause).__name__}). Check the connection and HF_ENDPOINT. {REPEAT}"
            return ConnectionError, f"an answer from {constants.ENDPOINT}; found {found}"
    text = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
    return ConnectionError, f"a complete transfer; found {text}. {REPEAT}"


def _describe_answer(error: HfHubHTTPError) -> tuple[type[OSError], str]:
    """Returns the same for an answer of which only the HTTP status is known."""
    match error.response.status_code:
        case 401:
            return PermissionError, f"a login that the Hub knows; found a token that it refuses. {LOGIN} anew."
        case 403:
            return PermissionError, f"a token that may do this; found one that may not (HTTP 403). {LOGIN} to another."
        case 409 | 412 as status:
            found = f"found a newer commit (HTTP {status})"
            return ConnectionError, f"no other commit during this one; {found}. {REPEAT}"
        case status:
            reason = " ".join((error.server_message or "no reason given").split())[:200]
            return ConnectionError, f"an answer without an error; found HTTP {status} ({reason}). {REPEAT}"
