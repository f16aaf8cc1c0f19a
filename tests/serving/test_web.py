"""The app's HTTP rules: what is refused unread, wrong fields of Gradio's API, and the port."""

import asyncio
import json
import socket

import pytest

from modeling.data.battles import TEXTS
from modeling.serving.web import LARGEST_BODY, MOST_DRAINED, BodyDrain, RequestGuard, open_socket, refuse

CALLS = {"judge": dict.fromkeys(TEXTS, True) | {"id": False}, "judge_file": {"file": True}}


@pytest.mark.parametrize(
    ("method", "path", "length", "status"),
    [
        ("GET", "/", None, None),
        ("GET", "/gradio_api/file=/tmp/x/predictions.parquet", None, None),
        ("POST", "/gradio_api/call/judge", LARGEST_BODY, None),
        ("POST", "/gradio_api/call/judge", LARGEST_BODY + 1, 413),
        ("POST", "/gradio_api/queue/join", None, 411),
        ("POST", "/gradio_api/upload", 6_000_000, None),
        ("POST", "/gradio_api/upload", 7_000_000, 413),
        ("GET", "/gradio_api/file=http://192.0.2.1/", None, 404),
        ("GET", "/gradio_api/proxy=http://192.0.2.1/", None, 404),
        ("GET", "/monitoring/summary", None, 404),
        ("POST", "/gradio_api/process_recording", 10, 404),
    ],
)
def test_only_requests_that_the_page_needs_are_let_in(method, path, length, status):
    guard = RequestGuard(None, 6_000_000, CALLS, {0, 1})
    headers = {} if length is None else {b"content-length": str(length).encode()}
    assert (guard.find_refusal(method, path, headers) or (None,))[0] == status


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("call/v2/judge", {"prompt": "?", "response_a": "x", "response_b": "y"}, None, ""),
        ("call/v2/judge", {"prompt": "?", "response_a": "x", "response_b": "y", "id": 3}, None, ""),
        ("call/v2/judge", {"promt": "?", "response_a": "x", "response_b": "y"}, 422, "Did you mean prompt"),
        ("call/v2/judge", {}, 422, "expected this key; found none"),
        ("call/v2/judge", [1], 422, "a JSON object"),
        ("call/v2/judge", b"{", 422, "Expected JSON"),
        ("call/v2/judge", b"[" * 10**6, 422, "Expected JSON"),
        ("call/v2/judge", b"\xff\xfe", 422, "Expected JSON"),
        ("call/v2/jugde", {}, 404, "no call jugde; found judge, judge_file"),
        ("call/v2/judge_file", {}, 422, "expected this key; found none"),
        ("call/judge", {"data": ["?", "x", "y", ""]}, None, ""),
        ("call/judge", {"data": ["?", "x"]}, 422, "4 values in this order"),
        ("call/judge", {"date": ["?", "x", "y", ""]}, 422, "4 values in this order"),
        ("call/judge_file", {"data": [{}]}, None, ""),
        ("queue/join", {"data": [], "fn_index": 1, "session_hash": "x"}, None, ""),
        ("queue/join", {"data": [], "fn_index": 999, "session_hash": "x"}, 422, "one of the page's events"),
        ("run/predict", {"data": []}, 422, "one of the page's events"),
    ],
)
def test_wrong_fields_of_gradios_api_are_refused_by_name(path, body, status, said):
    """Gradio answers a misspelt field with status 500 and a traceback in the log."""
    guard = RequestGuard(None, 1000, CALLS, {0, 1})
    found = guard.find_faults(f"/gradio_api/{path}", body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (found or (None,))[0] == status and said in json.dumps(found)


def test_a_body_in_chunks_is_refused_whatever_length_it_declares():
    """The HTTP parser would read it to its end, without a limit."""
    headers = {b"content-length": b"10", b"transfer-encoding": b"chunked"}
    assert RequestGuard(None, 1000, CALLS, {0}).find_refusal("POST", "/v1/judge", headers)[0] == 411


def test_a_taken_port_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: expected an address of this machine and a free port"):
            open_socket("127.0.0.1", port)
        with open_socket("127.0.0.1", 0) as free:
            assert free.getsockname()[1] not in (0, port)
    with pytest.raises(ValueError, match=r"--host 192\.0\.2\.1"):
        open_socket("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("status", "length", "drained"),
    [(413, 30, True), (401, 30, True), (200, 30, False), (413, MOST_DRAINED + 1, False)],
)
def test_an_error_is_sent_after_the_body_is_read(status, length, drained):
    """Else the client may find a reset connection instead of it. One part was read by the app itself."""
    parts, said = [b"x" * 10] * 3, []

    async def receive():
        said.append("part")
        parts.pop()
        return {"type": "http.request", "body": b"x" * 10, "more_body": bool(parts)}

    async def send(message):
        said.append(message["type"])

    async def app(scope, receive, send):
        await receive()
        await refuse(send, status, "no")

    scope = {"type": "http", "headers": [(b"content-length", str(length).encode())]}
    asyncio.run(BodyDrain(app)(scope, receive, send))
    assert said == ["part"] * (3 if drained else 1) + ["http.response.start", "http.response.body"]
