"""Who gets in, how often, and what the log says of it. The app behind is one line; nothing is read by a judge."""

import asyncio
import json
import logging
import re
import subprocess
import threading
import time
from datetime import datetime

import pytest
import uvicorn
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from modeling.serving.access import (
    FAILURES_PER_MINUTE,
    MAX_PATH,
    AccessGuard,
    AccessLog,
    RateLimiter,
    hide_names,
    load_api_key,
    load_users,
    name_client,
    warn_if_open,
)
from modeling.settings.arguments import AppArguments
from tests.helpers import REPOSITORY
from tests.settings.commands import parse

KEY = "a-key-of-22-characters"
USERS = {"ada": "correct horse", "zoë": "пароль из слов"}
BATTLE = {"prompt": "a secret text"}


async def answer(scope, receive, send) -> None:
    """An app that reads the body and answers five bytes."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


class Clock:
    """A clock that goes on when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def build_client(app=answer, host: str = "192.0.2.7", **guard) -> TestClient:
    return TestClient(AccessLog(AccessGuard(app, **guard)), client=(host, 5000), raise_server_exceptions=False)


@pytest.fixture
def lines(caplog):
    """Returns the access log so far, one dict per line."""
    caplog.set_level(logging.INFO, "bothways.access")
    return lambda: [json.loads(record.message) for record in caplog.records if record.name == "bothways.access"]


# --- the key and the users --------------------------------------------------------------------------------------------


def write_secret(path, text: str, mode: int = 0o600) -> str:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return str(path)


def test_the_key_is_that_of_the_file_then_of_the_environment(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("BOTHWAYS_API_KEY", raising=False)
    assert load_api_key(None) is None
    monkeypatch.setenv("BOTHWAYS_API_KEY", "of-the-environment")
    assert load_api_key(None) == "of-the-environment"
    assert load_api_key(write_secret(tmp_path / "key", f"{KEY}\n")) == KEY
    assert not caplog.messages


@pytest.mark.parametrize("flag", ["--api_key", "--auth"])
@pytest.mark.parametrize("typed", [KEY, "x" * 5000, "name:" + KEY])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(flag, typed, caplog):
    """Before the arguments are logged; by the script and by the functions."""
    load = {"--api_key": load_api_key, "--auth": load_users}[flag]
    for refuse in (lambda: parse("app", "--judge", "default", flag, typed), lambda: load(typed)):
        with pytest.raises(ValueError, match=f"{flag}: expected a file; found none.*`ps` shows it") as error:
            refuse()
        assert typed not in str(error.value) and typed not in caplog.text


@pytest.mark.parametrize("key", ["", "  \n", "x" * 15, "clé-de-22-caractères-é", "two words of a key", f"{KEY}\n{KEY}"])
def test_a_weak_key_is_refused_and_not_shown(key, tmp_path, monkeypatch):
    monkeypatch.setenv("BOTHWAYS_API_KEY", key)
    path = write_secret(tmp_path / "key", key)
    for where, given in (("--api_key", path), ("BOTHWAYS_API_KEY", None)):
        with pytest.raises(ValueError, match=f"^{where}: expected a key of 16 or more") as error:
            load_api_key(given)
        assert not key.strip() or key.strip() not in str(error.value)


def test_users_are_read_with_any_password_of_twelve_characters(tmp_path):
    text = "ada:correct horse\n\nzoë:пароль из слов\nx:with:colon:in it\n"
    assert load_users(write_secret(tmp_path / "users", text)) == {**USERS, "x": "with:colon:in it"}
    assert load_users(None) == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no colon but long enough", "line 2: expected NAME:PASSWORD"),
        (":a password alone", "line 2: expected NAME:PASSWORD"),
        ("bob:short", "line 2: expected NAME:PASSWORD"),
        ("b\x1bob:long enough secret", "line 2: expected NAME:PASSWORD"),
        ("key:long enough secret", "line 2: expected NAME:PASSWORD, a printable name other than key"),
        ("ada:another long secret", "line 2: expected each name once"),
    ],
)
def test_a_bad_line_is_named_by_its_number_alone(line, said, tmp_path):
    path = write_secret(tmp_path / "users", f"ada:correct horse\n{line}\n")
    with pytest.raises(ValueError, match=said) as error:
        load_users(path)
    assert not [part for part in line.split(":") if len(part) > 3 and part in str(error.value)]


