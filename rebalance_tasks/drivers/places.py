"""Which place a remote node's URL names: read without the libraries that would connect to it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from rebalance_tasks.core.errors import ConfigurationError

if TYPE_CHECKING:
    from rebalance_tasks.core.models import NodeDescriptor


def bucket_and_prefix(node: NodeDescriptor) -> tuple[str, str]:
    """Return bucket and prefix of an ``s3://bucket/prefix`` URL (or one of another store). Raises: ConfigurationError."""
    parts = urlsplit(node.url)
    prefix = unquote(parts.path).strip("/")
    bad = not parts.netloc or any(part in {"", ".", ".."} for part in prefix.split("/") if prefix)
    if bad or parts.query or parts.fragment:
        message = (
            f"node {node.node_id!r}: url {node.url!r} names no place; write {parts.scheme}://bucket or "
            f"{parts.scheme}://bucket/some/prefix ('?' and '#' as %3F and %23)"
        )
        raise ConfigurationError(message)
    return parts.netloc, prefix


def sftp_place(node: NodeDescriptor) -> tuple[str, ...]:
    """Return host, port and path components. Raises: ConfigurationError."""
    parts = urlsplit(node.url)
    path = unquote(parts.path)
    try:
        port = parts.port or 22
    except ValueError:
        port = 0
    components = [component for component in path.split("/") if component]
    if (
        not parts.hostname
        or not port
        or not path.startswith("/")
        or parts.query
        or parts.fragment
        or ".." in components
    ):
        message = (
            f"node {node.node_id!r}: url {node.url!r} names no place; write sftp://user@host:22/absolute/path "
            "('?' and '#' as %3F and %23)"
        )
        raise ConfigurationError(message)
    return (parts.hostname, str(port), *components)
