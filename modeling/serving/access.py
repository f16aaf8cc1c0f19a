"""Who may use the server: its key and users, limits on attempts and on requests, and a log line for each request.

Middleware in plain ASGI. It must not know the web framework behind it.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import os
import re
import stat
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from modeling.runtime.paths import check_secret_file
from modeling.serving.web import refuse

logger = logging.getLogger("bothways.app")
access_logger = logging.getLogger("bothways.access")

KEY_VARIABLE = "BOTHWAYS_API_KEY"
KEY = re.compile(r"[!-~]{16,}")  # printable ASCII without spaces, so that it can be sent in a header
USER = re.compile(r"(?P<name>[^\s:][^:]*):(?P<password>.{12,})")
KEY_USER = "key"  # who asks, in the log and for the limits, if it is not a user with a password
OPEN_PATH = "/health"
FAILURES_PER_MINUTE = 10
# Requests that make the judge work, or store a file.
WORK = re.compile(r"/v1/.+|/gradio_api/(call|queue/join|upload|run)(/.*)?")
# What follows names a file, a session or a result, and whoever knows the name may read it.
PRIVATE = re.compile(r"(/gradio_api/(?:file=|heartbeat/|call/(?:v2/[^/]+|(?!v2/)[^/]+)/)).+", re.S)
ASSET = re.compile(r"/(assets|static)/")  # the page's own files, about 60 for each visit
REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")
MAX_PATH = 200
CLIENT_GONE = 499  # nginx's status for a client that did not wait for the answer


# --- secrets ----------------------------------------------------------------------------------------------------------


def load_api_key(path: str | None) -> str | None:
    """Returns the server's key: from a file, else from the environment variable BOTHWAYS_API_KEY, else None.

    Args:
        path: The file, as --api_key names it.

    Raises:
        ValueError: If there is no such file, or the key is too short or cannot be sent in a header. The message
            repeats neither the key nor `path`, in whose place somebody may have typed the key.
    """
    if path is None and KEY_VARIABLE not in os.environ:
        return None
    where = KEY_VARIABLE if path is None else "--api_key"
    key = (os.environ[KEY_VARIABLE] if path is None else _read_secret(path, "--api_key")).strip()
    if not KEY.fullmatch(key):
        raise ValueError(
            f"{where}: expected a key of 16 or more ASCII letters, digits and signs, without spaces; found another. "
            'Make one with `python -c "import secrets; print(secrets.token_urlsafe(32))"`.'
        )
    return key


def load_users(path: str | None) -> dict[str, str]:
    """Returns the passwords by name of the people who may open the page, one NAME:PASSWORD per line of a file.

    Args:
        path: The file, as --auth names it. Without one there are no users.

    Raises:
        ValueError: If there is no such file, or a line has no name, no colon, a short password or a name that an
            earlier line has. The message gives the line's number and never what it says.
    """
    users: dict[str, str] = {}
    for number, line in enumerate(_read_secret(path, "--auth").splitlines() if path is not None else (), 1):
        if not line.strip():
            continue
        found = USER.fullmatch(line)
        if not found or not found["name"].isprintable() or found["name"] == KEY_USER:
            raise ValueError(
                f"--auth, line {number}: expected NAME:PASSWORD, a printable name other than {KEY_USER} and a password "
                "of 12 or more characters; found another line. Correct it."
            )
        if found["name"] in users:
            raise ValueError(f"--auth, line {number}: expected each name once; found one again. Remove a line.")
        users[found["name"]] = found["password"]
    if path is not None and not users:
        raise ValueError("--auth: expected a line NAME:PASSWORD for each user; found none. Add one, or leave it out.")
    return users


def warn_if_open(host: str, key: str | None, users: Mapping[str, str]) -> None:
    """Logs a warning if other machines can reach the server and nobody needs a key or a password.

    Args:
        host: The address that the server listens on.
        key: What `load_api_key` returned.
        users: What `load_users` returned.
    """
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        is_local = host == "localhost"
    if not (is_local or key or users):
        logger.warning(
            f"--host {host}: anybody who reaches this address may use the judge. Set --api_key or --auth, or listen on "
            "127.0.0.1."
        )


def _read_secret(path: str, flag: str) -> str:
    """The text of a file with secrets; warns if other users of this machine can read it."""
    check_secret_file(path, flag)
    file = Path(path)
    # Windows has no such permissions: it reports that all may read.
    if os.name == "posix" and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning(f"{flag}: other users of this machine can read the file. Run chmod 600 on it.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:  # it would show the file's bytes
        raise ValueError(f"{flag}: expected a file in UTF-8; found another encoding. Save it as UTF-8.") from None


# --- limits -----------------------------------------------------------------------------------------------------------


class RateLimiter:
    """Token buckets, one per client: a burst of a minute's requests, then one each time that a token has come back.

    Written here because the library `limits` keeps an entry for every client that ever asked, for ever, and starts a
    thread to look through all of them. This class forgets who has not asked for the longest time. It is for one
    thread, the server's event loop.

    Args:
        per_minute: Requests per minute, and size of a burst.
        max_clients: Clients to remember.
        clock: Returns seconds.
    """

    def __init__(self, per_minute: int, max_clients: int = 10_000, clock: Callable[[], float] = time.monotonic):
        self.per_minute, self.max_clients, self.clock = per_minute, max_clients, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def compute_wait(self, client: str) -> float:
        """Returns the seconds until a client has a token, 0 if it has one."""
        return max(0.0, (1 - self._count_tokens(client)) * 60 / self.per_minute)

    def take(self, client: str) -> float:
        """Takes a token if the client has one. Returns the seconds until it has one, 0 if it was taken."""
        if not (wait := self.compute_wait(client)):
            self._buckets[client] = self._count_tokens(client) - 1, self.clock()
            self._buckets.move_to_end(client)
            if len(self._buckets) > self.max_clients:
                self._buckets.popitem(last=False)
        return wait

    def _count_tokens(self, client: str) -> float:
        """The client's tokens now."""
        tokens, then = self._buckets.get(client, (self.per_minute, self.clock()))
        return min(self.per_minute, tokens + (self.clock() - then) * self.per_minute / 60)


