"""Who may do what: two tokens, the sessions they open, and patience with those who guess.

Tokens come from the environment or from files, never from ``rebalance.toml`` (which is shared with every worker), are
compared in constant time and never shown. A session is random, lives in this process only, and carries the secret that
its writes must repeat (CSRF).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: 16 characters of a random alphabet are beyond guessing over a network, at `Attempts`' pace above all.
LEAST_TOKEN_LENGTH: Final = 16
#: A working day; whoever comes back the next morning logs in again.
SESSION_S: Final = 12 * 3600
#: More sessions than any team has browsers; the oldest goes.
MOST_SESSIONS: Final = 1_000
#: So many wrong tokens from one address, within `ATTEMPTS_S`, and it has to wait.
MOST_ATTEMPTS: Final = 10
ATTEMPTS_S: Final = 60.0
#: Addresses that are remembered; a flood from more of them shares what is forgotten first.
_MOST_ADDRESSES: Final = 10_000
_VARIABLE: Final = "REBALANCE_CONSOLE_{role}_TOKEN"


class Role(StrEnum):
    """What somebody may do: a viewer looks, an operator also acts."""

    VIEWER = "viewer"
    OPERATOR = "operator"

    def includes(self, other: Role) -> bool:
        """Whether who has this role may do what the other may."""
        return self is Role.OPERATOR or other is Role.VIEWER


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a console; either may be missing."""

    viewer: str = field(default="", repr=False)
    operator: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.viewer or self.operator)

    def role_of(self, token: str) -> Role | None:
        """Return the role that a token gives, ``None`` for a wrong one; takes the same time for every answer."""
        given = _digest(token)
        is_viewer = hmac.compare_digest(given, _digest(self.viewer)) & bool(self.viewer)
        is_operator = hmac.compare_digest(given, _digest(self.operator)) & bool(self.operator)
        return Role.OPERATOR if is_operator else Role.VIEWER if is_viewer else None


def _digest(text: str) -> bytes:
    """A digest hides length as well: `compare_digest` tells lengths apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def load_tokens(environ: Mapping[str, str]) -> Tokens:
    """Read the tokens from ``REBALANCE_CONSOLE_VIEWER_TOKEN`` and ``…_OPERATOR_TOKEN``, or from files (``…_TOKEN_FILE``).

    Raises:
        ConfigurationError: a token is given twice, is too short, opens both doors, or its file cannot be read.
    """
    viewer, operator = (_token(environ, _VARIABLE.format(role=role.name)) for role in (Role.VIEWER, Role.OPERATOR))
    if viewer and viewer == operator:
        msg = "the viewer's and the operator's token are the same; every viewer would be an operator: choose two"
        raise ConfigurationError(msg)
    return Tokens(viewer=viewer, operator=operator)


def _token(environ: Mapping[str, str], variable: str) -> str:
    token, file = environ.get(variable, ""), environ.get(f"{variable}_FILE", "")
    if token and file:
        msg = f"{variable} and {variable}_FILE are both set; keep one of them"
        raise ConfigurationError(msg)
    source = variable
    if file:
        source = f"{variable}_FILE={file!r}"
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "is not UTF-8 text"
            msg = f"{source} cannot be read: {why}; name a text file that holds the token and nothing else"
            raise ConfigurationError(msg) from exc
    if (token or file) and len(token) < LEAST_TOKEN_LENGTH:
        msg = (
            f"{source}: the token has {len(token)} characters and needs {LEAST_TOKEN_LENGTH}; "
            'make one with: python3 -c "import secrets; print(secrets.token_urlsafe(24))"'
        )
        raise ConfigurationError(msg)
    return token


def new_token() -> str:
    """Return a token for one run."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True, slots=True)
class Session:
    """One login.

    Attributes:
        csrf: what every write of this session has to repeat in a header.
        ends_at: by the monotonic clock that `Sessions` is given.
    """

    session_id: str = field(repr=False)
    role: Role
    csrf: str = field(repr=False)
    ends_at: float


class Sessions:
    """Logins of this process; all end with it."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}

    def open(self, role: Role, *, now: float) -> Session:
        """Begin a session."""
        session = Session(secrets.token_urlsafe(32), role, secrets.token_urlsafe(32), now + SESSION_S)
        while len(self._open) >= MOST_SESSIONS:
            del self._open[next(iter(self._open))]
        self._open[session.session_id] = session
        return session

    def find(self, session_id: str, *, now: float) -> Session | None:
        """Return a session that has not ended."""
        session = self._open.get(session_id)
        if session is not None and session.ends_at <= now:
            del self._open[session_id]
            return None
        return session

    def close(self, session_id: str) -> None:
        """End a session."""
        self._open.pop(session_id, None)


class Attempts:
    """Counts wrong tokens by address, so that nobody guesses quickly."""

    def __init__(self) -> None:
        self._failed: dict[str, deque[float]] = {}

    def wait_s(self, address: str, *, now: float) -> float:
        """Seconds until the address may try again, 0 for now."""
        failed = self._failed.get(address, deque())
        while failed and failed[0] <= now - ATTEMPTS_S:
            failed.popleft()
        return failed[0] + ATTEMPTS_S - now if len(failed) >= MOST_ATTEMPTS else 0.0

    def note(self, address: str, *, now: float) -> None:
        """Count a wrong token."""
        if address not in self._failed and len(self._failed) >= _MOST_ADDRESSES:
            del self._failed[next(iter(self._failed))]
        self._failed.setdefault(address, deque(maxlen=MOST_ATTEMPTS)).append(now)
