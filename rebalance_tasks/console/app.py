"""The console as an ASGI application: pages, the API, the stream of events.

The order for a call is gate ▸ validation ▸ handler in a thread ▸ JSON; whatever is raised becomes a status and a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, cast

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rebalance_tasks.cli.output import error_story
from rebalance_tasks.console.access import Role
from rebalance_tasks.console.assets import Assets
from rebalance_tasks.console.calls import Call, Refused, identifier, validated
from rebalance_tasks.console.endpoints import ENDPOINTS
from rebalance_tasks.console.gate import Denied, Gate
from rebalance_tasks.console.headers import SecurityHeaders
from rebalance_tasks.console.pages import Pages
from rebalance_tasks.console.shelf import PlanShelf
from rebalance_tasks.console.watcher import Watcher
from rebalance_tasks.core.errors import (
    ConfigurationError,
    InvalidArgument,
    InvalidTransition,
    JobActive,
    JobNotFound,
    NodeError,
    ObjectNotFound,
    PlanNotFound,
    RebalanceError,
    UnknownNode,
)
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.console.access import Tokens
    from rebalance_tasks.console.calls import Endpoint

log = get_logger(__name__)

API: Final = "/api/v1"
#: No call of ours needs more; what is longer is not read.
MOST_BODY_BYTES: Final = 64 * 1024
#: A proxy that drops silent connections waits longer than this.
PING_S: Final = 15
_INTERNAL_ERROR: Final = 500
_UNAVAILABLE: Final = 503
#: First match wins, so an error stands before its parent.
_STATUSES: Final[tuple[tuple[type[RebalanceError], int], ...]] = (
    (JobNotFound, 404),
    (PlanNotFound, 404),
    (ObjectNotFound, 404),
    (UnknownNode, 404),
    (InvalidArgument, 400),
    (JobActive, 409),
    (InvalidTransition, 409),
    (Refused, 409),
    (NodeError, _UNAVAILABLE),
    (ConfigurationError, 409),
)


def make_app(client: Rebalancer, tokens: Tokens) -> Starlette:
    """Build the application of one fleet's console.

    Args:
        client: the fleet's rebalancer; its verbs are called from threads.
        tokens: who may look and who may act.
    """
    gate, watcher, shelf = Gate(tokens), Watcher(client), PlanShelf(client)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(watcher.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    assets = Assets()
    pages = Pages(gate, client.settings, assets)
    api = [Route(f"{API}{e.path}", _serve(e, gate, watcher, shelf), methods=[e.method]) for e in ENDPOINTS]
    return Starlette(
        routes=[
            *pages.routes(),
            *api,
            Route(f"{API}/session", _session(gate)),
            Route(f"{API}/events", _events(gate, watcher)),
            Route("/healthz", _alive),
            assets.route(),
        ],
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={Denied: pages.denied, 404: pages.not_found, Exception: _defect},
        lifespan=lifespan,
    )


async def _alive(_request: Request) -> Response:
    """Whether the process serves; tells nothing of the fleet, so it asks for no token."""
    return JSONResponse({"ok": True})


def _session(gate: Gate) -> Callable[[Request], Awaitable[Response]]:
    async def session(request: Request) -> Response:
        visitor = gate.enter(request, Role.VIEWER)
        return JSONResponse({"role": visitor.role})

    return session


def _serve(
    endpoint: Endpoint, gate: Gate, watcher: Watcher, shelf: PlanShelf
) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        visitor = gate.enter(request, endpoint.role)
        try:
            data: dict[str, Any] = dict(request.query_params) if endpoint.method == "GET" else await _body(request)
            name = identifier(request.path_params["name"]) if "name" in request.path_params else ""
            client = watcher.client if endpoint.method == "GET" else watcher.client.acting_as(visitor.name)
            call = Call(client, watcher, shelf, name, validated(endpoint.takes, data))
            answer = await asyncio.to_thread(endpoint.handler, call)
        except Exception as exc:  # noqa: BLE001  the outermost boundary of a call: told apart in _refusal
            return _refusal(exc)
        if endpoint.method != "GET":
            watcher.forget()
            log.info("console.acted", path=request.url.path, by=visitor.name)
        return JSONResponse(answer)

    return serve


async def _body(request: Request) -> dict[str, Any]:
    """Read a JSON object; an empty body is an empty object. Raises: InvalidArgument."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MOST_BODY_BYTES:
            msg = f"the body is longer than {MOST_BODY_BYTES} bytes, which no call needs"
            raise InvalidArgument(msg)
    if not raw:
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        msg = "the body must be JSON; send the header Content-Type: application/json"
        raise InvalidArgument(msg)
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        msg = "the body is not valid JSON"
        raise InvalidArgument(msg) from exc
    if not isinstance(data, dict):
        msg = "the body must be a JSON object"
        raise InvalidArgument(msg)
    return cast("dict[str, Any]", data)


def _refusal(error: Exception) -> Response:
    """Turn what was raised into a status, a sentence and a stable word."""
    message, cause = error_story(error)
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), _INTERNAL_ERROR)
    if cause == "redis_unreachable":
        status = _UNAVAILABLE
    if cause == "defect":
        log.error("console.defect", exc_info=error)
        # What a defect says of itself is for the log; the page gets no inner detail.
        message = "a defect of the console; its log has the trace"
    return JSONResponse({"error": message, "cause": cause}, status)


async def _defect(_request: Request, error: Exception) -> Response:
    return _refusal(error)


def _events(gate: Gate, watcher: Watcher) -> Callable[[Request], Awaitable[Response]]:
    async def events(request: Request) -> Response:
        gate.enter(request, Role.VIEWER)

        async def stream() -> AsyncIterator[ServerSentEvent]:
            async for event in watcher.events():
                yield ServerSentEvent(json.dumps(event.data, ensure_ascii=False), event=event.topic)
                # A session that ended, or was closed, hears no more.
                try:
                    gate.identify(request)
                except Denied:
                    return

        return EventSourceResponse(stream(), ping=PING_S, headers={"cache-control": "no-store"})

    return events