def test_files_without_users_or_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--auth: expected a line NAME:PASSWORD for each user; found none"):
        load_users(write_secret(tmp_path / "users", "\n"))
    (tmp_path / "key").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="--api_key: expected a file in UTF-8") as error:
        load_api_key(str(tmp_path / "key"))
    assert "xff" not in str(error.value)


@pytest.mark.parametrize(("mode", "warnings"), [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1)])
def test_a_secret_that_others_can_read_is_warned_of(mode, warnings, tmp_path, caplog):
    load_api_key(write_secret(tmp_path / "key", KEY, mode))
    assert caplog.text.count("--api_key: other users of this machine can read the file") == warnings


def test_an_open_server_is_warned_of(caplog):
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        warn_if_open(host, None, {})
    for secrets in ((KEY, {}), (None, USERS)):
        warn_if_open("0.0.0.0", *secrets)
    assert not caplog.messages
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        warn_if_open(host, None, {})
        assert caplog.messages.pop().startswith(f"--host {host}: anybody who reaches this address may use the judge")


# --- who gets in ------------------------------------------------------------------------------------------------------

RIGHT = [
    ({"headers": {"authorization": f"Bearer {KEY}"}}, "key"),
    ({"headers": {"authorization": f"bearer  {KEY} "}}, "key"),
    ({"headers": {"x-api-key": KEY}}, "key"),
    ({"auth": ("anybody", KEY)}, "key"),
    ({"auth": ("", KEY)}, "key"),
    ({"auth": ("ada", "correct horse")}, "ada"),
    ({"auth": ("zoë".encode(), "пароль из слов".encode())}, "zoë"),
]
WRONG = [
    {"headers": {"authorization": f"Bearer {KEY[:-1]}"}},
    {"headers": {"authorization": "Bearer ada:correct horse"}},
    {"headers": {"authorization": "Bearer "}},
    {"headers": {"authorization": "Basic ???"}},
    {"headers": {"authorization": KEY}},
    {"headers": {"x-api-key": "correct horse"}},
    {"headers": [("x-api-key", b"\xff\xfe")]},
    {"auth": ("ada", "пароль из слов")},
    {"auth": ("zoe", "correct horse")},
    {"auth": (KEY, "")},
]


@pytest.mark.parametrize(("credentials", "user"), RIGHT)
def test_the_key_or_a_password_lets_in_and_is_named_in_the_log(credentials, user, lines):
    client = build_client(key=KEY, users=USERS)
    assert client.post("/v1/judge", json=BATTLE, **credentials).content == b"hello"
    assert lines()[0]["user"] == user


@pytest.mark.parametrize("credentials", WRONG)
def test_wrong_credentials_let_nobody_in(credentials, lines):
    reasons: list[str] = []
    client = build_client(key=KEY, users=USERS, count_refusal=reasons.append)
    response = client.post("/v1/judge", json=BATTLE, **credentials)
    assert response.status_code == 401 and reasons == ["unauthorized"] and lines()[0]["user"] is None
    assert response.json()["detail"].startswith("Expected the key or a user's password; found a wrong one.")


def test_without_credentials_only_health_is_open():
    client = build_client(key=KEY)
    assert client.get("/health").content == b"hello"
    for method, path in (
        ("POST", "/health"),
        ("GET", "/health/"),
        ("GET", "/"),
        ("GET", "/metrics"),
        ("OPTIONS", "/v1/judge"),
    ):
        response = client.request(method, path)
        assert response.status_code == 401 and "found none" in response.json()["detail"], path


def test_only_pages_make_a_browser_ask_for_a_password():
    client = build_client(users=USERS)
    challenges = {path: client.get(path).headers["www-authenticate"] for path in ("/", "/config", "/v1/judge")}
    basic = 'Basic realm="Bothways", charset="UTF-8"'
    assert challenges == {"/": basic, "/config": basic, "/v1/judge": 'Bearer realm="Bothways"'}
    assert client.post("/gradio_api/queue/join").headers["www-authenticate"] == 'Bearer realm="Bothways"'


def test_without_key_and_users_everybody_is_let_in(lines):
    assert build_client().get("/").status_code == 200
    assert build_client(key=None, users={}).get("/", auth=("x", "y")).status_code == 200
    assert lines()[1]["user"] is None


