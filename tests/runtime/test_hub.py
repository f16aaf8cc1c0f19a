"""Laws of hub.py, against a stub of the Hub; see tests/hub_stub.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from modeling.runtime.hub import check_login, check_repository_name, download_repository, push_folder
from tests.helpers import REPOSITORY
from tests.hub_stub import LFS_BYTES, READ_TOKEN, USER, WRITE_TOKEN, HubStub

REPO = f"{USER}/thing"
SMALL, LARGE = b"{}\n", bytes(range(256)) * (LFS_BYTES // 256 + 1)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Returns a folder with a small file, a large one, a small one that goes through LFS, and one in a sub-folder."""
    (made := tmp_path / "folder" / "figures").mkdir(parents=True)
    for name, content in (("facts.json", SMALL), ("large.json", LARGE), ("w.safetensors", b"weights")):
        (made.parent / name).write_bytes(content)
    (made / "plot.png").write_bytes(b"\x89PNG")
    return made.parent


def push(folder: Path, repo: str = REPO, find_own: Callable = lambda names: set(), **options):
    return push_folder(folder, repo, find_own=find_own, message="A thing", **options)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- upload and download ----------------------------------------------------------------------------------------------


def test_what_was_pushed_comes_back(hub, folder):
    """In one commit and private. The server takes two of the four files through LFS."""
    pushed = push(folder)
    assert pushed.changed and hub.counts["commit"] == 1 and hub.counts["put"] == 2
    assert hub.repositories[REPO].private and hub.files(REPO) == read(folder)
    found, repo, commit = download_repository(REPO, "Judge", ["*"])
    assert (repo, commit) == (REPO, pushed.commit)
    assert {name: content for name, content in read(found).items() if name != ".gitattributes"} == read(folder)
    only = download_repository(f"{REPO}@{pushed.commit}", "Judge", ["*.json"])[0]
    assert only == found and pushed.url == f"{hub.url}/{REPO}/tree/{commit}"


def test_pushing_again_sends_only_what_changed(hub, folder):
    first, sent = push(folder), hub.counts["put"]
    again = push(folder)
    assert not again.changed and again.commit == first.commit
    assert hub.counts["commit"] == 1 and hub.counts["put"] == sent
    (folder / "w.safetensors").write_bytes(b"other")
    third = push(folder)
    assert third.changed and third.commit != first.commit
    assert hub.counts["commit"] == 2 and hub.counts["put"] == sent + 1 and hub.files(REPO) == read(folder)


def test_leftovers_of_an_earlier_push_are_deleted_in_the_same_commit_and_the_rest_stays(hub, folder):
    push(folder)
    hub.put(REPO, {"mine.png": b"a person's own"})
    (folder / "large.json").unlink()
    push(folder, find_own=lambda names: names - {"mine.png", ".gitattributes"})
    assert hub.counts["commit"] == 2 and hub.files(REPO) == read(folder) | {"mine.png": b"a person's own"}


def test_a_branch_is_created_and_the_main_one_left_alone(hub, folder):
    before = hub.put(REPO, {})
    push(folder, branch="try")
    assert hub.repositories[REPO].branches["main"] == before and hub.files(REPO, "try") == read(folder)
    assert not push(folder, branch="try").changed


def test_a_newer_commit_does_not_change_what_a_commit_holds(hub, folder):
    first = push(folder)
    hub.put(REPO, {"facts.json": b"new"})
    assert (download_repository(f"{REPO}@{first.commit}", "Judge", ["*"])[0] / "facts.json").read_bytes() == SMALL
    assert (download_repository(REPO, "Judge", ["*"])[0] / "facts.json").read_bytes() == b"new"


