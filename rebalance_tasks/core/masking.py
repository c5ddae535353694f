"""Secrets are masked wherever something is shown: repr, JSON, error messages, logs.

Masking errs on the safe side. A text that cannot be read as a URL but looks as if it held credentials loses everything
before its last ``@``; a path is never worth a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

#: What stands for a secret.
MASK: Final = "***"

#: Whole words of a name that make its value a secret; a bare "key" does not, since objects have keys.
_SECRET_NAME: Final = re.compile(
    r"pass(?:word|wd|phrase)|passwd|secret|token|credential|authorization|signature|(?:^|[_-])(?:sig|pwd)$"
    r"|(?:api|access|account|private|shared|sas)[_-]?key|storage_options",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_URL_IN_TEXT: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>\\]+", re.ASCII)
_QUERY_VALUE: Final = re.compile(r"([?&;]([^=&;#]+)=)([^&;#]*)")
#: Here a lone name before the ``@`` is an account or a container; elsewhere it may be a token or a misplaced password.
_NAME_IS_PUBLIC: Final = frozenset(
    {"sftp", "ssh", "ftp", "ftps", "smb", "abfs", "abfss", "az", "adl", "wasb", "wasbs", "hdfs"}
)
#: Here a path may well hold an ``@`` of its own.
_HAS_PATHS: Final = _NAME_IS_PUBLIC | {"file", "s3", "s3a", "gs", "gcs", "memory", "http", "https", "webdav", "local"}


def is_secret_name(name: str) -> bool:
    """Tell whether a setting, option or log field of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def masked_url(url: str) -> str:
    """Return a URL without its password, and without secret query values (``?sig=``).

    ``redis://:s3cret@db:6379/0`` becomes ``redis://:***@db:6379/0``. Text that is not a URL is returned as it is, unless it
    holds an ``@``, since a forgotten scheme does not make a password public.
    """
    found = _SCHEME.match(url)
    scheme = found[1].lower() if found else ""
    start = found.end() if found else 0
    end = _userinfo_end(url, start, scheme)
    if end >= 0:
        name, colon, _ = url[start:end].partition(":")
        shown = f"{name}:{MASK}" if colon else name if scheme in _NAME_IS_PUBLIC else MASK
        url = f"{url[:start]}{shown}{url[end:]}"
    return _QUERY_VALUE.sub(lambda part: part[1] + (MASK if is_secret_name(part[2]) else part[3]), url)


def has_credentials(url: str) -> bool:
    """Tell whether a URL carries a password or a secret query value."""
    return masked_url(url) != url


def masked_text(text: str) -> str:
    """Mask every URL that stands in a text."""
    if "://" not in text:
        return text
    return _URL_IN_TEXT.sub(lambda found: masked_url(found[0]), text)


def masked(value: Any, *, name: str = "") -> Any:  # noqa: ANN401  plain data of any shape, and the same shape back
    """Mask plain data: URLs in its texts, and each text or table under a secret name (numbers are no secrets)."""
    match value:
        case Mapping():
            secret = is_secret_name(name)
            return {key: MASK if secret else masked(item, name=str(key)) for key, item in value.items()}
        case str():
            return MASK if value and is_secret_name(name) else masked_text(value)
        case bytes() if is_secret_name(name):
            return MASK
        case list() | tuple():
            return [masked(item, name=name) for item in value]
        case _:
            return value


def _userinfo_end(url: str, start: int, scheme: str) -> int:
    """Index of the ``@`` that ends the credentials, -1 when there are none."""
    stop = min((at for mark in "/?#" if (at := url.find(mark, start)) >= 0), default=len(url))
    if scheme in _HAS_PATHS:
        in_host = url.rfind("@", start, stop)
        if in_host >= 0 or _port_is_plausible(url):
            return in_host
    # No path to speak of (redis, amqp), no scheme, or a "port" that must be the start of a password with "/" in it.
    return url.rfind("@", start)


def _port_is_plausible(url: str) -> bool:
    try:
        _ = urlsplit(url).port
    except ValueError:
        return False
    return True
