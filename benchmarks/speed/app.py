"""Load test of the app: many clients at once, with every answer checked. It can also take a screenshot of the page.

    python -m benchmarks.speed.app                            # after `make demo`; writes benchmarks/results/app.json
    python -m benchmarks.speed.app --before ../old            # and compares with another checkout, in turns
    python -m benchmarks.speed.app --screenshot docs/app.png  # needs chromium and playwright

Each client sends a battle of the demo's test set, waits for the answer, and sends the next; no two clients have the
same battle at the same time. The expected answers are computed beforehand in this process. Each request has its own id,
which must come back. One client alone is measured too.
"""

import os

os.environ.setdefault("TQDM_DELAY", "1e9")  # tqdm reads it when it is imported: no progress bar per battle

import argparse
import asyncio
import itertools
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks import REPOSITORY, RESULTS
from modeling.data.battles import TEXTS, load_battles
from modeling.judging.judge import Judge
from modeling.network.doctor import describe_cpu
from modeling.runtime.startup import run_script

BATTLES = REPOSITORY / "modeling" / "data" / "demo" / "test.jsonl"
# Between the probabilities of two processes that pack a battle with others; those of two battles differ by more.
TOLERANCE = 2e-5
WARM_UP = 1 / 3  # of the time, before memory counts as settled


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--judge", nargs="+", default=["outputs/demo/ab", "outputs/demo/ba"], help="Members, or one whole judge."
    )
    parser.add_argument("--clients", type=int, default=50, help="Clients at the same time.")
    parser.add_argument("--seconds", type=float, default=60, help="How long the clients send requests.")
    parser.add_argument("--before", help="Another checkout of this repository, measured in turns with this one.")
    parser.add_argument("--turns", type=int, default=1, help="With --before: how often each is measured.")
    parser.add_argument("--output", default=str(RESULTS / "app.json"), help="JSON file to write.")
    parser.add_argument("--screenshot", help="PNG file: write a screenshot of a verdict instead of a load test.")
    return parser.parse_args()


@contextmanager
def serve(judge: list[str], checkout: Path = REPOSITORY) -> Iterator[tuple[str, psutil.Process]]:
    """Starts the real app of a checkout on a free port; yields its address and its process."""
    folders = [str(Path(name).resolve()) if Path(name).exists() else name for name in judge]
    command = [sys.executable, "scripts/app.py", "--judge", *folders, "--port", "0", "--max_waiting", "200"]
    command += ["--rate_limit", "0"] if checkout == REPOSITORY else []  # all clients have one address
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as said, subprocess.Popen(command, cwd=checkout, env=environment, stderr=said) as app:
            while not (address := re.search(r"on (http://\S+)/\n", log.read_text())):
                if app.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.1)
            try:
                yield address[1], psutil.Process(app.pid)
            finally:
                app.terminate()
        print(log.read_text(), file=sys.stderr, end="")


async def ask_json(client: httpx.AsyncClient, address: str, battle: dict) -> dict:
    """The verdict by one request."""
    answer = await client.post(f"{address}/v1/judge", json=battle)
    return answer.json() if answer.status_code == 200 else {"error": f"{answer.status_code}: {answer.text[:200]}"}


async def ask_gradio(client: httpx.AsyncClient, address: str, battle: dict) -> dict:
    """The verdict by Gradio's two steps, which older checkouts have too."""
    url = f"{address}/gradio_api/call/judge"
    asked = await client.post(url, json={"data": [battle[name] for name in (*TEXTS, "id")]})
    if asked.status_code != 200:
        return {"error": f"{asked.status_code}: {asked.text[:200]}"}
    answer = await client.get(f"{url}/{asked.json()['event_id']}")
    found = re.search(r"event: complete\ndata: (.*)\n", answer.text)
    return json.loads(found[1])[0] if found else {"error": answer.text[-300:]}


