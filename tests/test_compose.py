"""compose.yaml agrees with the Dockerfile and with the app. No container engine has run either."""

import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from modeling.settings import parsing
from tests.helpers import REPOSITORY
from tests.settings.commands import parse

COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))
SERVICE = COMPOSE["services"]["app"]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture
def arguments(monkeypatch):
    """The app's arguments in the container: the image's flags, then the service's."""
    monkeypatch.setattr(parsing, "check_paths", lambda arguments: None)
    monkeypatch.setattr(parsing, "start_torch", lambda: True)
    image = re.search(r"exec bothways app (.*?) \$\{JUDGE", DOCKERFILE)[1].split()
    return parse("app", *image, *SERVICE["command"])[0]


def test_the_app_accepts_the_flags_and_its_port_is_published_to_this_machine_alone(arguments):
    (published,) = SERVICE["ports"]
    assert published == f"127.0.0.1:{arguments.port}:{arguments.port}" and arguments.host == "0.0.0.0"
    assert re.search(r"^EXPOSE (\d+)$", DOCKERFILE, re.M)[1] == str(arguments.port)


def test_the_key_is_a_secret_file_that_git_and_the_image_leave_out(arguments):
    (name,) = SERVICE["secrets"]
    assert arguments.api_key == f"/run/secrets/{name}"
    file = COMPOSE["secrets"][name]["file"]
    for ignore in (".gitignore", ".dockerignore"):
        assert file in (REPOSITORY / ignore).read_text(encoding="utf-8").splitlines()


def test_what_the_app_writes_goes_to_memory_or_to_a_volume_of_its_user():
    (volume,), (temporary,) = SERVICE["volumes"], SERVICE["tmpfs"]
    name, folder = volume.split(":")
    assert SERVICE["read_only"] and name in COMPOSE["volumes"] and temporary.startswith("/tmp:")
    home = folder.removesuffix("/.cache")
    assert re.search(rf"^USER bothways\nWORKDIR {home}\n(#.*\n)*RUN mkdir .cache$", DOCKERFILE, re.M)


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_for_health(status, healthy, arguments):
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kind, python, *words = SERVICE["healthcheck"]["test"]
        assert (kind, python, words[0]) == ("CMD", "python", "-c") and f":{arguments.port}/" in words[1]
        code = words[1].replace(f":{arguments.port}/", f":{server.server_port}/")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True)
        server.shutdown()
    assert (done.returncode == 0) is healthy and asked == ["/health"]
