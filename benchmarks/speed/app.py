"""Many people at once: clients that ask the app without pause, every answer checked; or a picture of the page.

    python benchmarks/app.py                            # after `make demo`; a minute; writes benchmarks/app.json
    python benchmarks/app.py --screenshot docs/app.png  # needs chromium and playwright

Each client asks for a battle of the demo's held-out ones, waits for the answer and asks again. The answers are worked
out before, in this process, one battle at a time; each request has an id of its own that must come back.
"""

import os

os.environ.setdefault("TQDM_DELAY", "1e9")  # before its first import: no bar for each battle

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

from modeling.data.battles import TEXTS, load_battles
from modeling.judging.judge import Judge
from modeling.runtime.startup import run_script

REPOSITORY = Path(__file__).resolve().parent.parent
BATTLES = REPOSITORY / "modeling" / "data" / "test.jsonl"
TOLERANCE = 1e-6  # of a probability, between two processes; the battles' own differ by far more
WARM_UP = 1 / 3  # of the time, before memory counts as settled


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", nargs="+", default=["outputs/demo/ab", "outputs/demo/ba"])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--battles", type=int, default=12, help="Distinct battles to ask for.")
    parser.add_argument("--output", default="benchmarks/app.json")
    parser.add_argument("--screenshot", help="Take a picture of the page instead, with a verdict on it.")
    return parser.parse_args()


@contextmanager
def serve(judge: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """The real app on a free port: its address and its process."""
    command = [sys.executable, "scripts/app.py", "--judge", *judge, "--port", "0", "--max_waiting", "200"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as said, subprocess.Popen(command, cwd=REPOSITORY, stderr=said) as app:
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
    """What the clients saw."""

    def __init__(self, address: str, battles: list[dict], known: list[float], seconds: float):
        self.address, self.battles, self.known = address, battles, known
        self.until = time.perf_counter() + seconds
        self.latencies: list[float] = []
        self.errors: list[str] = []

    async def ask(self, client: httpx.AsyncClient, number: int, id: str) -> None:
        """One battle by the two steps of the API: ask, then wait for the answer."""
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
        chance = random.Random(name)
        async with httpx.AsyncClient(timeout=None) as client:
            count = 0
            while time.perf_counter() < self.until:
                await self.ask(client, chance.randrange(len(self.battles)), f"{name}-{count}")
                count += 1

    async def watch_memory(self, process: psutil.Process, every: float) -> list[float]:
        """Megabytes that the app holds, time after time."""
        found = []
        while time.perf_counter() < self.until:
            await asyncio.sleep(every)
            found.append(process.memory_info().rss / 1e6)
        return found

    async def run(self, clients: int, process: psutil.Process) -> list[float]:
        """Lets all clients ask until the time is over; gives the memory that the app held meanwhile."""
        every = (self.until - time.perf_counter()) / 60
        asking = [self.keep_asking(name) for name in range(clients)]
        return (await asyncio.gather(self.watch_memory(process, every), *asking))[0]


def choose_battles(flags: argparse.Namespace) -> tuple[list[dict], list[float]]:
    """Battles whose answers differ, so that a mix-up would be seen, and p_a of each, read alone in this process."""
    judge = Judge.from_pretrained(flags.judge)
    logging.getLogger("modeling.judging.judge").setLevel(logging.WARNING)  # it says something of each battle
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
    """The page with a verdict on the first example, 1,200 pixels wide."""
    from playwright.sync_api import sync_playwright

    with serve(flags.judge) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 600})
        page.goto(address)
        page.get_by_role("button", name="English").click()
        page.wait_for_selector("#verdict .headline")
        page.wait_for_timeout(1000)  # until what moves has come to rest
        Path(flags.screenshot).parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=flags.screenshot, full_page=True, animations="disabled")
        browser.close()
    print(f"Written: {flags.screenshot}, {Path(flags.screenshot).stat().st_size / 1000:.0f} kB")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the app is ended too
    flags = parse_flags()
    if flags.screenshot:
        take_picture(flags)
        return
    figures = measure(flags)
    text = json.dumps(figures, indent=2)
    Path(flags.output).write_text(text + "\n", encoding="utf-8")
    print(text)
    if figures["errors"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
