"""The gate before every page and call: who is it, may they, and did they mean it."""

from __future__ import annotations

import hmac
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from rebalance_tasks.console.access import Attempts, Role, Session, Sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from rebalance_tasks.console.access import Tokens

COOKIE: Final = "rebalance_session"
CSRF_HEADER: Final = "x-csrf-token"


class Denied(Exception):
    """The gate stays shut.

    Attributes:
        status: 401 without a valid token, 403 for what the role may not or a missing CSRF token, 429 after too many guesses.
    """

    def __init__(self, status: int, message: str, cause: str, *, retry_after_s: float = 0.0) -> None:
        """Say why, in words that help the right person only."""
        super().__init__(message)
        self.status = status
        self.cause = cause
        self.headers = {"retry-after": str(math.ceil(retry_after_s))} if retry_after_s else {}


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who makes a request: by a session (a browser), or by a bearer token (a program).

    Attributes:
        address: where the request came from; of a proxy that is not trusted, the proxy's.
    """

    role: Role
    address: str
    session: Session | None = None

    @property
    def name(self) -> str:
        """How the audit log names the visitor: nobody has an account, so by role and address."""
        return f"console:{self.role}@{self.address}"


class Gate:
    """Keeps tokens, sessions and attempts of one console."""

    def __init__(self, tokens: Tokens, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._sessions = Sessions()
        self._attempts = Attempts()

    def login(self, request: Request, token: str) -> Session:
        """Open a session. Raises: Denied: the token is wrong, or was guessed at too often."""
        self.require_same_origin(request)
        return self._sessions.open(self._role(request, token), now=self._clock())

    def logout(self, visitor: Visitor) -> None:
        """End the visitor's session."""
        if visitor.session is not None:
            self._sessions.close(visitor.session.session_id)

    def enter(self, request: Request, needed: Role) -> Visitor:
        """Let a request in. Raises: Denied."""
        visitor = self.identify(request)
        if not visitor.role.includes(needed):
            msg = f"this needs the role {needed}; you are logged in as {visitor.role}"
            raise Denied(403, msg, "forbidden")
        if visitor.session is not None and request.method not in {"GET", "HEAD"}:
            self._require_csrf(request, visitor.session)
        return visitor

    def identify(self, request: Request) -> Visitor:
        """Tell who makes a request. Raises: Denied: nobody known."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return Visitor(self._role(request, token.strip()), _address(request))
        session = self._sessions.find(request.cookies.get(COOKIE, ""), now=self._clock())
        if session is None:
            msg = "not logged in; open / in a browser, or send the header Authorization: Bearer <token>"
            raise Denied(401, msg, "unauthenticated")
        return Visitor(session.role, _address(request), session)

    def _role(self, request: Request, token: str) -> Role:
        address, now = _address(request), self._clock()
        wait_s = self._attempts.wait_s(address, now=now)
        if wait_s > 0:
            msg = f"too many wrong tokens from here; try again in {math.ceil(wait_s)} s"
            raise Denied(429, msg, "too_many_attempts", retry_after_s=wait_s)
        role = self._tokens.role_of(token)
        if role is None:
            self._attempts.note(address, now=now)
            msg = "this token opens nothing"
            raise Denied(401, msg, "unauthenticated")
        return role

    def _require_csrf(self, request: Request, session: Session) -> None:
        self.require_same_origin(request)
        given = request.headers.get(CSRF_HEADER, "").encode()
        if not hmac.compare_digest(given, session.csrf.encode()):
            msg = f"the header {CSRF_HEADER} is missing or old; load the page again"
            raise Denied(403, msg, "csrf")

    @staticmethod
    def require_same_origin(request: Request) -> None:
        """Refuse what another site's page sends. Raises: Denied."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            msg = "this request was made by a page of another site"
            raise Denied(403, msg, "csrf")


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"
