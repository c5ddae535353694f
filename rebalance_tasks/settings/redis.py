"""One spelling of a Redis URL for the state, the broker and the results, and what Celery makes of it.

The state speaks redis-py, the broker kombu, the results Celery's own backend, and each spells TLS, Sentinel and sockets in
its own way. Here a URL is read once; `rebalance_tasks.store.connection` and `rebalance_tasks.celery` build on it.

=============================================  ==================================================================
``redis://[user:password@]host[:port]/db``     plain
``rediss://…?ssl_ca_certs=/etc/ca.pem``        TLS; the certificate is checked unless ``ssl_cert_reqs=none``
``unix:///run/redis.sock?db=0``                a socket
``sentinel://h1[:port],h2[:port]/master/db``   whatever the Sentinels h1, h2 … say is the master of that name
``sentinels://…?ssl_ca_certs=/etc/ca.pem``     the same by TLS, to the Sentinels and to the servers that they name
=============================================  ==================================================================
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.backoff import NoBackoff
from redis.retry import Retry

from rebalance_tasks.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.settings.model import Service

SENTINEL_PORT: Final = 26_379
#: How long one Sentinel may take to answer before the next is asked.
SENTINEL_TIMEOUT_S: Final = 2.0
#: A broker or result server that hangs surfaces as an error by then; its blocking reads last a second.
CELERY_SOCKET_TIMEOUT_S: Final = 30.0
_SCHEMES: Final = ("redis", "rediss", "unix", "sentinel", "sentinels")
_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})
_TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS: Final = frozenset({*_TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname"})
_CHECKS: Final = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
    # kombu's and Celery's words for the same.
    "CERT_REQUIRED": ssl.CERT_REQUIRED,
    "CERT_OPTIONAL": ssl.CERT_OPTIONAL,
    "CERT_NONE": ssl.CERT_NONE,
}
_WORDS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A Redis URL, taken apart.

    Attributes:
        url: for redis-py, without the options kept below (empty for Sentinel).
        sentinels: (host, port) of each Sentinel; empty when the server is named itself.
        master: the name under which the Sentinels know it.
        tls: keyword arguments of a TLS connection; empty without TLS.
        sentinel_login: user name and password for the Sentinels themselves.
    """

    scheme: str
    url: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    db: int = 0
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""
    tls: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_login: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def sentinel_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the connections to the Sentinels."""
        return {
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
            # redis-py would ask a dead one four times, over seven seconds, before it asks the next.
            "retry": Retry(NoBackoff(), 0),
            **self.connection_kwargs,
            **self.sentinel_login,
        }

    @property
    def connection_kwargs(self) -> dict[str, Any]:
        """Keyword arguments that a connection needs for TLS; empty without."""
        return {"ssl": True, **self.tls} if self.tls else {}

    @property
    def celery_tls(self) -> dict[str, Any]:
        """TLS arguments as kombu and Celery want them; empty without TLS."""
        return {**self.tls, "ssl_cert_reqs": _CHECKS[self.tls["ssl_cert_reqs"]]} if self.tls else {}


def is_redis_url(url: str) -> bool:
    """Tell whether a URL has one of the schemes read here."""
    return url.partition("://")[0] in _SCHEMES


def read_address(url: str) -> RedisAddress:
    """Take a Redis URL apart.

    Raises:
        ValueError: it is none; the message says how to write one, and holds nothing of the URL.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES or not rest:
        msg = "is not a Redis URL; write redis://[:password@]host[:port][/db], rediss://… (TLS), unix:///path or sentinel://h1,h2/master/db"
        raise ValueError(msg)
    if scheme in {"sentinel", "sentinels"}:
        return _sentinel(scheme, rest)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        msg = "has no valid port; a password with special characters must be percent-encoded (@ is %40, / is %2F)"
        raise ValueError(msg) from None
    query = dict(parse_qsl(parts.query))
    tls_query = {name: query.pop(name) for name in list(query) if name.startswith("ssl_")}
    if tls_query and scheme != "rediss":
        msg = "has ssl_… options, which only rediss:// takes; write rediss://…"
        raise ValueError(msg)
    return RedisAddress(
        scheme=scheme,
        url=parts._replace(query=urlencode(query)).geturl() if tls_query else url,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        db=_db(query.get("db") or ("" if scheme == "unix" else parts.path.strip("/"))),
        tls=_tls(tls_query) if scheme == "rediss" else {},
    )


def check_redis_url(url: str) -> str:
    """Validate the URL of the state. Raises: ValueError."""
    read_address(url)
    return url


def check_celery_url(url: str) -> str:
    """Validate the URL of a broker or result backend: Redis as above, or whatever else Celery knows. Raises: ValueError."""
    if "://" not in url:
        msg = "is not a URL; write for example redis://127.0.0.1:6379/0"
        raise ValueError(msg)
    if is_redis_url(url):
        read_address(url)
    return url


def check_files(address: RedisAddress) -> RedisAddress:
    """Return the address if the files it names are there. Raises: ConfigurationError."""
    for name in _TLS_FILES:
        path = address.tls.get(name)
        if path is not None and not Path(path).is_file():
            msg = f"{name}={path!r} of a rediss:// URL is not a file that can be read here; give the path of a PEM file"
            raise ConfigurationError(msg)
    return address


