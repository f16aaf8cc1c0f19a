"""Serves a judge as a web page and an API that take one battle or a file of battles and return verdicts.

python scripts/app.py                                               # configs/demo/app.yaml, http://127.0.0.1:7860
python scripts/app.py --judge user/judge --host 0.0.0.0 --port 8080
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")
if find_spec("gradio") is None:
    raise SystemExit(
        'The app: expected Gradio; found none. Install it: pip install "bothways[app]", or in a clone `make app`.'
    )

import os

# Set before Gradio and tqdm are imported, because they read these once. No telemetry; no progress bar per battle in the
# log; and a short history of requests, where Gradio keeps 10,000 for a monitoring page that is off here.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DELAY": "1e9"}
os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "100", "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000"}

import logging
import signal
import tempfile
import threading
from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.arguments import AppArguments
from modeling.settings.parsing import parse_arguments

logger = logging.getLogger("bothways.app")


def main() -> None:
    (arguments,) = parse_arguments(AppArguments, verb="app")
    # Imported here, because torch and transformers take seconds to load and a mistake in the flags is reported first.
    from accelerate import PartialState

    from modeling.judging.judge import Judge
    from modeling.serving.api import RunningServer, build_server, limit_malloc_arenas
    from modeling.serving.page import build_page, mount_page
    from modeling.serving.requests import BattleRequest, FileRequest, RequestLimits
    from modeling.serving.server import ServedJudge
    from modeling.serving.web import RequestGuard, choose_port

    if PartialState(cpu=arguments.use_cpu).num_processes > 1:
        raise ValueError("Launcher: expected one process; found several. Start the app with python.")
    host = arguments.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port = choose_port(host, arguments.port)
    limit_malloc_arenas()
    judge = Judge.from_pretrained(arguments.judge, skip_probes=arguments.skip_probes, dtype=arguments.dtype)
    logging.getLogger("modeling.judging.schedule").setLevel(logging.WARNING)  # it logs a line per batch
    limits = RequestLimits(
        max_characters=arguments.max_characters, max_battles=arguments.max_battles, max_bytes=arguments.max_bytes
    )
    served = ServedJudge(judge, limits, arguments.max_waiting)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="bothways-app-") as folder:  # only this user can read it
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_EXAMPLES_CACHE": str(Path(folder) / "examples")}
        css = Path(__file__).with_suffix(".css")
        app = mount_page(build_server(served), build_page(served, Path(folder)), arguments, css)
        server = RunningServer(
            RequestGuard(app, arguments.max_bytes, {"judge": BattleRequest, "judge_file": FileRequest}), host, port
        )
        server.start()
        logger.info(f"Serving {', '.join(member.name for member in judge.members)} on http://{host}:{port}/")
        stop.wait()
        logger.info("Stopping: no new requests; those that wait are answered")
        served.close()
        server.stop()


if __name__ == "__main__":
    run_script(main)
