"""Folders to and from the Hugging Face Hub, and what to say when it refuses. It must not know what the files are.

The token is huggingface_hub's own: `hf auth login` or HF_TOKEN. It is never taken from a flag, written or logged.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError  # what huggingface_hub lets through where a connection fails
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
REPEAT = "Repeat the command: what is there is kept."
DEFAULT_BRANCH = "main"


@dataclass(frozen=True)
class Pushed:
    """Where a folder now is: repository, the commit that holds it, and whether that commit had to be made."""

    repo: str
    commit: str
    changed: bool

    @property
    def url(self) -> str:
        """Of the page that shows this commit's files."""
        return f"{constants.ENDPOINT}/{self.repo}/tree/{self.commit}"


# --- down -------------------------------------------------------------------------------------------------------------


def download_repository(name: str, role: str, patterns: Sequence[str]) -> tuple[Path, str, str]:
    """Folder, id and commit of a Hub repository given as id or id@revision; from the cache what is there already.

    Args:
        role: What it should be, for the error: "Judge", "Base".
        patterns: Of the names of the files to bring.

    Raises:
        FileNotFoundError: If it is neither on the Hub nor in the cache, or its revision is not.
        PermissionError: If the Hub does not know the token, or the repository is gated.
        ConnectionError: If the Hub does not answer.
    """
    repo, _, revision = name.partition("@")
    where = f"{role} {name}"
    check_hub_name(name, role)
    with explain_failures(where, f"a folder here or a Hub repository; found neither a folder nor {repo}", revision):
        folder = snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns))
    return Path(folder), repo, Path(folder).name


# --- up ---------------------------------------------------------------------------------------------------------------


def check_repository_name(flag: str, repo: str) -> None:
    """Raises a ValueError if no repository of a user or organisation can be called so."""
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("there is no user or organisation in it")
    except HFValidationError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{flag} {repo}: expected USER/NAME, as on the Hub; found another form ({reason}).") from error


def check_login(repo: str) -> None:
    """Makes sure, before long work, that the login may write to a repository of this name.

    What a fine-grained token may do shows only when it is used.

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
    spaces = [account["name"], *(organisation["name"] for organisation in account.get("orgs", ()))]
    if role == "write" and repo.partition("/")[0] not in spaces:
        raise PermissionError(
            f"{where}: expected a name that begins with {' or '.join(spaces)}, as the login is {account['name']}'s; "
            f"found {repo.partition('/')[0]}. Give another name, or log in as somebody else."
        )


def check_repository(repo: str, *, find_own: Callable[[set[str]], set[str]], private: bool = True) -> None:
    """Makes sure, before long work, that `push_folder` would replace what is in a repository; there may be none yet.

    Args and errors as for `push_folder`.
    """
    try:
        with explain_failures(f"Publishing to {repo}", "the repository"):
            there = HfApi().model_info(repo)
    except FileNotFoundError:
        return
    _check_there(there, repo, find_own, private)


def _check_there(there: ModelInfo, repo: str, find_own: Callable[[set[str]], set[str]], private: bool) -> set[str]:
    """The names in a repository that an earlier push wrote; a ValueError if it must not be pushed to."""
    if private != bool(there.private):
        asked, found = ("private", "public") if private else ("public", "private")
        raise ValueError(
            f"Publishing to {repo}: expected a {asked} repository, as --private is {str(private).lower()}; found a "
            f"{found} one. Pass --private {str(not private).lower()}, or make it {asked} at "
            f"{constants.ENDPOINT}/{repo}/settings."
        )
    return find_own({file.rfilename for file in there.siblings})


def push_folder(
    folder: Path,
    repo: str,
    *,
    find_own: Callable[[set[str]], set[str]],
    private: bool = True,
    branch: str | None = None,
    message: str,
) -> Pushed:
    """Makes a repository hold a folder's files, in one commit after all large files are there: never half of them.

    An interrupted call can be repeated: what was uploaded is not sent again, and nothing is committed where nothing
    has changed. Not huggingface_hub's upload_folder, which commits a larger folder in parts.

    Args:
        folder: Its files, at any depth, are uploaded under their relative names.
        find_own: Given the names in the repository, those that an earlier push of this kind wrote: what the folder
            has no more of them is deleted. All others stay. It may raise a ValueError.
        private: Whether the repository has to be private or public. It is created when needed.
        branch: Created when needed; the default branch if None.
        message: Of the commit.

    Raises:
        ValueError: If the repository is public but should be private, or the other way round.
        OSError: If the Hub refuses or does not answer; see `explain_failures`.
    """
    api = HfApi()
    before = _open_repository(api, repo, private, branch)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    leftovers = _check_there(before, repo, find_own, private) - paths.keys()
    additions = [CommitOperationAdd(name, path) for name, path in paths.items()]
    with explain_failures(f"Publishing to {repo}", "the repository"):
        commit = api.create_commit(
            repo,
            [*additions, *(CommitOperationDelete(name, is_folder=False) for name in sorted(leftovers))],
            commit_message=message,
            revision=branch,
            parent_commit=before.sha,  # so that nothing is lost that somebody else commits meanwhile
        ).oid
        _check_commit(api, repo, commit, additions)
    return Pushed(repo, commit, changed=commit != before.sha)


def _open_repository(api: HfApi, repo: str, private: bool, branch: str | None) -> ModelInfo:
    """What is in a repository's branch, both made when needed."""
    with explain_failures(f"Publishing to {repo}", "the repository"):
        api.create_repo(repo, private=private, exist_ok=True)
        if branch and branch != DEFAULT_BRANCH:
            api.create_branch(repo, branch=branch, exist_ok=True)
        return api.model_info(repo, revision=branch)