def celery_conf(settings: Service) -> dict[str, Any]:
    """Return the part of Celery's configuration that follows from the URLs and from ``message_prefix``.

    ``broker_transport_options`` is to be merged with the app's own.

    Raises:
        ConfigurationError: a URL names a certificate that is not there.
    """
    shared: dict[str, Any] = {}
    if settings.message_prefix:
        shared["global_keyprefix"] = f"{settings.message_prefix}:"
    broker, broker_options, broker_tls = _for_celery(settings.broker_url)
    backend, backend_options, backend_tls = _for_celery(settings.result_backend)
    conf: dict[str, Any] = {
        "broker_url": broker,
        "result_backend": backend,
        "broker_transport_options": {**broker_options, **shared},
        "result_backend_transport_options": {**backend_options, **shared},
        "redis_socket_timeout": CELERY_SOCKET_TIMEOUT_S,
        "redis_socket_connect_timeout": CELERY_SOCKET_TIMEOUT_S,
    }
    if broker_tls:
        conf["broker_use_ssl"] = broker_tls
    if backend_tls:
        conf["redis_backend_use_ssl"] = backend_tls
    return conf


def redbeat_conf(settings: Service) -> dict[str, Any]:
    """Return the part of the configuration that redbeat alone reads, which knows neither our Sentinel URLs nor where the state lies.

    Raises:
        ConfigurationError: the URL names a certificate that is not there.
    """
    options: dict[str, Any] = {"socket_timeout": CELERY_SOCKET_TIMEOUT_S}
    address = check_files(read_address(settings.redis_url))
    if not address.sentinels:
        return {"redbeat_redis_url": settings.redis_url, "redbeat_redis_options": options}
    login = {"username": address.username, "password": address.password}
    options |= {
        "sentinels": list(address.sentinels),
        "service_name": address.master,
        "db": address.db,
        "sentinel_kwargs": address.sentinel_kwargs,
        **{name: value for name, value in login.items() if value is not None},
    }
    tls = {"redbeat_redis_use_ssl": dict(address.tls)} if address.tls else {}
    return {"redbeat_redis_url": "redis-sentinel", "redbeat_redis_options": options, **tls}


def _for_celery(url: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(URL as Celery spells it, transport options, TLS arguments)."""
    if not is_redis_url(url):
        return url, {}, {}
    address = check_files(read_address(url))
    match address.scheme:
        case "sentinel" | "sentinels":
            login = url.partition("://")[2].rpartition("@")[0]
            at = f"{login}@" if login else ""
            each = [f"sentinel://{at}{_host(host)}:{port}/{address.db}" for host, port in address.sentinels]
            options = {"master_name": address.master, "sentinel_kwargs": address.sentinel_kwargs}
            return ";".join(each), options, address.celery_tls
        case "unix":
            parts = urlsplit(url)
            login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
            return f"redis+socket://{login}{parts.path}?virtual_host={address.db}", {}, {}
        case "rediss":
            return address.url, {}, address.celery_tls
        case _:
            return address.url, {}, {}


def _sentinel(scheme: str, rest: str) -> RedisAddress:
    if "://" in rest:
        msg = "names its Sentinels one by one; write sentinel://[user:password@]h1:26379,h2:26379/master/db"
        raise ValueError(msg)
    login, _, place = rest.rpartition("@")
    place, _, query = place.partition("?")
    hosts, _, path = place.partition("/")
    master, _, db = path.partition("/")
    if not hosts or not master:
        msg = "does not name hosts and master; write sentinel://h1:26379,h2:26379/master/db"
        raise ValueError(msg)
    options = dict(parse_qsl(query))
    tls_query = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
    if tls_query and scheme != "sentinels":
        msg = "has ssl_… options, which sentinel:// does not take; write sentinels://… for TLS to Sentinels and servers"
        raise ValueError(msg)
    unknown = sorted(options.keys() - _SENTINEL_OPTIONS)
    if unknown:
        msg = f"has the unknown option {unknown[0]}; sentinel:// takes {' and '.join(sorted(_SENTINEL_OPTIONS))}"
        raise ValueError(msg)
    username, _, password = login.partition(":")
    return RedisAddress(
        scheme=scheme,
        url="",
        username=unquote(username) or None,
        password=unquote(password) or None,
        db=_db(db),
        sentinels=tuple(_host_and_port(host) for host in hosts.split(",")),
        master=master,
        tls=_tls(tls_query) if scheme == "sentinels" else {},
        sentinel_login={name.removeprefix("sentinel_"): value for name, value in options.items()},
    )


def _host_and_port(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        msg = "has a Sentinel without host, or with a port that is no number; write sentinel://h1:26379,h2:26379/master/db"
        raise ValueError(msg)
    return host, port or SENTINEL_PORT


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _db(text: str) -> int:
    if text and not text.isdecimal():
        msg = "has a database that is no number; write …/0"
        raise ValueError(msg)
    return int(text or 0)


def _tls(query: Mapping[str, str]) -> dict[str, Any]:
    unknown = sorted(query.keys() - _TLS_OPTIONS)
    if unknown:
        msg = f"has the unknown option {unknown[0]}; rediss:// takes {', '.join(sorted(_TLS_OPTIONS))}"
        raise ValueError(msg)
    found: dict[str, Any] = {name: query[name] for name in _TLS_FILES if name in query}
    checks, hostname = query.get("ssl_cert_reqs", "required"), query.get("ssl_check_hostname", "true").lower()
    if checks not in _CHECKS:
        msg = "has an ssl_cert_reqs that is none of required, optional, none"
        raise ValueError(msg)
    if hostname not in _WORDS:
        msg = "has an ssl_check_hostname that is neither true nor false"
        raise ValueError(msg)
    found["ssl_cert_reqs"] = checks.removeprefix("CERT_").lower()
    # Without a certificate that is checked there is no name to check either; ssl refuses the combination.
    found["ssl_check_hostname"] = _WORDS[hostname] and found["ssl_cert_reqs"] != "none"
    return found
