"""The JSON API: verdicts over HTTP, named faults, refusals while busy or stopping, and clients that go away."""

import asyncio
import json

import httpx
import pytest

from modeling.serving.api import build_server
from modeling.serving.app import RunningServer
from modeling.serving.monitoring import Monitor
from modeling.serving.requests import RequestLimits
from modeling.serving.server import ServedJudge
from modeling.serving.web import open_socket
from tests.helpers import HOSTILE_INPUTS

LIMITS = RequestLimits(max_characters=1000, max_battles=100, max_bytes=100_000)
BATTLE = {"prompt": "2 + 2?", "response_a": "4", "response_b": "Five."}


@pytest.fixture
def served(judge):
    served = ServedJudge(judge, LIMITS, max_waiting=3)
    yield served
    served.close()


def send(served: ServedJudge, *bodies: object, path: str = "/v1/judge") -> list[httpx.Response]:
    """Answers to requests that are made at the same time."""

    async def send_all() -> list[httpx.Response]:
        """Posts all bodies at once."""
        transport = httpx.ASGITransport(build_server(served, Monitor("0", "x")))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = [
                client.post(
                    path,
                    content=body if isinstance(body, bytes) else json.dumps(body),
                    headers={"Content-Type": "application/json"},
                )
                for body in bodies
            ]
            return await asyncio.gather(*asked)

    return asyncio.run(send_all())


def test_a_verdict_is_that_of_predict(served, judge):
    (answer,) = send(served, {**BATTLE, "id": "mine"})
    row = judge.predict([{"id": 0, **BATTLE}], readings="both").iloc[0]
    verdict = answer.json()
    assert answer.status_code == 200
    assert (verdict["id"], verdict["p_a"], verdict["winner"]) == ("mine", row["p_a"], row["winner"])
    assert set(verdict["readings"]) == {"ab", "ba"} and verdict["seconds"] > 0


@pytest.mark.parametrize("text", [*HOSTILE_INPUTS, "\ud800"])
def test_hostile_texts_are_judged_and_echo_their_id(served, text):
    (answer,) = send(served, {**BATTLE, "response_a": text, "id": text})
    assert answer.status_code == 200 and answer.json()["id"] == text.replace("\ud800", "\ufffd")


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"promt": "?", "response_a": "x", "response_b": "y"}, "prompt", "expected this key; found none"),
        ({**BATTLE, "promt": "x"}, "promt", "Did you mean prompt"),
        ({**BATTLE, "prompt": 7}, "prompt", "expected text; found a number"),
        ({**BATTLE, "response_a": " "}, "response_a", "expected some text"),
        ({**BATTLE, "response_b": "x" * 1001}, "response_b", "at most 1,000 characters; found 1,001"),
        ({**BATTLE, "response_b": "x" * 10**6}, "response_b", "at most 1,000 characters; found 1,000,000"),
        ({**BATTLE, "id": {"a": 1}}, "id", ""),
        ({**BATTLE, "id": "x" * 201}, "id", "at most 200 characters"),
        ([1], "body", ""),
        (b"{", "body", "expected JSON"),
        (b"[" * 10**5, "body", "expected JSON"),
        (b"\xff", "body", "expected JSON"),
        (b"", "body", "expected JSON"),
    ],
)
def test_a_bad_request_is_422_and_names_its_field(served, body, field, said):
    (answer,) = send(served, body)
    assert answer.status_code == 422 and len(answer.content) < 2000
    assert any(field in fault["loc"] and said in fault["msg"] for fault in answer.json()["detail"])


def test_more_than_may_wait_are_503_and_the_others_are_answered(served):
    with served._use_model():  # nothing is read meanwhile
        answers = asyncio.run(_overfill(served))
    assert sorted(answers.values()).count(503) == 2


async def _overfill(served: ServedJudge) -> dict[str, int]:
    """Status of each of six requests of which one is being read and three may wait."""
    transport = httpx.ASGITransport(build_server(served, Monitor("0", "x")))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        tasks = {"0": asyncio.create_task(client.post("/v1/judge", json={**BATTLE, "id": "0"}))}
        while not served._entrance.locked():
            await asyncio.sleep(0.01)
        tasks |= {name: asyncio.create_task(client.post("/v1/judge", json={**BATTLE, "id": name})) for name in "12345"}
        while sum(task.done() for task in tasks.values()) < 2:
            await asyncio.sleep(0.01)
        served._model_in_use.release()
        answers = {name: await task for name, task in tasks.items()}
        served._model_in_use.acquire()
    for name, answer in answers.items():
        assert answer.json()["id"] == name if answer.status_code == 200 else answer.headers["retry-after"] == "5"
    return {name: answer.status_code for name, answer in answers.items()}


def test_after_the_stop_requests_are_503_and_health_says_so(judge):
    served = ServedJudge(judge, LIMITS)
    assert send_get(served, "/health").json()["status"] == "ok"
    served.close()
    (answer,) = send(served, BATTLE)
    assert answer.status_code == 503 and "stopping" in answer.json()["detail"]
    assert send_get(served, "/health").status_code == 503


def send_get(served: ServedJudge, path: str) -> httpx.Response:
    """The answer to one GET."""

    async def get() -> httpx.Response:
        """Gets the path."""
        transport = httpx.ASGITransport(build_server(served, Monitor("0", "x")))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(get())


