"""The JSON API: verdicts, health and metrics over HTTP.

It must not know how a request is judged, nor who may ask.
"""

import asyncio
from collections.abc import Awaitable
from importlib.metadata import version
from typing import TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field

from modeling.data.battles import TEXTS
from modeling.serving.batching import QueueFullError
from modeling.serving.monitoring import Monitor
from modeling.serving.requests import BattleRequest, InvalidRequestError, describe_faults
from modeling.serving.server import ServedJudge

Result = TypeVar("Result")

SECONDS_BETWEEN_CHECKS = 0.5  # whether a client that waits is still there


class VerdictResponse(BaseModel):
    """The verdict on one battle."""

    id: str | int
    winner: str = Field(description="model_a or model_b, whichever is more likely.")
    p_a: float = Field(description="Probability that people prefer answer A.")
    p_b: float
    margin: float = Field(description="|p_a - p_b|.")
    close: str | None = Field(description="Why the verdict is too close to call, or null.")
    readings: dict[str, float] = Field(description='p_a in each order; "ab" shows A first.')
    order_mattered: bool = Field(description="Whether the two orders give different winners.")
    tokens: int = Field(description="Tokens of the longest pass.")
    cut: dict[str, int] = Field(description="Tokens truncated in each text.")
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
        description="Which of two answers would people prefer? Every battle is read in both orders.",
        version=version("bothways"),
        docs_url=None,  # these two load scripts from another host
        redoc_url=None,
    )

    @app.exception_handler(QueueFullError)
    async def refuse_busy(_: Request, error: QueueFullError) -> JSONResponse:
        """Answers that too many wait, or that the server is stopping."""
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "5"})

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(_: Request, error: RequestValidationError) -> JSONResponse:
        """Answers which fields are missing, unknown or of another type, without repeating what was sent."""
        return JSONResponse({"detail": describe_faults(error.errors(), BattleRequest)}, 422)

    @app.exception_handler(InvalidRequestError)
    async def refuse_request(_: Request, error: InvalidRequestError) -> JSONResponse:
        """Answers what is wrong with which field, in FastAPI's format."""
        return JSONResponse({"detail": error.detail}, 422)

    @app.post("/v1/judge")
    async def judge(battle: BattleRequest, request: Request) -> VerdictResponse:
        """Returns the verdict on one battle."""
        texts = {name: getattr(battle, name) for name in TEXTS}
        return await wait_for_client(request, served.judge_battle(texts, battle.id))

    @app.get("/health")
    async def health() -> dict:
        """Answers once the judge is loaded; with status 503 while the server stops."""
        if served.queue.is_closed:
            raise HTTPException(503, "The server is stopping.")
        return {"status": "ok", "judge": [member.name for member in served.judge.members], "version": app.version}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Returns the metrics in Prometheus's text format."""
        text, content_type = monitor.render()
        return Response(text, media_type=content_type)

    return app


async def wait_for_client(request: Request, answer: Awaitable[Result]) -> Result:
    """Returns the answer, or cancels it once the client has gone away.

    Raises:
        HTTPException: If the client has gone: status 499, which only the log will see.
    """
    task = asyncio.ensure_future(answer)
    while not (await asyncio.wait({task}, timeout=SECONDS_BETWEEN_CHECKS))[0]:
        if await request.is_disconnected():
            task.cancel()
            raise HTTPException(499, "The client has gone.")
    return task.result()
