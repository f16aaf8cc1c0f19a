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

from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.arguments import AppArguments
from modeling.settings.parsing import parse_arguments


def main() -> None:
    (arguments,) = parse_arguments(AppArguments, verb="app")
    # Imported here, because torch and transformers take seconds to load and a mistake in the flags is reported first.
    from accelerate import PartialState

    from modeling.serving.app import run_app

    if PartialState(cpu=arguments.use_cpu).num_processes > 1:
        raise ValueError("Launcher: expected one process; found several. Start the app with python.")
    run_app(arguments, Path(__file__).with_suffix(".css"))


if __name__ == "__main__":
    run_script(main)
