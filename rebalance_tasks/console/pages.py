"""The pages: shells that jinja2 renders; their content comes from the API and is put in as text, never as markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from rebalance_tasks.console.access import SESSION_S, Role
from rebalance_tasks.console.calls import identifier
from rebalance_tasks.console.gate import COOKIE, Denied
from rebalance_tasks.core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from rebalance_tasks.console.assets import Assets
    from rebalance_tasks.console.gate import Gate
    from rebalance_tasks.settings import Settings

HERE: Final = Path(__file__).parent


class Page(NamedTuple):
    """What a page is made of.

    Attributes:
        script: the module that draws it.
        calls: of the API, as its script asks them first; the browser asks while it still reads the script.
    """

    script: str
    title: str
    calls: tuple[str, ...]


#: By path; ``{name}`` is an identifier.
PAGES: Final = {
    "/": Page("fleet", "Fleet", ("/fleet", "/nodes?offset=0&limit=100&q=&sort=place", "/checks?limit=200")),
    "/plans": Page("plans", "Plans", ("/plans?offset=0&limit=20",)),
    "/plans/{name}": Page(
        "plan", "Plan", ("/plans/{name}", "/plans/{name}/moves?offset=0&limit=25&q=&source=&target=")
    ),
    "/jobs": Page("jobs", "Jobs", ("/jobs?offset=0&limit=25",)),
    "/jobs/{name}": Page("job", "Job", ("/jobs/{name}", "/jobs/{name}/failures", "/jobs/{name}/timeline")),
    "/nodes/{name}": Page("node", "Node", ("/nodes/{name}",)),
}
#: Where a login may lead: to a page of ours, or to the first.
_PAGE: Final = re.compile(r"/(?:(?:plans|jobs)(?:/[\w.:-]{1,128})?|nodes/[\w.:-]{1,128})?", re.ASCII)
#: A token and a path fit many times over.
_MOST_FORM_BYTES: Final = 4096
_API: Final = "/api/"


class Pages:
    """The pages of one console, its login, and what errors look like."""

    def __init__(self, gate: Gate, settings: Settings, assets: Assets) -> None:
        self._gate = gate
        self._assets = assets
        self._settings = settings
        env = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=select_autoescape(), undefined=StrictUndefined
        )
        env.globals["v"] = assets.digest
        self._templates = Jinja2Templates(env=env)

    def routes(self) -> list[Route]:
        """The routes of the pages."""
        shown = [Route(path, self._page(page)) for path, page in PAGES.items()]
        return [
            *shown,
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
        ]

    def _page(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        modules = self._assets.modules(page.script)

        async def show(request: Request) -> Response:
            visitor = self._gate.enter(request, Role.VIEWER)
            name = request.path_params.get("name", "")
            try:
                name = identifier(name) if name else ""
            except InvalidArgument:
                return await self.not_found(request, InvalidArgument())
            shown = {
                "script": page.script,
                "title": page.title,
                "modules": modules,
                "calls": [call.replace("{name}", name) for call in page.calls],
                "name": name,
                "role": visitor.role.value,
                "csrf": visitor.session.csrf if visitor.session else "",
                "fleet": self._settings.fleet,
                "mode": self._settings.mode,
            }
            return self._templates.TemplateResponse(request, "page.html", shown)

        return show

    async def _login(self, request: Request) -> Response:
        form = await _form(request)
        session = self._gate.login(request, form.get("token", ""))
        wanted = form.get("next", "/")
        response = RedirectResponse(wanted if _PAGE.fullmatch(wanted) else "/", 303)
        response.set_cookie(
            COOKIE,
            session.session_id,
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def _logout(self, request: Request) -> Response:
        self._gate.logout(self._gate.enter(request, Role.VIEWER))
        response = Response(status_code=204)
        response.delete_cookie(COOKIE)
        return response

    async def denied(self, request: Request, error: Exception) -> Response:
        """Answer who may not: with JSON to a program, with the login to a browser."""
        assert isinstance(error, Denied)  # noqa: S101  registered for nothing else
        if request.url.path.startswith(_API):
            return JSONResponse({"error": str(error), "cause": error.cause}, error.status, error.headers)
        tried = request.method == "POST"
        shown = {
            "fleet": self._settings.fleet if not tried else "",
            "title": "Log in",
            "message": str(error) if tried else "",
            "next": request.url.path if _PAGE.fullmatch(request.url.path) else "/",
        }
        return self._templates.TemplateResponse(request, "login.html", shown, error.status, error.headers)

    async def not_found(self, request: Request, _error: Exception) -> Response:
        """Answer what is not there, the same to everybody."""
        if request.url.path.startswith(_API):
            return JSONResponse({"error": "there is no such endpoint", "cause": "not_found"}, 404)
        return self._templates.TemplateResponse(request, "missing.html", {"title": "Not found"}, 404)


async def _form(request: Request) -> dict[str, str]:
    """Read a small urlencoded form; what is longer is cut and opens nothing."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MOST_FORM_BYTES:
            break
    fields = parse_qs(raw[:_MOST_FORM_BYTES].decode("ascii", "replace"))
    return {name: values[0] for name, values in fields.items()}
