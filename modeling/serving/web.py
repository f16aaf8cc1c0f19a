"""The app's HTTP rules: its port, which requests are let in, and which headers the answers carry. Knows no Gradio."""

import asyncio
import json
import re
import socket
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from starlette.requests import ClientDisconnect

from modeling.serving.validation import BodyReader

# Only what the page and the API need. Gradio's other routes fetch any URL on request, record sessions and monitor.
ROUTES = re.compile(
    r"/|/(v1/(judge|systemone|decisions)|health|metrics|openapi\.json)|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static)/.+|/gradio_api/("
    r"info|openapi\.json|app_id|startup-events|heartbeat/\w+|queue/(join|data)|call/(v2/)?\w+(/\w+)?|cancel|reset|upload"
    r"|upload_progress|run/predict|file=/.+)/?"
)
UPLOAD = "/gradio_api/upload"
GRADIO = re.compile(r"/gradio_api/(call/.+|queue/join|run/predict)")
CALL = re.compile(r"/gradio_api/call/(?P<by_name>v2/)?(?P<name>\w+)/?")
# Bytes of a request without a file. Far above --max_characters, so that a long text is refused with its field's name.
LARGEST_BODY = 4_000_000
# How many bytes of a refused request's body are read at most, and for how many seconds.
MOST_DRAINED, DRAIN_SECONDS = 16_000_000, 5
FORM_BYTES = 100_000  # what a multipart form adds to an uploaded file
# The browser contacts no other host. 'unsafe-eval' is needed because Gradio's components compile templates.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


def open_socket(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on the port, or on a free one for 0. Who connects waits until it is served.

    Raises:
        ValueError: If the port is taken, or the host is no address of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: expected an address of this machine and a free port; found: "
            f"{error.strerror}. Pass another --port; 0 takes any free one."
        ) from error


class RequestGuard:
    """ASGI middleware that refuses unknown routes, large bodies and wrong fields, and keeps the page from other hosts.

    Args:
        app: The ASGI app behind it.
        max_bytes: Size limit of an uploaded file.
        events: Numbers of the page's events. Gradio answers an unknown one, too, with status 500.
        calls: Fields of each call of Gradio's API, and whether it needs them. Gradio itself answers a wrong field with
            status 500.
    """

    def __init__(self, app, max_bytes: int, calls: Mapping[str, Mapping[str, bool]], events: Collection[int]):
        self.app, self.max_bytes, self.calls, self.events = app, max_bytes, calls, events

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self.find_refusal(scope["method"], scope["path"], dict(scope["headers"]))
        if not refusal and scope["method"] == "POST" and GRADIO.fullmatch(scope["path"]):
            body = await _read_body(receive)
            refusal, receive = self.find_faults(scope["path"], body), _replay(body, receive)
        if refusal:
            await refuse(send, *refusal)
            return
        with suppress(ClientDisconnect):  # nobody is left to be answered
            await self.app(scope, receive, _add_headers(send))

    def find_refusal(self, method: str, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Returns status and reason of a refusal, or None if the request is let in."""
        if not ROUTES.fullmatch(path):
            return 404, "There is no such page here."
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        # The server enforces the declared length, unless the body comes in chunks.
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or b"transfer-encoding" in headers:
            return 411, "Expected a Content-Length; found none. Send the body in one piece."
        most = self.max_bytes + FORM_BYTES if path.startswith(UPLOAD) else LARGEST_BODY
        if int(length) > most:
            return 413, f"Expected at most {most:,} bytes; found {int(length):,}. Send less at a time."
        return None

    def find_faults(self, path: str, body: bytes) -> tuple[int, str | list[dict]] | None:
        """Returns status and reason if a request to Gradio's API or for an event has the wrong fields, or None."""
        call = CALL.fullmatch(path)
        if call and call["name"] not in self.calls:
            return 404, f"There is no call {call['name']}; found {', '.join(self.calls)}."
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError):
            return 422, "Expected JSON; found something else."
        if not isinstance(sent, dict):
            return 422, "Expected a JSON object with the fields of the call."
        return self._find_wrong_fields(call, sent) if call else self._find_wrong_event(sent)

    def _find_wrong_event(self, sent: Mapping) -> tuple[int, str] | None:
        """Returns status and reason if an event is none of the page's, or None."""
        number = sent.get("fn_index")
        if isinstance(number, int) and number in self.events:
            return None
        return 422, "fn_index: expected the number of one of the page's events; found another. Reload the page."

    def _find_wrong_fields(self, call: re.Match, sent: Mapping) -> tuple[int, str | list[dict]] | None:
        """Returns status and reason if a call of Gradio's API has the wrong fields, or None."""
        fields = self.calls[call["name"]]
        if call["by_name"]:
            reader = BodyReader(max_characters=0)  # it reads no texts here
            reader.read_object(sent, (), [name for name, is_needed in fields.items() if is_needed], list(fields))
            return (422, reader.faults) if reader.faults else None
        data = sent.get("data")
        if not isinstance(data, list) or len(data) != len(fields):
            return 422, f'Expected {{"data": [{", ".join(fields)}]}}: {len(fields)} values in this order.'
        return None


class BodyDrain:
    """ASGI middleware that reads what is left of a request's body before an error is sent.

    Otherwise the server closes the connection with the rest of the body unread, and the client may find a connection
    that was reset instead of the answer. Bodies of more than `MOST_DRAINED` bytes, or without a length, are not read.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        length = dict(scope.get("headers", ())).get(b"content-length", b"")
        if scope["type"] != "http" or not length.isdigit() or int(length) > MOST_DRAINED:
            await self.app(scope, receive, send)
            return
        unread = int(length) > 0

        async def receive_part():
            """Returns the next message; notes the end of the body."""
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and bool(message.get("more_body"))
            return message

        async def drain() -> None:
            """Reads the rest of the body, without keeping it."""
            while unread:
                await receive_part()

        async def send_drained(message):
            """Sends a message, an error only after the body."""
            if message["type"] == "http.response.start" and message["status"] >= 400:
                with suppress(TimeoutError):
                    await asyncio.wait_for(drain(), DRAIN_SECONDS)
            await send(message)

        await self.app(scope, receive_part, send_drained)


async def _read_body(receive) -> bytes:
    """Returns the body of a request, or what came of it before its client went away."""
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    return b"".join(parts)


def _replay(body: bytes, receive):
    """Wraps ASGI's `receive` so that it starts with a body that was read already."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again():
        """Returns the body first."""
        return waiting.pop() if waiting else await receive()

    return receive_again


def _add_headers(send):
    """Wraps ASGI's `send`."""

    async def send_with_headers(message):
        """Adds our headers to the start of an answer."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *HEADERS]
        await send(message)

    return send_with_headers


async def refuse(
    send, status: int, reason: str | list[dict], headers: Iterable[tuple[bytes, bytes]] = (), **fields: object
) -> None:
    """Answers in FastAPI's error format, without waiting for the body.

    Args:
        send: ASGI's `send`.
        status: HTTP status.
        reason: What to tell the client.
        headers: Further headers.
        fields: Further fields of the JSON.
    """
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *HEADERS, *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": reason, **fields}).encode()})