def test_websockets_are_refused_and_the_lifespan_is_let_through():
    begun = []

    async def app(scope, receive, send) -> None:
        begun.append(scope["type"])
        while (kind := (await receive())["type"]) != "lifespan.shutdown":
            await send({"type": f"{kind}.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    with build_client(app) as client, pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass
    assert begun == ["lifespan"]


def test_pages_of_other_sites_may_link_here_and_nothing_else():
    """A browser sends the password along, whichever page makes it ask."""
    client = build_client(users=USERS)
    client.auth = ("ada", "correct horse")
    foreign = {"sec-fetch-site": "cross-site"}
    assert client.get("/", headers=foreign | {"sec-fetch-mode": "navigate"}).status_code == 200
    assert client.get("/config", headers=foreign | {"sec-fetch-mode": "cors"}).status_code == 403
    assert client.post("/v1/judge", headers=foreign | {"sec-fetch-mode": "navigate"}).status_code == 403
    assert client.post("/v1/judge", headers={"sec-fetch-site": "same-origin"}).status_code == 200


# --- how often --------------------------------------------------------------------------------------------------------


def test_a_bucket_is_full_at_first_and_refills_evenly():
    """6 per minute: after a burst of 6, one every 10 s."""
    limiter = RateLimiter(6, clock=(clock := Clock()))
    assert [limiter.take("a") for _ in range(7)] == [0] * 6 + [10]
    clock.now += 4
    assert (limiter.take("a"), limiter.take("b")) == (6, 0)
    clock.now += 6
    assert (limiter.take("a"), limiter.take("a")) == (0, 10)
    clock.now += 3600
    assert [limiter.take("a") for _ in range(7)] == [0] * 6 + [10]


def test_the_limiter_remembers_those_who_asked_last():
    """Each of 2 per minute that was taken costs 30 s; who is forgotten has a full bucket."""
    limiter = RateLimiter(2, max_clients=3, clock=Clock())
    for client in ("a", "b", "b", "a", "c", "c", "d", "d"):
        limiter.take(client)
    assert [limiter.compute_wait(client) for client in "abcd"] == [30, 0, 30, 30]


def test_only_requests_that_cost_work_are_limited():
    client, free = build_client(rate_limit=2, clock=Clock()), 200
    for path in ("/v1/judge", "/gradio_api/queue/join"):
        assert client.post(path).status_code == 200
    for path in (
        "/v1/decisions",
        "/gradio_api/call/v2/judge",
        "/gradio_api/upload",
        "/gradio_api/run/predict",
        "/gradio_api/queue/join/",
    ):
        response = client.post(path)
        assert response.status_code == 429 and response.headers["retry-after"] == "30"
        assert response.json() == {
            "detail": "Expected at most 2 requests per minute; found more. Ask again in 30 s.",
            "retry_after": 30,
        }
    assert [client.get(path).status_code for path in ("/", "/v1/judge", "/gradio_api/queue/data")] == [free] * 3
    assert [client.post(path).status_code for path in ("/gradio_api/cancel", "/gradio_api/reset")] == [free] * 2


def test_each_client_has_its_own_limit_by_user_or_else_by_address():
    guard = AccessGuard(answer, key=KEY, users=USERS, rate_limit=1, clock=Clock())
    first, second = (TestClient(guard, client=(f"192.0.2.{number}", 1)) for number in (1, 2))
    ada, zoe = ("ada", "correct horse"), RIGHT[-1][0]["auth"]
    assert first.post("/v1/judge", auth=ada).status_code == 200
    assert second.post("/v1/judge", auth=ada).status_code == 429
    assert [first.post("/v1/judge", auth=auth).status_code for auth in (zoe, ("x", KEY))] == [200, 200]
    opened = AccessGuard(answer, rate_limit=1, clock=Clock())
    first, second = (TestClient(opened, client=(f"192.0.2.{number}", 1)) for number in (1, 2))
    forwarded = {"x-forwarded-for": "192.0.2.9"}
    assert [first.post("/v1/judge").status_code, first.post("/v1/judge", headers=forwarded).status_code] == [200, 429]
    assert second.post("/v1/judge").status_code == 200


def test_guessing_is_stopped_even_for_the_right_guess():
    """Ten wrong attempts; then none is compared until a token has come back, 6 s later. Other clients are let in."""
    clock, reasons = Clock(), []
    guard = AccessGuard(answer, key=KEY, count_refusal=reasons.append, clock=clock)
    guesser, other = TestClient(guard, client=("192.0.2.1", 1)), TestClient(guard, client=("192.0.2.2", 1))
    right = {"x-api-key": KEY}
    for _ in range(FAILURES_PER_MINUTE):
        assert guesser.get("/", headers={"x-api-key": "guess"}).status_code == 401
        assert guesser.get("/").status_code == 401  # as every browser begins: no attempt
    response = guesser.get("/", headers=right)
    assert response.status_code == 429 and response.headers["retry-after"] == "6"
    assert other.get("/", headers=right).status_code == 200
    clock.now += 6
    assert guesser.get("/", headers=right).status_code == 200
    assert reasons.count("unauthorized") == 2 * FAILURES_PER_MINUTE and reasons.count("failed_attempts") == 1


@pytest.mark.parametrize(
    ("client", "name"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2::/64"),
        (("::1", 5), "::/64"),
        (("::ffff:192.0.2.1", 5), "192.0.2.1"),
        (("fe80::1%eth0", 5), "fe80::/64"),
        (("testclient", 5), "testclient"),
        (None, "unknown"),
    ],
)
def test_a_client_is_an_address_or_a_network_of_ipv6(client, name):
    assert name_client({"client": client}) == name


# --- the log ----------------------------------------------------------------------------------------------------------


def test_a_line_says_who_asked_for_what_and_how_it_ended(lines):
    response = build_client(key=KEY).post("/v1/judge?prompt=secret", json=BATTLE, headers={"x-api-key": KEY})
    (line,) = lines()
    assert abs(datetime.fromisoformat(line.pop("time")).timestamp() - time.time()) < 60
    assert 0 <= line.pop("milliseconds") < 10_000
    assert len(line["request_id"]) == 32 and response.headers["x-request-id"] == line.pop("request_id")
    expected = {"client": "192.0.2.7", "user": "key", "method": "POST", "path": "/v1/judge", "status": 200, "bytes": 5}
    assert line == expected and "secret" not in json.dumps(line) and KEY not in json.dumps(line)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/gradio_api/file=/tmp/x/names.jsonl", "/gradio_api/file="),
        ("/gradio_api/heartbeat/abc", "/gradio_api/heartbeat/"),
        ("/gradio_api/call/judge", "/gradio_api/call/judge"),
        ("/gradio_api/call/judge/abc", "/gradio_api/call/judge/"),
        ("/gradio_api/call/v2/judge", "/gradio_api/call/v2/judge"),
        ("/gradio_api/call/v2/judge/abc", "/gradio_api/call/v2/judge/"),
        ("/gradio_api/file=a\nb", "/gradio_api/file="),
        ("/" + "x" * 5000, "/" + "x" * (MAX_PATH - 1)),
    ],
)
def test_paths_are_logged_without_what_gives_access_to_texts(path, shown):
    assert hide_names(path) == shown


