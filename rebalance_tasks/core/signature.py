"""The signature of a webhook: HMAC-SHA256 over time and body, so that neither can be changed nor sent again much later.

The header is ``t=<unix seconds>,v1=<hex>``; what is signed is ``<unix seconds>.<body>``. Source: the scheme that Stripe and
others use for their webhooks, so that receivers find it familiar.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

#: A receiver takes nothing that is older: longer than clocks differ, shorter than a replay is worth.
TOLERANCE_S: Final = 300
_HEADER: Final = re.compile(r"t=(\d{1,12}),v1=([0-9a-f]{64})", re.ASCII)


def sign(secret: str, body: bytes, *, at_s: int) -> str:
    """Return the header that signs a body sent at a time (unix seconds)."""
    return f"t={at_s},v1={_digest(secret, body, at_s)}"


def is_signed(header: str, secret: str, body: bytes, *, now_s: int, tolerance_s: int = TOLERANCE_S) -> bool:
    """Whether a header signs this body, and was made within ``tolerance_s`` of now."""
    found = _HEADER.fullmatch(header)
    if found is None or abs(now_s - int(found[1])) > tolerance_s:
        return False
    return hmac.compare_digest(found[2], _digest(secret, body, int(found[1])))


def _digest(secret: str, body: bytes, at_s: int) -> str:
    return hmac.new(secret.encode(), b"%d.%s" % (at_s, body), hashlib.sha256).hexdigest()