class Load:
    """The clients, and what they have seen: latencies and errors."""

    def __init__(self, ask: Callable, address: str, battles: list[dict], known: list[float], seconds: float):
        self.ask, self.address, self.battles, self.known = ask, address, battles, known
        self.numbers = itertools.cycle(range(len(battles)))
        self.until = time.perf_counter() + seconds
        self.latencies: list[float] = []
        self.errors: list[str] = []

    async def keep_asking(self, name: int) -> None:
        """Sends one request after another until the time is over, and checks each answer."""
        async with httpx.AsyncClient(timeout=None) as client:
            for count in itertools.count():
                if time.perf_counter() >= self.until:
                    return
                number, start = next(self.numbers), time.perf_counter()
                battle = {**{text: self.battles[number][text] for text in TEXTS}, "id": f"{name}-{count}"}
                verdict = await self.ask(client, self.address, battle)
                self.latencies.append(time.perf_counter() - start)
                if verdict.get("id") != battle["id"] or abs(verdict["p_a"] - self.known[number]) > TOLERANCE:
                    self.errors.append(f"{battle['id']}: expected {self.known[number]}; found {verdict}")

    async def watch_memory(self, process: psutil.Process, every: float) -> list[float]:
        """Returns the app's memory in megabytes, sampled `every` so many seconds."""
        found = []
        while time.perf_counter() < self.until:
            await asyncio.sleep(every)
            found.append(process.memory_info().rss / 1e6)
        return found

    async def run(self, clients: int, process: psutil.Process) -> list[float]:
        """Runs all clients until the time is over; returns the app's memory samples."""
        every = (self.until - time.perf_counter()) / 60
        asking = [self.keep_asking(name) for name in range(clients)]
        return (await asyncio.gather(self.watch_memory(process, every), *asking))[0]


def choose_battles(judge: list[str]) -> tuple[list[dict], list[float]]:
    """Returns battles whose probabilities differ by enough to show a mix-up, in a random order, and each one's p_a."""
    rows = list(load_battles(BATTLES))
    random.Random(0).shuffle(rows)
    battles: list[dict] = []
    known: list[float] = []
    for battle, p_a in zip(rows, Judge.from_pretrained(judge).predict(rows, readings="both")["p_a"], strict=True):
        if all(abs(p_a - other) > 2 * TOLERANCE for other in known):
            battles.append(battle)
            known.append(float(p_a))
    return battles, known


def measure(flags: argparse.Namespace, checkout: Path, ask: Callable, battles: list[dict], known: list[float]) -> dict:
    """Returns throughput, latency, errors and memory of a checkout's app under load, and one client's latency."""
    with serve(flags.judge, checkout) as (address, process):
        alone = Load(ask, address, battles, known, flags.seconds / 4)
        asyncio.run(alone.run(1, process))
        at_start, start = process.memory_info().rss / 1e6, time.perf_counter()
        load = Load(ask, address, battles, known, flags.seconds)
        memory = asyncio.run(load.run(flags.clients, process))
        seconds = time.perf_counter() - start
    settled = memory[int(len(memory) * WARM_UP) :]
    errors = alone.errors + load.errors
    return {
        "clients": flags.clients,
        "seconds": round(seconds, 1),
        "requests": len(load.latencies),
        "errors": len(errors),
        "first_errors": errors[:3],
        "requests_per_second": round(len(load.latencies) / seconds, 2),
        "latency_median_seconds": round(statistics.median(load.latencies), 3),
        "latency_95_percent_seconds": round(statistics.quantiles(load.latencies, n=20)[-1], 3),
        "one_client_median_seconds": round(statistics.median(alone.latencies), 3),
        "memory_mb": {
            "start": round(at_start),
            "after_a_third": round(settled[0]),
            "end": round(memory[-1]),
            "most": round(max(memory)),
        },
    }


def take_picture(flags: argparse.Namespace) -> None:
    """Writes a screenshot of the page with a verdict on the first example, 1,200 pixels wide."""
    from playwright.sync_api import sync_playwright

    with serve(flags.judge) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 600})
        page.goto(address)
        page.get_by_role("button", name="English").click()
        page.wait_for_selector("#verdict .headline")
        page.wait_for_timeout(1000)  # until the page's animations have ended
        Path(flags.screenshot).parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=flags.screenshot, full_page=True, animations="disabled")
        browser.close()
    print(f"Written: {flags.screenshot}, {Path(flags.screenshot).stat().st_size / 1000:.0f} kB")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # runs the finally in serve, which ends the app
    flags = parse_flags()
    if flags.screenshot:
        take_picture(flags)
        return
    battles, known = choose_battles(flags.judge)
    apps = {"now": (REPOSITORY, ask_json)}
    if flags.before:
        apps = {"before": (Path(flags.before).resolve(), ask_gradio)} | apps
    results = {name: [] for name in apps}
    for _ in range(flags.turns):
        for name, (checkout, ask) in apps.items():
            results[name].append(measure(flags, checkout, ask, battles, known))
            print(json.dumps({name: results[name][-1]}, indent=2))
    Path(flags.output).write_text(
        json.dumps({"cpu": describe_cpu(), "battles": len(battles), **results}, indent=2) + "\n", encoding="utf-8"
    )
    if any(turn["errors"] for turns in results.values() for turn in turns):
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