def test_no_request_can_forge_a_line(lines, caplog):
    build_client().get('/a%0a{"status": 200}%1b[2J%e2%80%a8"', headers={"x-request-id": "not\tan id"})
    (line,) = lines()
    assert line["path"] == '/a\n{"status": 200}\x1b[2J\u2028"' and len(line["request_id"]) == 32
    (message,) = caplog.messages
    assert message.isascii() and message.isprintable()


def test_a_clients_own_request_id_is_kept_if_it_is_plain(lines):
    client = build_client()
    for sent in ("abc-123", "A" * 64):
        assert client.get("/", headers={"x-request-id": sent}).headers["x-request-id"] == sent
    for sent in ("", "A" * 65, "a b", "a_b", 'a"b', "é"):
        found = client.get("/", headers=[("x-request-id", sent.encode())]).headers["x-request-id"]
        assert found != sent and len(found) == 32
    assert len({line["request_id"] for line in lines()}) == 8


def test_refusals_and_errors_are_logged_and_counted(lines):
    async def fail(scope, receive, send) -> None:
        raise RuntimeError

    counted: list[tuple] = []
    app = AccessLog(AccessGuard(fail, key=KEY), lambda path, status, seconds: counted.append((path, status)))
    client = TestClient(app, raise_server_exceptions=False)
    client.get("/")
    client.get("/config", headers={"x-api-key": KEY})
    assert [line["status"] for line in lines()] == [401, 500] and counted == [("/", 401), ("/config", 500)]


async def exchange(app, arriving: list[dict]) -> None:
    """Runs an app over messages that have all arrived; after them nothing does."""

    async def receive() -> dict:
        return arriving.pop(0) if arriving else await asyncio.Event().wait()

    async def send(message: dict) -> None:
        await asyncio.sleep(0)

    scope = {"type": "http", "method": "POST", "path": "/v1/judge", "headers": [], "client": ("192.0.2.7", 1)}
    await AccessLog(app)(scope, receive, send)