def _check_commit(api: HfApi, repo: str, commit: str, additions: Sequence[CommitOperationAdd]) -> None:
    """Raises an OSError if a commit lacks a file or has another: a .gitignore there leaves files out without a word."""
    entries = api.list_repo_tree(repo, recursive=True, revision=commit)
    found = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    for addition in additions:
        entry, content = found.get(addition.path_in_repo), Path(addition.path_or_fileobj)
        if entry and entry.lfs:
            same = entry.lfs.sha256 == addition.upload_info.sha256.hex()
        else:
            data = content.read_bytes() if entry else b""
            same = bool(entry) and entry.blob_id == hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()
        if not same:
            raise OSError(
                f"Publishing to {repo}: expected {addition.path_in_repo} as it is here in commit {commit[:8]}; found "
                f"{'another' if entry else 'none'}. Look for a .gitignore in the repository, and publish again."
            )


# --- refusals ---------------------------------------------------------------------------------------------------------


@contextmanager
def explain_failures(where: str, expected: str, revision: str = "") -> Iterator[None]:
    """Turns what huggingface_hub raises into one line: where, expected, found, and the way out.

    Args:
        where: What was being done, to what.
        expected: What was wanted, for an error that says it was not found.
        revision: The one asked for.

    Raises:
        FileNotFoundError: If there is no such repository or revision, or the Hub is off and the cache has none.
        PermissionError: If there is no login, a wrong one, or one that may not do this.
        ConnectionError: If the Hub does not answer, or answers that it cannot.
    """
    try:
        yield
    except (LocalTokenNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, RuntimeError) as error:
        # A failed upload and an unreachable Hub come wrapped into errors of other kinds.
        wrapped = isinstance(error, LocalEntryNotFoundError | RuntimeError)
        kind, text = _describe_failure(error.__cause__ if wrapped and error.__cause__ else error, expected, revision)
        raise kind(f"{where}: expected {text}") from error


def _describe_failure(cause: BaseException, expected: str, revision: str) -> tuple[type[OSError], str]:
    """Which error to raise for a failure, and its "expected; found. Way out."."""
    absent = expected if "; found" in expected else f"{expected}; found none"
    match cause:
        case LocalTokenNotFoundError():
            return PermissionError, f"a login; found none. {LOGIN}."
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return FileNotFoundError, (
                f"{absent}, as HF_HUB_OFFLINE keeps to the cache. Unset it to ask the Hub. If it is the demo's, run "
                "`make demo` first."
            )
        case GatedRepoError():
            return PermissionError, (
                f"a login with access to this gated repository; found none. Accept its terms on its page at "
                f"{constants.ENDPOINT}, then: {LOGIN}."
            )
        case RevisionNotFoundError():
            return FileNotFoundError, (
                f"the revision {revision or DEFAULT_BRANCH!r}; found none of that name in the repository. Check what "
                "stands after @: a branch, a tag or a commit."
            )
        case RepositoryNotFoundError():
            return FileNotFoundError, f"{absent} on the Hub. Check the name. If it is private: {LOGIN}."
        case HfHubHTTPError():
            return _describe_answer(cause)
        case HTTPError():
            found = f"none ({type(cause).__name__}). Check the connection and HF_ENDPOINT. {REPEAT}"
            return ConnectionError, f"an answer from {constants.ENDPOINT}; found {found}"
    said = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
    return ConnectionError, f"all files to go over; found {said}. {REPEAT}"


def _describe_answer(error: HfHubHTTPError) -> tuple[type[OSError], str]:
    """The same of an answer that tells no more than its status."""
    match error.response.status_code:
        case 401:
            return PermissionError, f"a login that the Hub knows; found a token that it refuses. {LOGIN} anew."
        case 403:
            return PermissionError, f"a token that may do this; found one that may not (HTTP 403). {LOGIN} to another."
        case 409 | 412 as status:
            found = f"found a newer commit (HTTP {status})"
            return ConnectionError, f"the repository as it was a moment ago; {found}. {REPEAT}"
        case status:
            said = " ".join((error.server_message or "no reason given").split())[:200]
            return ConnectionError, f"an answer; found HTTP {status} ({said}). {REPEAT}"
