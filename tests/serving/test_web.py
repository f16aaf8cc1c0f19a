"""The app's HTTP rules: what is refused unread, wrong fields of Gradio's API, and the port."""

import json
import socket

import pytest

from modeling.data.battles import TEXTS
from modeling.serving.web import CALL, LARGEST_BODY, RequestGuard, choose_port

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
    guard = RequestGuard(None, 6_000_000, CALLS)
    headers = {} if length is None else {b"content-length": str(length).encode()}
    assert (guard.find_refusal(method, path, headers) or (None,))[0] == status


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("v2/judge", {"prompt": "?", "response_a": "x", "response_b": "y"}, None, ""),
        ("v2/judge", {"prompt": "?", "response_a": "x", "response_b": "y", "id": 3}, None, ""),
        ("v2/judge", {"promt": "?", "response_a": "x", "response_b": "y"}, 422, "Did you mean prompt"),
        ("v2/judge", {}, 422, "expected this key; found none"),
        ("v2/judge", [1], 422, "a JSON object"),
        ("v2/judge", b"{", 422, "Expected JSON"),
        ("v2/judge", b"[" * 10**6, 422, "Expected JSON"),
        ("v2/judge", b"\xff\xfe", 422, "Expected JSON"),
        ("v2/jugde", {}, 404, "no call jugde; found judge, judge_file"),
        ("v2/judge_file", {}, 422, "expected this key; found none"),
        ("judge", {"data": ["?", "x", "y", ""]}, None, ""),
        ("judge", {"data": ["?", "x"]}, 422, "4 values in this order"),
        ("judge", {"date": ["?", "x", "y", ""]}, 422, "4 values in this order"),
        ("judge_file", {"data": [{}]}, None, ""),
    ],
)
def test_wrong_fields_of_gradios_api_are_refused_by_name(path, body, status, said):
    """Gradio answers a misspelt field with status 500 and a traceback in the log."""
    call = CALL.fullmatch(f"/gradio_api/call/{path}")
    found = RequestGuard(None, 1000, CALLS).find_faults(
        call, body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    assert (found or (None,))[0] == status and said in json.dumps(found)


def test_a_taken_port_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: expected an address of this machine and a free port"):
            choose_port("127.0.0.1", port)
        assert choose_port("127.0.0.1", 0) not in (0, port)
    with pytest.raises(ValueError, match=r"--host 192\.0\.2\.1"):
        choose_port("192.0.2.1", 0)