def test_the_metrics_count_what_was_read_and_who_waits(judge):
    monitor = Monitor("1.2", "abc")
    served = ServedJudge(judge, LIMITS, count_batch=monitor.count_batch)
    app = build_server(served, monitor)

    async def ask() -> str:
        """Judges two battles and returns the metrics."""
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await asyncio.gather(*(client.post("/v1/judge", json=BATTLE) for _ in range(2)))
            return (await client.get("/metrics")).text

    text = asyncio.run(ask())
    served.close()
    assert "bothways_battles_total 2.0" in text and "bothways_waiting_battles 0.0" in text
    assert 'bothways_build_info{judge="abc",version="1.2"} 1.0' in text


def test_the_openapi_document_names_paths_and_fields(served):
    paths = send_get(served, "/openapi.json").json()["paths"]
    schema = paths["/v1/judge"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {*BATTLE, "id"} and schema["required"] == list(BATTLE)
    assert {"/v1/systemone", "/v1/decisions", "/health", "/metrics"} <= set(paths)


CHOICE = {"type": "choice", "criteria": {"one": "4", "two": "Five."}}


def test_both_protocols_give_the_judges_probability(served, judge):
    """In System One's and in OpenAI's shape; swapping the options swaps the probabilities to the last digit."""
    expected = judge.predict([{"id": 0, **BATTLE}], readings="both")["p_a"][0]
    (answer,) = send(served, {"state": "2 + 2?", "questions": {"best": CHOICE}}, path="/v1/systemone")
    best = answer.json()["answers"]["best"]
    assert best["probabilities"]["one"] == pytest.approx(expected, abs=1e-5)
    swapped = {**CHOICE, "criteria": {"two": "Five.", "one": "4"}}
    (again,) = send(served, {"state": "2 + 2?", "questions": {"best": swapped}}, path="/v1/systemone")
    assert again.json()["answers"]["best"] == best
    choices = [{"value": "one", "description": "4"}, {"value": "two", "description": "Five."}]
    body = {"model": "x", "input": "2 + 2?", "questions": [{"type": "choice", "choices": choices}]}
    (answer,) = send(served, body, path="/v1/decisions")
    probabilities = {each["value"]: each["probability"] for each in answer.json()["answers"][0]["probabilities"]}
    assert probabilities == best["probabilities"]


@pytest.mark.parametrize("path", ["/v1/systemone", "/v1/decisions"])
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        [],
        {"state": "?", "questions": {"a": {"type": "score", "criteria": ["bad", "good"]}}},
        {"state": "?", "questions": {"a": {"type": "choice", "criteria": {str(n): f"{n}" for n in range(256)}}}},
        {"state": "?" * 10**6, "questions": {"a": CHOICE}},
        {"input": "?", "model": "x", "questions": [{"type": "rank"}]},
    ],
)
def test_what_a_judge_cannot_answer_is_422_and_disturbs_nobody(served, path, body):
    choice = {"type": "choice", "choices": [{"value": "4"}, {"value": "5"}]}
    right = {"/v1/systemone": {"state": "?", "questions": {"a": CHOICE}}}
    right["/v1/decisions"] = {"model": "x", "input": "?", "questions": [choice]}
    bad, good = send(served, body, right[path], path=path)
    assert bad.status_code == 422 and all(fault["msg"] for fault in bad.json()["detail"])
    assert len(bad.content) < 20_000
    assert good.status_code == 200


def test_a_client_that_goes_away_is_not_read_and_a_stop_sends_what_was_read(judge, monkeypatch):
    """Over a real socket: of three waiting requests the second client hangs up; then the server stops."""
    seen: list[str] = []
    predict = judge.predict
    monkeypatch.setattr(
        judge, "predict", lambda rows, **options: seen.extend(r["prompt"] for r in rows) or predict(rows, **options)
    )
    served = ServedJudge(judge, LIMITS, max_waiting=10)
    listening = open_socket("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = RunningServer(build_server(served, Monitor("0", "x")), listening)
    server.start()

    async def ask(name: str, timeout: float) -> httpx.Response:
        """Posts a battle and hangs up after the timeout."""
        async with httpx.AsyncClient(timeout=timeout) as client:
            return await client.post(f"http://127.0.0.1:{port}/v1/judge", json={**BATTLE, "prompt": name})

    async def ask_all() -> list:
        """Three requests, of which the second is given up; the model is free after that."""
        first = asyncio.create_task(ask("first", 30))
        while not served._entrance.locked():
            await asyncio.sleep(0.01)
        gone, last = asyncio.create_task(ask("gone", 0.3)), asyncio.create_task(ask("last", 30))
        with pytest.raises(httpx.ReadTimeout):
            await gone
        await asyncio.sleep(1.2)  # the server looks every half second whether a client is still there
        served._model_in_use.release()
        stopped = asyncio.get_running_loop().run_in_executor(None, served.close)
        answers = [await first, await last]
        await stopped
        return answers

    served._wait_for_model()
    answers = asyncio.run(ask_all())
    server.stop()
    assert [answer.status_code for answer in answers] == [200, 200] and seen == ["first", "last"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")
