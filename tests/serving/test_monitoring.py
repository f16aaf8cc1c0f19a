"""The metrics: each is counted once, under a route of a fixed few, and each server has its own."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from modeling.serving.access import AccessGuard, AccessLog
from modeling.serving.monitoring import BATTLES, GROUP, OTHER, PAGES, SECONDS, Monitor, name_route
from tests.helpers import REPOSITORY


@pytest.fixture
def monitor() -> Monitor:
    return Monitor("0.1.0", "5f2c")


def read(monitor: Monitor) -> dict[str, float]:
    """The samples as Prometheus reads them, by name and labels."""
    families = text_string_to_metric_families(monitor.render()[0].decode())
    return {
        sample.name + "".join(f" {label}={value}" for label, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("path", "route"),
    [
        *((page, page) for page in sorted(PAGES)),
        ("/gradio_api/call/judge/3f2a", "/gradio_api/call"),
        ("/gradio_api/queue/join", "/gradio_api/queue"),
        ("/gradio_api/file=/tmp/x", "/gradio_api/file"),
        ("/gradio_api/upload", "/gradio_api/upload"),
        ("/gradio_api/upload_progress", OTHER),
        ("/assets/index-5f2c.js", "/assets"),
        ("/assetsx", OTHER),
        ("/v1/judge/", OTHER),
        ("/wp-login.php", OTHER),
        ("", OTHER),
    ],
)
def test_a_route_is_one_of_a_fixed_few_and_names_itself(path, route):
    assert name_route(path) == route == name_route(route)
    assert route in {*PAGES, OTHER} or GROUP.fullmatch(route)


def test_whatever_clients_ask_for_adds_no_time_series(monitor):
    monitor.count_request("/other", 404, 0)
    size = len(read(monitor))
    for number in range(200):
        monitor.count_request(f"/{number}", 404, 0)
    assert len(read(monitor)) == size
    assert read(monitor)["bothways_requests_total route=other status=404"] == 201


def test_requests_are_counted_by_route_and_status(monitor):
    for status, seconds in ((200, 0.05), (200, 2.0), (429, 0.001)):
        monitor.count_request("/v1/judge", status, seconds)
    found = read(monitor)
    assert found["bothways_requests_total route=/v1/judge status=200"] == 2
    assert found["bothways_requests_total route=/v1/judge status=429"] == 1
    assert found["bothways_request_seconds_sum route=/v1/judge"] == pytest.approx(2.051)
    within = [found[f"bothways_request_seconds_bucket le={float(edge)} route=/v1/judge"] for edge in SECONDS]
    assert within == [sum(seconds <= edge for seconds in (0.05, 2.0, 0.001)) for edge in SECONDS]


def test_batches_files_and_refusals_are_counted(monitor):
    """One batch of 3 battles, one of 300, which is beyond the largest bucket."""
    for battles, tokens in ((3, 400), (300, 5)):
        monitor.count_batch(battles, tokens, 0.5)
    monitor.count_file(20, 100)
    monitor.count_refusal("rate_limit")
    found = read(monitor)
    assert (found["bothways_battles_total"], found["bothways_tokens_total"]) == (323, 505)
    assert found["bothways_batch_seconds_sum"] == 1 and found["bothways_file_jobs_total"] == 1
    assert found["bothways_refused_total reason=rate_limit"] == 1
    within = [found[f"bothways_batch_battles_bucket le={float(edge)}"] for edge in BATTLES]
    assert within == [0, 0, 1, 1, 1, 1, 1, 1, 1] and found["bothways_batch_battles_bucket le=+Inf"] == 2


def test_who_waits_is_asked_when_the_metrics_are_read(monitor):
    waiting = [1, 2]
    monitor.set_waiting(lambda: len(waiting))
    before = read(monitor)["bothways_waiting_battles"]
    waiting.clear()
    assert (before, read(monitor)["bothways_waiting_battles"]) == (2, 0)


def test_version_judge_and_memory_are_told(monitor):
    found = read(monitor)
    assert found["bothways_build_info judge=5f2c version=0.1.0"] == 1
    assert found["process_resident_memory_bytes"] > 1e6


def test_each_server_has_its_own_metrics(monitor):
    other = Monitor("0.1.0", "5f2c")
    other.count_file(1, 1)
    assert (read(monitor)["bothways_file_jobs_total"], read(other)["bothways_file_jobs_total"]) == (0, 1)


def test_threads_lose_no_count(monitor):
    """The judge's thread counts batches while the event loop counts requests."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: [monitor.count_batch(1, 2, 0) for _ in range(500)], range(4)))
    assert (read(monitor)["bothways_battles_total"], read(monitor)["bothways_tokens_total"]) == (2000, 4000)


def test_log_and_guard_count_what_they_see(monitor):
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": monitor.render()[0]})

    guard = AccessGuard(app, key="a-key-of-22-characters", count_refusal=monitor.count_refusal)
    client = TestClient(AccessLog(guard, count_request=monitor.count_request))
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"x-api-key": "a-key-of-22-characters"}).status_code == 200
    found = read(monitor)
    assert found["bothways_refused_total reason=unauthorized"] == 1
    assert [found[f"bothways_requests_total route=/metrics status={status}"] for status in (200, 401)] == [1, 1]


def test_the_page_on_serving_lists_every_metric_with_its_type_and_labels(monitor):
    """docs/serving.md; not those of the process, nor the times at which counters began."""
    monitor.count_request("/", 200, 0.1)
    monitor.count_refusal("rate_limit")
    found = set()
    for family in text_string_to_metric_families(monitor.render()[0].decode()):
        if family.name.startswith("bothways_") and not family.name.endswith("_created"):
            name = family.name + "_total" * (family.type == "counter")
            found.add((name, family.type, frozenset(label for sample in family.samples for label in sample.labels)))
    page = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(bothways_\w+)` \| (\w+) \|(.*?)\|", page, re.M)
    listed = {
        (name, kind, frozenset(re.findall(r"`(\w+)`", labels)) | ({"le"} if kind == "histogram" else set()))
        for name, kind, labels in rows
    }
    assert listed == found and len(rows) == 10
