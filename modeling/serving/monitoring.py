"""What the server counts, for Prometheus: requests, batches, refusals, who waits, and the process.

It must not know how requests are answered.
"""

import re
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

PAGES = {"/", "/v1/judge", "/v1/systemone", "/v1/decisions", "/health", "/metrics", "/openapi.json"}
GROUP = re.compile(r"/gradio_api/(call|queue|upload|run|file)\b|/(assets|static)\b")
OTHER = "other"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
BATTLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def name_route(path: str) -> str:
    """Returns the route that a path is counted under: one of a fixed few, whatever clients ask for.

    Example: `name_route("/gradio_api/call/judge/3f2a")` is "/gradio_api/call".
    """
    if group := GROUP.match(path):
        return group[0]
    return path if path in PAGES else OTHER


class Monitor:
    """The metrics of one server, in a registry of its own.

    Args:
        version: This package's version.
        judge: The judge's fingerprint.
    """

    def __init__(self, version: str, judge: str):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU seconds, open files: on Linux
        self._requests = Counter(
            "bothways_requests_total", "Requests, by route and status.", ["route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "bothways_request_seconds", "Time per request.", ["route"], buckets=SECONDS, registry=registry
        )
        self._refused = Counter(
            "bothways_refused_total", "Requests that were refused unread, by reason.", ["reason"], registry=registry
        )
        self._battles = Counter("bothways_battles_total", "Battles judged.", registry=registry)
        self._tokens = Counter(
            "bothways_tokens_total", "Tokens of the battles, each in its longest pass.", registry=registry
        )
        self._batch_battles = Histogram(
            "bothways_batch_battles", "Battles read together.", buckets=BATTLES, registry=registry
        )
        self._batch_seconds = Histogram("bothways_batch_seconds", "Time per batch.", buckets=SECONDS, registry=registry)
        self._file_jobs = Counter("bothways_file_jobs_total", "Uploaded files judged.", registry=registry)
        self._waiting = Gauge("bothways_waiting_battles", "Battles that wait for the judge.", registry=registry)
        Info("bothways_build", "Version of the package and fingerprint of the judge.", registry=registry).info(
            {"version": version, "judge": judge}
        )

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request.

        Args:
            path: Its path, or its route.
            status: HTTP status.
            seconds: From its arrival to the end of its answer.
        """
        route = name_route(path)
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_refusal(self, reason: str) -> None:
        """Counts a request that was refused unread.

        Args:
            reason: One of a few words, such as rate_limit: each becomes a time series.
        """
        self._refused.labels(reason).inc()

    def count_batch(self, battles: int, tokens: int, seconds: float) -> None:
        """Counts battles that were read together.

        Args:
            battles: How many.
            tokens: Of the longest pass of each, added up.
            seconds: Time that it took.
        """
        self._battles.inc(battles)
        self._tokens.inc(tokens)
        self._batch_battles.observe(battles)
        self._batch_seconds.observe(seconds)

    def count_file(self, battles: int, tokens: int) -> None:
        """Counts an uploaded file that was judged.

        Args:
            battles: How many it has.
            tokens: Of the longest pass of each, added up.
        """
        self._file_jobs.inc()
        self._battles.inc(battles)
        self._tokens.inc(tokens)

    def set_waiting(self, count_waiting: Callable[[], float]) -> None:
        """Sets what is asked, each time that the metrics are read, for the number of waiting battles."""
        self._waiting.set_function(count_waiting)

    def render(self) -> tuple[bytes, str]:
        """Returns the metrics in Prometheus's text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4
