"""The HTTP server: the JSON API, health, and the Gradio page behind the rules of `web.py`; and how it starts and stops.

It must not know how a request is judged.
"""

import asyncio
import ctypes
import platform
import threading
from collections.abc import Awaitable
from importlib.metadata import version
from typing import TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from modeling.data.battles import TEXTS
from modeling.serving.batching import QueueFullError
from modeling.serving.requests import BattleRequest, InvalidRequestError, describe_faults
from modeling.serving.server import ServedJudge

Result = TypeVar("Result")

M_ARENA_MAX = -8  # a parameter number from glibc's malloc.h
SECONDS_BETWEEN_CHECKS = 0.5  # whether a client that waits is still there
SECONDS_TO_ANSWER = 5  # for sending what was read, once the server stops


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


def build_server(served: ServedJudge) -> FastAPI:
    """Builds the JSON API.

    Args:
        served: The judge that answers.
    """
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


# --- starting and stopping --------------------------------------------------------------------------------------------


class RunningServer:
    """uvicorn in a thread of its own.

    Args:
        app: The server.
        host: Address to listen on.
        port: A free port.
    """

    def __init__(self, app: FastAPI, host: str, port: int):
        config = uvicorn.Config(
            app, host, port, log_level="warning", access_log=False, timeout_graceful_shutdown=SECONDS_TO_ANSWER
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> None:
        """Returns once the server answers."""
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            self._thread.join(0.01)

    def stop(self) -> None:
        """Sends the answers that are ready and closes all connections."""
        self._server.should_exit = True
        self._thread.join()


def limit_malloc_arenas() -> None:
    """Limits glibc to two heaps: by default each thread gets its own, and glibc returns little of their memory."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
