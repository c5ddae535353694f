"""Serve the console: where it may listen, and with which token."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import uvicorn

from rebalance_tasks.console.access import new_token
from rebalance_tasks.console.app import make_app
from rebalance_tasks.core.errors import ConfigurationError

if TYPE_CHECKING:
    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.console.access import Tokens

#: Open pages hold a stream each and would keep a stopping server waiting.
_GRACE_S: Final = 2


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def usable_tokens(tokens: Tokens, host: str, *, may_show: bool) -> tuple[Tokens, str]:
    """Return the tokens to serve with, and a token that was made for this run and has to be shown (else empty).

    Args:
        tokens: as configured.
        host: where to listen.
        may_show: whether a person reads what is printed; a log must not hold a token.

    Raises:
        ConfigurationError: without a token nobody but a person on this machine gets a console.
    """
    if tokens:
        return tokens, ""
    how = (
        "set REBALANCE_CONSOLE_OPERATOR_TOKEN or REBALANCE_CONSOLE_OPERATOR_TOKEN_FILE (and …_VIEWER_… for lookers-on)"
    )
    if not is_loopback(host):
        msg = f"host={host!r} is reached from other machines, so a token is needed: {how}"
        raise ConfigurationError(msg)
    if not may_show:
        msg = f"no token is set, and one made for this run could only be shown on a terminal: {how}"
        raise ConfigurationError(msg)
    made = new_token()
    return replace(tokens, operator=made), made


def serve(client: Rebalancer, tokens: Tokens, *, host: str, port: int, certificate: str = "", key: str = "") -> None:
    """Serve until interrupted.

    Args:
        client: the fleet's rebalancer.
        tokens: see `usable_tokens`.
        host: where to listen.
        port: where to listen.
        certificate: a file for TLS; without one, a proxy in front has to do it.
        key: the certificate's key.
    """
    uvicorn.run(
        make_app(client, tokens),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=certificate or None,
        ssl_keyfile=key or None,
    )