def test_what_is_in_the_cache_is_found_without_the_hub(hub, folder, monkeypatch):
    pushed = push(folder)
    download_repository(REPO, "Judge", ["*"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in (REPO, f"{REPO}@{pushed.commit}"):
        assert download_repository(name, "Judge", ["*"])[2] == pushed.commit


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_an_interrupted_upload_commits_nothing_and_continues_where_it_stopped(hub, folder):
    """First the second large file is refused, then the commit. In the end each file was sent once."""
    hub.failures["put"] = ["", "403"]
    with pytest.raises(PermissionError, match=r"expected a token that may do this; found one that may not \(HTTP 403"):
        push(folder)
    assert hub.files(REPO) == {} and hub.counts["commit"] == 0 and len(hub.objects) == 1
    hub.failures["commit"] = ["500"]
    with pytest.raises(
        ConnectionError, match=r"found HTTP 500 .*Repeat the command: finished files are not sent again"
    ):
        push(folder)
    assert hub.files(REPO) == {} and hub.counts["put"] == 3
    push(folder)
    assert hub.files(REPO) == read(folder) and hub.counts["put"] == 3


def test_a_cut_connection_is_tried_again(hub, folder):
    hub.failures["put"] = ["cut"]
    push(folder)
    assert hub.files(REPO) == read(folder) and hub.counts["put"] == 3


def start(hub: HubStub, home: Path, code: str, **options) -> subprocess.Popen:
    """Starts a Python process that runs code with hub.py imported."""
    code = f"from modeling.runtime.hub import *; from pathlib import Path\n{code}"
    environment = hub.environment(home, **options)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, text=True, stdout=-1, stderr=-1
    )


def test_a_killed_upload_leaves_nothing_and_can_be_repeated(hub, folder, tmp_path):
    hub.failures["put"] = ["", "hang"]
    code = f"push_folder(Path({str(folder)!r}), {REPO!r}, find_own=lambda names: set(), message='A thing')"
    process = start(hub, tmp_path / "other", code)
    assert hub.hanging.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert hub.files(REPO) == {} and hub.counts["commit"] == 0
    push(folder)
    assert hub.files(REPO) == read(folder) and hub.counts["commit"] == 1


def test_two_processes_can_download_into_one_cache_at_once(hub, folder, tmp_path):
    (folder / "w.safetensors").write_bytes(LARGE * 500)
    push(folder)
    code = f"print(download_repository({REPO!r}, 'Judge', ['*'])[0])"
    pair = [start(hub, tmp_path / "shared", code) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    first, second = (Path(out.strip()) for out, _ in said)
    assert first == second and read(first)["w.safetensors"] == LARGE * 500


def test_a_commit_made_by_someone_else_meanwhile_is_not_overwritten(hub, folder):
    def commit_meanwhile(names):
        hub.put(REPO, {"facts.json": b"theirs"})
        return set()

    with pytest.raises(ConnectionError, match="found a newer commit"):
        push(folder, find_own=commit_meanwhile)
    assert hub.files(REPO) == {"facts.json": b"theirs"}


def test_a_file_that_the_repository_ignores_is_reported(hub, folder):
    hub.put(REPO, {".gitignore": b"facts.json"})
    with pytest.raises(OSError, match=r"expected facts.json as it is here .* found none. Look for a .gitignore"):
        push(folder)


# --- refusals: one line, with the way out -----------------------------------------------------------------------------


@pytest.mark.parametrize("private", [True, False])
def test_a_public_repository_is_not_pushed_to_as_private_nor_the_reverse(hub, folder, private):
    hub.put(REPO, {}, private=not private)
    with pytest.raises(ValueError, match=f"Pass --private {str(not private).lower()}, or make it"):
        push(folder, private=private)
    assert hub.counts["commit"] == 0


@pytest.mark.parametrize(
    ("token", "repo", "expected"),
    [
        (None, REPO, r"expected a login; found none. Log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", REPO, r"found a token that it refuses. Log in with `hf auth login`, or set HF_TOKEN"),
        (READ_TOKEN, REPO, "found one of someone that may only read"),
        (WRITE_TOKEN, "else/thing", "expected a repository of someone, because the login is someone's; found else"),
    ],
)
def test_a_login_that_may_not_write_is_found_before_anything_is_sent(
    hub, token, repo, expected, monkeypatch, tmp_path, caplog
):
    hub.connect(monkeypatch, tmp_path / "home", token)
    with pytest.raises(PermissionError, match=expected) as refusal:
        check_login(repo)
    assert "\n" not in str(refusal.value) and (token or "hf_") not in str(refusal.value) + caplog.text
    assert set(hub.counts) <= {"whoami"}


def test_the_stored_login_is_used_and_never_shown(hub, folder, monkeypatch, tmp_path, caplog):
    hub.connect(monkeypatch, tmp_path / "home", token=None)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(WRITE_TOKEN)
    check_login(REPO)
    push(folder)
    assert hub.logins == {WRITE_TOKEN} and WRITE_TOKEN not in caplog.text
    assert not any(WRITE_TOKEN.encode() in content for content in read(tmp_path / "folder").values())


def test_a_token_that_may_only_read_pushes_nothing(hub, folder, monkeypatch, tmp_path):
    hub.put(REPO, {})
    hub.connect(monkeypatch, tmp_path / "home", READ_TOKEN)
    with pytest.raises(PermissionError, match=r"HTTP 403\). Log in with `hf auth login`, or set HF_TOKEN"):
        push(folder)


@pytest.mark.parametrize(
    ("token", "name", "kind", "expected"),
    [
        (WRITE_TOKEN, "nobody/nothing", FileNotFoundError, "found neither a folder nor nobody/nothing on the Hub"),
        (None, f"{USER}/thing", FileNotFoundError, "on the Hub. Check the name. If it is private: Log in"),
        (WRITE_TOKEN, f"{USER}/thing@v9", FileNotFoundError, "expected the revision 'v9'; found none of that name"),
        (WRITE_TOKEN, f"{USER}/thing@{'0' * 40}", FileNotFoundError, "expected the revision '0000"),
        (WRITE_TOKEN, f"{USER}/gated", PermissionError, "expected a login with access to this gated repository"),
        ("hf_wrong", f"{USER}/thing", PermissionError, "expected a login that the Hub knows; found a token that"),
        (WRITE_TOKEN, "outputs/demo/ab", FileNotFoundError, "no repository can have that name. If it is the demo's"),
    ],
)
def test_each_failed_download_says_what_is_wrong(hub, token, name, kind, expected, monkeypatch, tmp_path):
    for repo in (REPO, f"{USER}/gated"):
        hub.put(repo, {"facts.json": SMALL})
    hub.repositories[f"{USER}/gated"].gated = True
    hub.connect(monkeypatch, tmp_path / "home", token)
    with pytest.raises(kind) as refusal:
        download_repository(name, "Judge", ["*"])
    text = str(refusal.value)
    assert expected in text and text.startswith(f"Judge {name}: expected") and "\n" not in text


def test_a_hub_that_is_off_or_unreachable_is_distinguished_from_a_missing_repository(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"found neither .* in the cache, and HF_HUB_OFFLINE forbids"):
        download_repository(REPO, "Judge", ["*"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    for call in (lambda: download_repository(REPO, "Judge", ["*"]), lambda: check_login(REPO)):
        with pytest.raises(ConnectionError, match=r"expected an answer from http://127.0.0.1:9; found none"):
            call()


@pytest.mark.parametrize(
    "repo", ["thing", "a/b/c", "/abs/path", "some one/thing", "someone/.thing", "someone/a--b", ""]
)
def test_only_names_of_a_user_s_repository_are_taken(repo):
    with pytest.raises(ValueError, match=r"--repo .*expected USER/NAME"):
        check_repository_name("--repo", repo)
    check_repository_name("--repo", REPO)