BODY = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request", "body": b"b"}]
GONE = {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("arriving", "status", "size"), [(BODY, 200, 5), ([*BODY, GONE], 499, 0)], ids=["waits", "gone"]
)
def test_a_client_that_did_not_wait_is_logged_as_such(arriving, status, size, lines):
    asyncio.run(exchange(answer, [*arriving]))
    assert (lines()[0]["status"], lines()[0]["bytes"]) == (status, size)


def test_an_app_that_stops_because_the_client_left_is_logged_as_such(lines):
    async def stop(scope, receive, send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def stay(scope, receive, send) -> None:
        await answer(scope, receive, send)
        await receive()

    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(exchange(stay, BODY[:1]), 0.01)

    asyncio.run(exchange(stop, [*BODY, GONE]))
    asyncio.run(cancel())
    assert [line["status"] for line in lines()] == [499, 499]


# --- on a real server -------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """Starts uvicorn with an app and returns its address."""
    started = []

    def start(app) -> str:
        config = uvicorn.Config(app, "127.0.0.1", 0, log_level="error", lifespan="off")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run)
        started.append((running, thread))
        thread.start()
        while not running.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for running, thread in started:
        running.should_exit = True
        thread.join()


def curl(*words: str) -> str:
    return subprocess.run(["curl", "-s", *words], capture_output=True, text=True).stdout


def wait_for(lines, number: int) -> list[dict]:
    end = time.monotonic() + 30
    while len(lines()) < number:
        assert time.monotonic() < end, lines()
        time.sleep(0.02)
    return lines()


def test_curl_gets_in_with_the_key_and_an_impatient_one_is_499(server, lines):
    async def answer_late(scope, receive, send) -> None:
        await receive()
        await asyncio.sleep(1 if scope["path"] == "/v1/judge" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"late"})

    url = server(AccessLog(AccessGuard(answer_late, key=KEY)))
    assert curl(f"{url}/v1/decisions", "-d", "x", "-H", f"Authorization: Bearer {KEY}") == "late"
    assert curl(f"{url}/", "-u", f"me:{KEY}") == "late"
    assert "Expected the key" in curl(f"{url}/v1/judge", "-d", "x" * 100_000)
    assert curl("-m", "0.3", f"{url}/v1/judge", "-d", "x", "-H", f"x-api-key: {KEY}") == ""
    assert [line["status"] for line in wait_for(lines, 4)] == [200, 200, 401, 499]


@pytest.mark.parametrize(("trusted", "client"), [("127.0.0.1", "198.51.100.4"), ("192.0.2.1", "127.0.0.1")])
def test_a_forwarded_address_counts_only_from_a_trusted_proxy(trusted, client, server, lines, monkeypatch):
    """curl asks from 127.0.0.1; of the addresses that it names, the last is the one that a proxy would have added."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    curl(server(AccessLog(answer)), "-H", "X-Forwarded-For: 203.0.113.9, 198.51.100.4")
    assert wait_for(lines, 1)[0]["client"] == client


# --- docs/serving.md --------------------------------------------------------------------------------------------------

PAGE = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")


def test_the_page_s_commands_make_a_key_and_get_in_with_it(server, tmp_path, monkeypatch, caplog):
    make, ask = (re.search(rf"^```bash\n({word} .*?)^```", PAGE, re.M | re.S)[1] for word in ("umask", "curl"))
    subprocess.run(["bash", "-c", make.splitlines()[0]], cwd=tmp_path, check=True)
    key = load_api_key(str(tmp_path / "key.txt"))
    monkeypatch.setenv("URL", server(AccessGuard(answer, key=key)))
    for line in ask.splitlines():
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == "hello", line
    assert not caplog.messages


def test_the_page_s_table_has_the_log_s_fields(lines):
    build_client().get("/")
    assert re.findall(r"^\| `(\w+)` \| [^|]*\|$", PAGE, re.M) == list(lines()[0])


def test_the_page_s_numbers_hold():
    text, rate_limit = " ".join(PAGE.split()), AppArguments(judge=["default"]).rate_limit
    for said in (
        f"`--rate_limit` ({rate_limit}) is the number of requests per minute",
        f"or one every {60 / rate_limit} s",
        f"After {FAILURES_PER_MINUTE} wrong attempts in quick succession",
        f"every {60 // FAILURES_PER_MINUTE} s",
        f"at most {MAX_PATH} characters",
    ):
        assert said in text, said
