"""The JSON API: verdicts, the protocols of decision models, health and metrics over HTTP.

It must not know how a request is judged, nor who may ask.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field

from modeling.runtime.packages import find_version
from modeling.serving.access import CLIENT_GONE
from modeling.serving.batching import QueueFullError
from modeling.serving.decisions import Decision, parse_decision, parse_systemone
from modeling.serving.monitoring import Monitor
from modeling.serving.requests import PairLimits
from modeling.serving.reward_requests import parse_rewards
from modeling.serving.server import ServedJudge
from modeling.serving.validation import InvalidRequest

Result = TypeVar("Result")

LARGEST_SHARE = 0.25  # of the battles that may wait, in one request
SECONDS_BETWEEN_CHECKS = 0.5  # whether a client that waits is still there


class BattleRequest(BaseModel):
    """One battle, for the OpenAPI document; `check_battle` reads it."""

    prompt: str = Field(description="Question or task.")
    response_a: str = Field(description="The first answer.")
    response_b: str = Field(description="The second answer.")
    id: str | int = Field("", description="Returned unchanged.")


class VerdictResponse(BaseModel):
    """The verdict on one battle."""

    id: str | int
    winner: str = Field(description="model_a or model_b, whichever is more likely, or tie.")
    p_a: float = Field(description="Probability that people prefer answer A.")
    p_b: float
    margin: float = Field(description="|p_a - p_b|.")
    close: str | None = Field(description="Why the verdict is too close to call, or null.")
    readings: dict[str, float] = Field(description='p_a in each order; "ab" shows A first.')
    order_mattered: bool = Field(description="Whether the two orders give different winners.")
    tokens: int = Field(description="Tokens of the longest pass.")
    cut: dict[str, int] = Field(description="Tokens truncated in each text.")
    p_tie: float | None = Field(None, description="Probability of a tie; null if the judge predicts none.")
    seconds: float = Field(description="From the request to the answer.")


def build_server(served: ServedJudge, monitor: Monitor) -> FastAPI:
    """Builds the JSON API.

    Args:
        served: The judge that answers.
        monitor: What /metrics shows.
    """
    monitor.set_waiting(served.queue.count_waiting)
    app = FastAPI(
        title="Bothways",
        description="Which of two answers would people prefer?",
        version=find_version("bothways"),
        docs_url=None,  # these two load scripts from another host
        redoc_url=None,
    )

    @app.exception_handler(QueueFullError)
    async def refuse_busy(_: Request, error: QueueFullError) -> JSONResponse:
        """Answers that too many wait, or that the server is stopping."""
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "5"})

    @app.exception_handler(InvalidRequest)
    async def refuse_request(_: Request, error: InvalidRequest) -> JSONResponse:
        """Answers what is wrong with which field, in FastAPI's format."""
        return JSONResponse({"detail": error.detail}, 422)

    @app.post("/v1/judge", response_model=VerdictResponse, openapi_extra=describe_body(BattleRequest))
    async def judge(request: Request) -> dict:
        """Returns the verdict on one battle."""
        return await wait_for_client(request, served.judge_battle(await read_json(request)))

    add_protocols(app, served)

    @app.get("/health")
    async def health() -> dict:
        """Answers once the judge is loaded; with status 503 while the server stops."""
        if served.queue.is_closed:
            raise HTTPException(503, "The server is stopping.")
        return {"status": "ok", "judge": served.name, "version": app.version}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Returns the metrics in Prometheus's text format."""
        text, content_type = monitor.render()
        return Response(text, media_type=content_type)

    return app


def add_protocols(app: FastAPI, served: ServedJudge) -> None:
    """Adds the protocols of others to the server's routes: two of decision models, and OpenRLHF's of rewards."""
    # A request's pairs wait together: one with many answers must not keep all others out.
    max_pairs = max(1, int(served.queue.max_waiting * LARGEST_SHARE))
    limits = PairLimits(max_characters=served.limits.max_characters, max_pairs=max_pairs)

    async def decide(request: Request, parse: Callable[[object, PairLimits, str], Decision]) -> dict:
        """Returns the response to a request in one of the protocols."""
        decision = parse(await read_json(request), limits, served.name)
        verdicts = await wait_for_client(request, served.judge_battles(decision.battles))
        return decision.answer([verdict.share_a for verdict in verdicts], sum(verdict.tokens for verdict in verdicts))

    @app.post("/get_reward", openapi_extra=describe_body())
    async def get_reward(request: Request) -> dict:
        """Returns rewards as OpenRLHF asks a remote reward model for them: docs/rewards.md."""
        comparisons = parse_rewards(await read_json(request), limits)
        verdicts = await wait_for_client(request, served.judge_battles(comparisons.battles))
        rewards = comparisons.compute_rewards([verdict.share_a for verdict in verdicts])
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    @app.post("/v1/systemone", openapi_extra=describe_body())
    async def systemone(request: Request) -> dict:
        """Answers questions in System One's shape, as transformers serves it: docs/decisions.md."""
        return await decide(request, parse_systemone)

    @app.post("/v1/decisions", openapi_extra=describe_body())
    async def decisions(request: Request) -> dict:
        """Answers questions in the shape of OpenAI's Decisions: docs/decisions.md."""
        return await decide(request, parse_decision)


def describe_body(model: type[BaseModel] | None = None) -> dict:
    """Returns the OpenAPI document's entry for a JSON body that FastAPI does not read itself."""
    schema = model.model_json_schema() if model else {"type": "object"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def read_json(request: Request) -> object:
    """Returns the JSON value of a request's body, whatever its Content-Type says.

    Raises:
        InvalidRequest: If it is not JSON.
    """
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        message = "expected JSON in UTF-8; found something else. Write the body as docs/app.md shows."
        raise InvalidRequest([{"loc": ["body"], "msg": message, "type": "json_invalid"}]) from error


async def wait_for_client(request: Request, answer: Awaitable[Result]) -> Result:
    """Returns the answer, or cancels it once the client has gone away.

    Raises:
        HTTPException: If the client has gone: status 499, which only the log will see.
    """
    task = asyncio.ensure_future(answer)
    while not (await asyncio.wait({task}, timeout=SECONDS_BETWEEN_CHECKS))[0]:
        if await request.is_disconnected():
            task.cancel()
            raise HTTPException(CLIENT_GONE, "The client has gone.")
    return task.result()
