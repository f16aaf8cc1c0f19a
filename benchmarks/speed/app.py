"""Load test of the app: many clients at once, with every answer checked. It can also take a screenshot of the page.

    python -m benchmarks.speed.app                            # after `make demo`; writes benchmarks/results/app.json
    python -m benchmarks.speed.app --screenshot docs/app.png  # needs chromium and playwright

Each client sends a battle of the demo's test set, waits for the answer, and sends the next. The expected answers are
computed beforehand in this process, one battle at a time. Each request has its own id, which must come back.
"""

import os

os.environ.setdefault("TQDM_DELAY", "1e9")  # tqdm reads it when it is imported: no progress bar per battle

import argparse
import asyncio
import json
import logging
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks import REPOSITORY, RESULTS
from modeling.data.battles import TEXTS, load_battles
from modeling.judging.judge import Judge
from modeling.runtime.startup import run_script

BATTLES = REPOSITORY / "modeling" / "data" / "demo" / "test.jsonl"
TOLERANCE = 1e-6  # between the probabilities of two processes; those of two battles differ by more, see choose_battles
WARM_UP = 1 / 3  # of the time, before memory counts as settled


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--judge", nargs="+", default=["outputs/demo/ab", "outputs/demo/ba"], help="Members, or one whole judge."
    )
    parser.add_argument("--clients", type=int, default=50, help="Clients at the same time.")
    parser.add_argument("--seconds", type=float, default=60, help="How long the clients send requests.")
    parser.add_argument("--battles", type=int, default=12, help="Number of distinct battles to send.")
    parser.add_argument("--output", default=str(RESULTS / "app.json"), help="JSON file to write.")
    parser.add_argument("--screenshot", help="PNG file: write a screenshot of a verdict instead of a load test.")
    return parser.parse_args()


@contextmanager
def serve(judge: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """Starts the real app on a free port; yields its address and its process."""
    command = [sys.executable, "scripts/app.py", "--judge", *judge, "--port", "0", "--max_waiting", "200"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr, subprocess.Popen(command, cwd=REPOSITORY, stderr=stderr) as app:
            while not (address := re.search(r"on (http://\S+)/\n", log.read_text())):
                if app.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.1)
            try:
                yield address[1], psutil.Process(app.pid)
            finally:
                app.terminate()
        print(log.read_text(), file=sys.stderr, end="")


class Load:
    """The clients, and what they have seen: latencies and errors."""

    def __init__(self, address: str, battles: list[dict], known: list[float], seconds: float):
        self.address, self.battles, self.known = address, battles, known
        self.until = time.perf_counter() + seconds
        self.latencies: list[float] = []
        self.errors: list[str] = []

    async def ask(self, client: httpx.AsyncClient, number: int, id: str) -> None:
        """Sends one battle by the API's two steps, request and wait, and checks the answer."""
        url = f"{self.address}/gradio_api/call/judge"
        start = time.perf_counter()
        asked = await client.post(url, json={"data": [*(self.battles[number][name] for name in TEXTS), id]})
        if asked.status_code != 200:
            self.errors.append(f"{asked.status_code}: {asked.text[:200]}")
            return
        answer = await client.get(f"{url}/{asked.json()['event_id']}")
        self.latencies.append(time.perf_counter() - start)
        found = re.search(r"event: complete\ndata: (.*)\n", answer.text)
        verdict = json.loads(found[1])[0] if found else {"id": None}
        if verdict["id"] != id or abs(verdict["p_a"] - self.known[number]) > TOLERANCE:
            self.errors.append(f"{id}: expected {self.known[number]}; found {answer.text[-300:]}")

    async def keep_asking(self, name: int) -> None:
        """Sends one request after another until the time is over."""
        chance = random.Random(name)
        async with httpx.AsyncClient(timeout=None) as client:
            count = 0
            while time.perf_counter() < self.until:
                await self.ask(client, chance.randrange(len(self.battles)), f"{name}-{count}")
                count += 1

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


def choose_battles(flags: argparse.Namespace) -> tuple[list[dict], list[float]]:
    """Returns battles with distinct answers, so that a mix-up shows, and the p_a of each, predicted alone here."""
    judge = Judge.from_pretrained(flags.judge)
    logging.getLogger("modeling.judging.schedule").setLevel(logging.WARNING)  # it logs a line per call
    battles: list[dict] = []
    known: list[float] = []
    for battle in load_battles(BATTLES):
        p_a = float(judge.predict([battle], readings="both")["p_a"][0])
        if all(abs(p_a - other) > 2 * TOLERANCE for other in known):
            battles.append(battle)
            known.append(p_a)
            print(f"{len(known)} of {flags.battles} answers known", file=sys.stderr)
        if len(known) == flags.battles:
            break
    return battles, known


def measure(flags: argparse.Namespace) -> dict:
    """Returns throughput, latency, errors and memory of the app under load."""
    battles, known = choose_battles(flags)
    with serve(flags.judge) as (address, process):
        at_start, start = process.memory_info().rss / 1e6, time.perf_counter()
        load = Load(address, battles, known, flags.seconds)
        memory = asyncio.run(load.run(flags.clients, process))
        seconds = time.perf_counter() - start
    settled = memory[int(len(memory) * WARM_UP) :]
    return {
        "clients": flags.clients,
        "seconds": round(seconds, 1),
        "requests": len(load.latencies),
        "errors": len(load.errors),
        "first_errors": load.errors[:3],
        "requests_per_second": round(len(load.latencies) / seconds, 2),
        "latency_median_seconds": round(statistics.median(load.latencies), 3),
        "latency_95_percent_seconds": round(statistics.quantiles(load.latencies, n=20)[-1], 3),
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
    results = measure(flags)
    text = json.dumps(results, indent=2)
    Path(flags.output).write_text(text + "\n", encoding="utf-8")
    print(text)
    if results["errors"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
