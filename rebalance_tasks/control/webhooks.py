"""One signed POST to one receiver; what goes wrong with it is an answer, not an exception."""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.core.signature import sign

if TYPE_CHECKING:
    from rebalance_tasks.core.events import Event
    from rebalance_tasks.settings.model import Webhook

#: A receiver that does not answer by then is tried again later.
TIMEOUT_S: Final = 10.0
_OK: Final = range(200, 300)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A signed notice goes where the configuration says, nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  urllib's signature
        """Follow none."""


_OPENER: Final = urllib.request.build_opener(_NoRedirects)


def receiver_id(webhook: Webhook) -> str:
    """Name a webhook by its URL without showing it: URLs of webhooks are secrets of their own."""
    return "webhook:" + hashlib.sha256(webhook.url.get_secret_value().encode()).hexdigest()[:12]


def post(webhook: Webhook, event: Event) -> str:
    """Deliver an event; return why it was not taken, '' when it was."""
    body = event.model_dump_json().encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "rebalance-tasks",
        "Rebalance-Event": event.kind,
        "Rebalance-Event-Id": event.event_id,
        "Rebalance-Signature": sign(webhook.secret.get_secret_value(), body, at_s=int(time.time())),
    }
    # Only http and https pass the settings.
    request = urllib.request.Request(webhook.url.get_secret_value(), data=body, headers=headers, method="POST")  # noqa: S310
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            return "" if answer.status in _OK else f"it answered {answer.status}"
    except urllib.error.HTTPError as exc:
        exc.close()
        return f"it answered {exc.code}"
    except (OSError, HTTPException) as exc:
        # The text of an error may hold the URL.
        reason = getattr(exc, "reason", exc)
        return f"it does not answer ({type(reason).__name__})"
