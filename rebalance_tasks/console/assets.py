"""The scripts, the style sheet and the icon: a few small files, read once and served from memory.

Their address holds a digest of them all, so that a browser may keep them for good; a name is looked up and never a path.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

STATIC: Final = Path(__file__).parent / "static"
_IMPORT: Final = re.compile(r'^import .* from "\./(\w+)\.js";$', re.MULTILINE)
_HEADERS: Final = {"cache-control": "private, max-age=31536000, immutable"}


class Assets:
    """All static files of the console."""

    def __init__(self) -> None:
        """Read them."""
        self._files = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir())}

    @cached_property
    def digest(self) -> str:
        """A digest over all of them: another version has other addresses."""
        digest = hashlib.sha256()
        for name, content in self._files.items():
            digest.update(name.encode() + content)
        return digest.hexdigest()[:12]

    def modules(self, script: str) -> list[str]:
        """Names of the modules that a page's script imports, so that the page can ask for them at once."""
        return _IMPORT.findall(self._files[f"{script}.js"].decode())

    def route(self) -> Route:
        """Where they are served."""
        return Route(f"/static/{self.digest}/{{name}}", self._serve)

    async def _serve(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404)
        return Response(self._files[name], headers=_HEADERS, media_type=mimetypes.guess_type(name)[0])
