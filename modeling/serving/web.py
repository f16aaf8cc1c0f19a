"""What scripts/app.py adds to Gradio's server: its port, which requests are let in, cards and verdicts as shown."""

import json
import re
import socket
from pathlib import Path

from modeling.serving.server import TITLES

# What the page and the API need, and no more: Gradio also fetches other sites for whoever asks, records and monitors.
ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static)/.+|/gradio_api/("
    r"info|openapi\.json|app_id|startup-events|heartbeat/\w+|queue/(join|data)|call/.+|cancel|reset|upload"
    r"|upload_progress|run/predict|file=/.+)/?"
)
UPLOAD = "/gradio_api/upload"
LARGEST_BODY = 4_000_000  # bytes of a request without a file: up to here a text that is too long is refused by name
FORM_BYTES = 100_000  # around an uploaded file
# The page works without any other host, and can reach none. Gradio's own components compile templates.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
METADATA_BLOCK = re.compile(r"---\n.*?\n---\n", re.S)
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
FOLD, SUMMARY = re.compile(r"</?details>\n?"), re.compile(r"<summary>(.*?)</summary>")
CODE_OR_TAG = re.compile(r"(```.*?```|`[^`\n]*`)|<(?=[A-Za-z/!?])(?!https?://)", re.S)


def find_port(host: str, port: int) -> int:
    """The port, or for 0 one that is free; a ValueError if it is taken."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
            return server.getsockname()[1]
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: expected an address of this machine and a free port; found otherwise "
            f"({error.strerror}). Give another --port; 0 takes any."
        ) from error


class RequestGuard:
    """ASGI middleware that refuses unknown routes and large bodies unread, and bars the page from other hosts.

    Args:
        app: What answers the requests that are let in.
        max_bytes: Largest file that may be uploaded.
    """

    def __init__(self, app, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif refusal := self.find_refusal(scope["method"], scope["path"], dict(scope["headers"])):
            await _refuse(send, *refusal)
        else:
            await self.app(scope, receive, _add_headers(send))

    def find_refusal(self, method: str, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Status and reason for a request that is not let in."""
        if not ROUTES.fullmatch(path):
            return 404, "There is no such page here."
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        length = headers.get(b"content-length", b"")  # the server holds a body to the length that is declared
        if not length.isdigit():
            return 411, "Expected a Content-Length; found none. Send the body in one piece."
        most = self.max_bytes + FORM_BYTES if path.startswith(UPLOAD) else LARGEST_BODY
        if int(length) > most:
            return 413, f"Expected at most {most:,} bytes; found {int(length):,}. Send less at a time."
        return None


def _add_headers(send):
    async def send_with_headers(message):
        """`send`, with our headers at the start of an answer."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *HEADERS]
        await send(message)

    return send_with_headers


async def _refuse(send, status: int, reason: str) -> None:
    """Answers without reading the body, in the form in which FastAPI gives errors."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})


def read_card(folder: Path) -> tuple[str, list[Path]]:
    """A member's model card as Markdown, without its metadata, pictures and HTML, and the pictures' files."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else "This member has no card."
    text = PICTURE.sub("", METADATA_BLOCK.sub("", text, count=1)).strip()
    text = SUMMARY.sub(r"**\1**", FOLD.sub("", text))  # the only HTML that a card of ours has
    text = CODE_OR_TAG.sub(lambda found: found[1] or "&lt;", text)
    return text, sorted((folder / "figures").glob("*.png"))


def render_verdict(verdict: dict) -> str:
    """What `explain_verdict` says, as HTML made of its numbers alone: no word of a user's goes in."""
    winner, readings = "A" if verdict["winner"] == "model_a" else "B", verdict["readings"]
    moved = f"{abs(readings['ab'] - readings['ba']) * 100:.1f} points"
    if verdict["order_mattered"]:
        order = f"The order matters here: the winner changes with the answer that is read first ({moved} apart)."
    else:
        order = f"The order does not matter: answer {winner} wins either way ({moved} apart)."
    rows = "".join(
        f"<div class='reading'><span>{first} read first</span>{_render_bar(readings[order])}"
        f"<span>A {readings[order]:.1%}</span></div>"
        for first, order in (("A", "ab"), ("B", "ba"))
    )
    cut = ", ".join(f"{TITLES[name]} {count:,}" for name, count in verdict["cut"].items() if count)
    facts = [f"Tokens cut to fit: {cut}" if cut else "Nothing was cut"]
    facts += [f"{verdict['tokens']:,} tokens read", f"{verdict['seconds']:.2f} s"]
    return (
        f"<div class='headline {winner}'><b>Answer {winner} wins</b>"
        f"<span>{max(verdict['p_a'], verdict['p_b']):.1%}</span></div>"
        f"{_render_bar(verdict['p_a'])}"
        f"<div class='ends'><span>A {verdict['p_a']:.1%}</span><span>B {verdict['p_b']:.1%}</span></div>"
        f"<div class='readings'>{rows}</div><p>{order}</p><p class='facts'>{' · '.join(facts)}</p>"
    )


def _render_bar(p_a: float) -> str:
    """A bar divided between a and b."""
    return (
        f"<div class='bar' role='img' aria-label='A {p_a:.1%}, B {1 - p_a:.1%}'><i style='width: {p_a:.1%}'></i></div>"
    )
