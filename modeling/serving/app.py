"""The app: a judge behind the page and the JSON API, with the rules of who may ask what; how it starts and stops."""

import ctypes
import logging
import os
import platform
import signal
import socket
import tempfile
import threading
from pathlib import Path

import uvicorn

from modeling.judging.judge import Judge, describe_members
from modeling.runtime.packages import find_version
from modeling.serving.access import AccessGuard, AccessLog, load_api_key, load_users, warn_if_open
from modeling.serving.api import build_server
from modeling.serving.monitoring import Monitor
from modeling.serving.page import CALLS, build_page, mount_page
from modeling.serving.requests import RequestLimits
from modeling.serving.server import ServedJudge
from modeling.serving.web import BodyDrain, RequestGuard, open_socket
from modeling.settings.arguments import AppArguments

logger = logging.getLogger("bothways.app")

M_ARENA_MAX = -8  # a parameter number from glibc's malloc.h
SECONDS_TO_ANSWER = 5  # for sending what was read, once the server stops


def run_app(arguments: AppArguments, css: Path) -> None:
    """Serves a judge until SIGINT or SIGTERM; then answers who waits, refuses others, and returns.

    Args:
        arguments: The app's flags.
        css: Style sheet of the page.

    Raises:
        ValueError: If the port is taken, a secret is unusable, or the judge cannot be loaded.
    """
    host = arguments.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    # Now, because loading the judge takes long, and another program could take the port meanwhile.
    listening = open_socket(host, arguments.port)
    key, users = load_api_key(arguments.api_key), load_users(arguments.auth)
    warn_if_open(host, key, users)
    limit_malloc_arenas()
    judge = Judge.from_pretrained(
        arguments.judge, skip_probes=arguments.skip_probes, dtype=arguments.dtype, merge=arguments.merge
    )
    logging.getLogger("modeling.judging.schedule").setLevel(logging.WARNING)  # it logs a line per batch
    monitor = Monitor(find_version("bothways"), ", ".join(describe_members(judge.members).values()))
    served = ServedJudge(
        judge,
        RequestLimits(
            max_characters=arguments.max_characters, max_battles=arguments.max_battles, max_bytes=arguments.max_bytes
        ),
        arguments.max_waiting,
        arguments.readings,
        count_batch=monitor.count_batch,
        count_file=monitor.count_file,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="bothways-app-") as folder:  # only this user can read it
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_EXAMPLES_CACHE": str(Path(folder) / "examples")}
        page = build_page(served, Path(folder))
        app = mount_page(build_server(served, monitor), page, arguments, css)
        app = RequestGuard(app, arguments.max_bytes, CALLS, page.fns)
        app = AccessGuard(app, key, users, arguments.rate_limit, monitor.count_refusal)
        server = RunningServer(AccessLog(BodyDrain(app), monitor.count_request), listening)
        server.start()
        logger.info(
            f"Serving {', '.join(member.name for member in judge.members)} on http://{host}:{listening.getsockname()[1]}/"
        )
        stop.wait()
        logger.info("Stopping: those that wait are answered, others are refused")
        served.close()
        server.stop()


class RunningServer:
    """uvicorn in a thread of its own.

    Args:
        app: The ASGI app.
        listening: What `open_socket` returned. It is closed with the server.
    """

    def __init__(self, app, listening: socket.socket):
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=SECONDS_TO_ANSWER)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="http", daemon=True)

    def start(self) -> None:
        """Returns once the server answers.

        Raises:
            RuntimeError: If it does not; the log says why.
        """
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            self._thread.join(0.01)
        if not self._server.started:
            raise RuntimeError("The HTTP server did not start; the lines above say why.")

    def stop(self) -> None:
        """Sends the answers that are ready and closes all connections."""
        self._server.should_exit = True
        self._thread.join()


def limit_malloc_arenas() -> None:
    """Limits glibc to two heaps: by default each thread gets its own, and glibc returns little of their memory."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