def name_client(scope: Mapping) -> str:
    """Returns what a client is counted by: its address, or its network of 64 bits, which one IPv6 client may own.

    It is the address of the connection. X-Forwarded-For, which anybody can send, counts only where the server has
    already put it into the scope, for a proxy that it was told to trust.
    """
    host = (scope.get("client") or ("unknown",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a socket without an address, or what a trusted proxy calls its client
        return host
    if address.version == 4:
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address), 64), strict=False))


# --- the guard --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A request that is not let in: a word for the metrics, and the answer."""

    reason: str
    status: int
    detail: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    retry_after: int | None = None


class AccessGuard:
    """ASGI middleware that lets in who has the key or a password, and limits how often each client asks.

    The key is accepted as `Authorization: Bearer KEY`, as `x-api-key: KEY`, and as the password of any name, so that a
    browser can open the page with it. Only GET /health is open to all. Without a key and users everybody is let in.

    Args:
        app: The ASGI app behind it.
        key: What `load_api_key` returned.
        users: What `load_users` returned.
        rate_limit: Working requests per minute and client; 0 means any number.
        count_refusal: Called with the reason of each refusal: unauthorized, failed_attempts, rate_limit or cross_site.
        clock: Returns seconds, for the limits.
    """

    def __init__(
        self,
        app,
        key: str | None = None,
        users: Mapping[str, str] | None = None,
        rate_limit: int = 0,
        count_refusal: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.app, self.count_refusal = app, count_refusal
        # Digests all have one length, and their comparison takes the same time wherever they differ.
        self._known = [(name, _digest("user", f"{name}:{password}")) for name, password in (users or {}).items()]
        self._known += [(KEY_USER, _digest("key", key))] if key else []
        self._failures = RateLimiter(FAILURES_PER_MINUTE, clock=clock)
        self._work = RateLimiter(rate_limit, clock=clock) if rate_limit else None

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":  # nothing here uses them
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http" and (refusal := self.check(scope)):
            self.count_refusal(refusal.reason)
            fields = {} if refusal.retry_after is None else {"retry_after": refusal.retry_after}
            await refuse(send, refusal.status, refusal.detail, refusal.headers, **fields)
        else:
            await self.app(scope, receive, send)

    def check(self, scope: dict) -> Refusal | None:
        """Returns why a request is refused, or None; notes its user in the scope, for the log.

        Args:
            scope: ASGI's scope of the request.
        """
        if scope["path"] == OPEN_PATH and scope["method"] == "GET":
            return None
        headers = dict(scope["headers"])
        if _comes_from_another_site(scope["method"], headers):
            return Refusal("cross_site", 403, "Expected a request of this page; found one of another site's page.")
        client = name_client(scope)
        if self._known:
            if refusal := self._authenticate(scope, headers, client):
                return refusal
            client = f"user {scope['bothways.user']}"  # no address has a space
        is_work = scope["method"] == "POST" and WORK.fullmatch(scope["path"])
        if self._work and is_work and (wait := self._work.take(client)):
            most = f"at most {self._work.per_minute} requests per minute"
            return _refuse_for_now("rate_limit", f"Expected {most}; found more.", wait)
        return None

    def _authenticate(self, scope: dict, headers: Mapping[bytes, bytes], client: str) -> Refusal | None:
        """The refusal of a request without a known key or password; if it has one, its user goes into the scope."""
        sent = list(_read_credentials(headers))
        # Before comparing: otherwise the answer would still tell which guess is right.
        if sent and (wait := self._failures.compute_wait(client)):
            return _refuse_for_now("failed_attempts", "Expected the key or a password; found wrong ones.", wait)
        names = [name for name, known in self._known for digest in sent if hmac.compare_digest(digest, known)]
        if names:
            scope["bothways.user"] = names[0]
            return None
        if sent:
            self._failures.take(client)
        # Basic makes a browser ask for a name and a password, which only a page needs.
        is_page = scope["method"] == "GET" and not scope["path"].startswith("/v1/")
        challenge = b'Basic realm="Bothways", charset="UTF-8"' if is_page else b'Bearer realm="Bothways"'
        found = "a wrong one" if sent else "none"
        detail = f"Expected the key or a user's password; found {found}. Send the header Authorization: Bearer KEY."
        return Refusal("unauthorized", 401, detail, ((b"www-authenticate", challenge),))


def _digest(kind: str, secret: str) -> bytes:
    """A secret's digest; the kind keeps a password from being taken for the key."""
    return hashlib.sha256(f"{kind} {secret}".encode("utf-8", "surrogateescape")).digest()


def _read_credentials(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Yields the digests of all that a request offers."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"basic":
        try:
            pair = base64.b64decode(value, validate=True).decode("utf-8", "surrogateescape")
        except binascii.Error:
            pair = ":"
        yield _digest("user", pair)
        yield _digest("key", pair.partition(":")[2])
    elif scheme:
        yield _digest("key", value.decode("utf-8", "surrogateescape").strip())
    if key := headers.get(b"x-api-key"):
        yield _digest("key", key.decode("utf-8", "surrogateescape"))


def _comes_from_another_site(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser sends the request for another site's page, with the password that it knows for this one.

    Following a link to this page is no such request. Programs send no such headers.
    """
    is_link = method == "GET" and headers.get(b"sec-fetch-mode") == b"navigate"
    return headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site") and not is_link


def _refuse_for_now(reason: str, detail: str, wait: float) -> Refusal:
    """A refusal that says when to ask again."""
    seconds = math.ceil(wait)
    retry = ((b"retry-after", str(seconds).encode()),)
    return Refusal(reason, 429, f"{detail} Ask again in {seconds} s.", retry, seconds)


# --- the log ----------------------------------------------------------------------------------------------------------


class AccessLog:
    """ASGI middleware that logs requests, but for the page's own files, as lines of JSON to the logger bothways.access.

    The line says who asked for what, when, and how it ended. It never holds headers, bodies, query strings, or names
    by which a result or a file can be read.

    Args:
        app: The ASGI app behind it.
        count_request: Called after each request with its path, status and seconds.
    """

    def __init__(self, app, count_request: Callable[[str, int, float], None] = lambda path, status, seconds: None):
        self.app, self.count_request = app, count_request

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        moment, start = datetime.now(UTC), time.perf_counter()
        exchange = _Exchange(receive, send, choose_request_id(dict(scope["headers"])))
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            exchange.status = exchange.status or 500
            raise
        finally:
            seconds = time.perf_counter() - start
            status = exchange.final_status
            self.count_request(scope["path"], status, seconds)
            record = {
                "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "client": (scope.get("client") or (None,))[0],
                "user": scope.get("bothways.user"),
                "method": scope["method"],
                "path": hide_names(scope["path"]),
                "status": status,
                "bytes": exchange.size,
                "milliseconds": round(seconds * 1000),
                "request_id": exchange.id,
            }
            if status >= 400 or not ASSET.match(scope["path"]):
                access_logger.info(json.dumps(record))  # which escapes line ends and all else that could forge a line


def choose_request_id(headers: Mapping[bytes, bytes]) -> str:
    """Returns the request's x-request-id if it is 1 to 64 letters, digits and hyphens, otherwise a new one."""
    sent = headers.get(b"x-request-id", b"")
    return sent.decode() if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def hide_names(path: str) -> str:
    """Returns a path for the log: without names that let others read something, and of bounded length."""
    return PRIVATE.sub(r"\1", path)[:MAX_PATH]


class _Exchange:
    """ASGI's `receive` and `send` of one request, and what went through them."""

    def __init__(self, receive, send, id: str):
        self._receive, self._send, self.id = receive, send, id
        self.status: int | None = None
        self.size = 0
        self.is_read = self.is_answered = self.is_gone = False

    @property
    def final_status(self) -> int:
        """The status for the log: 499 if the client disconnected before the answer ended, or if no answer began."""
        return CLIENT_GONE if self.is_gone or self.status is None else self.status

    async def receive(self):
        """ASGI's receive."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_gone = not self.is_answered
        else:
            self.is_read = not message.get("more_body", False)
        return message

    async def send(self, message):
        """ASGI's send, with our header."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
            if self.is_read:
                await self._look_whether_client_left()
        elif message["type"] == "http.response.body":
            self.size += 0 if self.is_gone else len(message.get("body", b""))
            self.is_answered = not message.get("more_body", False)
        await self._send(message)

    async def _look_whether_client_left(self) -> None:
        """Receives what is there, without waiting. Once the body is read, that can only be the end of the client.

        An app that answers in one piece never looks, and the server drops its answer without a word.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await self.receive()
