"""AWS Signature Version 4 for S3 requests: a function of the request, the credentials and the time.

Every S3 request of `drivers.s3_client` is signed here. botocore signs too, at four times the processor time
([ADR 13](../../docs/adr/0013-s3-requests-are-signed-here.md)); its credential chain is used all the same. Invariant: the hash
of the body is part of what is signed, so an endpoint that checks signatures also checks the bytes.

Source: AWS, "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API Reference.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
#: Of no body.
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs: shown nowhere."""

    access_key: str
    secret_key: str
    token: str | None = None

    def __repr__(self) -> str:
        """Without the secret."""
        return "Credentials(***)"


def quoted(text: str, *, safe: str = "") -> str:
    """Percent-encode as S3 wants it: everything but ``A-Za-z0-9-._~`` and ``safe``."""
    return quote(text, safe=safe)


def query_text(query: Mapping[str, str]) -> str:
    """Return a query string in canonical order and encoding."""
    return "&".join(f"{quoted(name)}={quoted(query[name])}" for name in sorted(query))


@lru_cache(maxsize=64)
def _signing_key(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


@lru_cache(maxsize=8)
def _stamp(second: datetime) -> str:
    return second.strftime("%Y%m%dT%H%M%SZ")


def signed_headers(  # noqa: PLR0913  all that a signature covers, by name
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    *,
    payload_sha256: str,
    credentials: Credentials,
    region: str,
    now: datetime,
) -> dict[str, str]:
    """Return the headers of a request with its signature.

    Args:
        method: HTTP method.
        path: percent-encoded path.
        query: canonical query string (`query_text`).
        headers: lower-case names; ``host`` must be there.
        payload_sha256: hex digest of the body.
        credentials: who asks.
        region: of the endpoint.
        now: aware UTC time of the request.
    """
    stamp = _stamp(now.replace(microsecond=0))
    sent = {**headers, "x-amz-content-sha256": payload_sha256, "x-amz-date": stamp}
    if credentials.token is not None:
        sent["x-amz-security-token"] = credentials.token
    names = sorted(sent)
    listed = ";".join(names)
    canonical = "\n".join(
        (method, path, query, *(f"{name}:{' '.join(sent[name].split())}" for name in names), "", listed, payload_sha256)
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    to_sign = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = _signing_key(credentials.secret_key, stamp[:8], region)
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    sent["authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={listed}, Signature={signature}"
    )
    return sent
