"""A node that any fsspec file system serves: its URL and ``storage_options``, read without connecting.

``fsspec+<protocol>://…`` names such a node; the prefix may be left out for a protocol that no driver of our own has. What the
options hold besides ours goes to the file system as it is: it may be a secret, so an error here names fields, never values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.masking import masked_url

if TYPE_CHECKING:
    from rebalance_tasks.core.models import NodeDescriptor

#: Says that fsspec serves a URL, whatever driver of our own there is.
PREFIX: Final = "fsspec+"
#: The operator's word that nobody but the fleet creates, writes or removes objects on the node while a job runs.
SOLE_WRITER: Final = "sole_writer"
#: Options that say where a server is, so that two nodes with the same path on two servers are two places.
_WHERE: Final = ("base_url", "endpoint_url", "host", "port", "account_name", "instance")


@dataclass(frozen=True, slots=True)
class FsspecPlace:
    """Where a node is.

    Attributes:
        protocol: as fsspec knows it.
        url: without the prefix.
        options: of the file system; hold the secrets.
        sole_writer: whether the operator has given their word.
    """

    protocol: str
    url: str
    options: dict[str, Any]
    sole_writer: bool

    def __repr__(self) -> str:
        """Without the options."""
        return masked_url(self.url)


def protocol_of(url: str) -> str:
    """Return the protocol that fsspec is asked for; empty where the text is no URL."""
    found = re.match(r"(?:fsspec\+)?([A-Za-z][A-Za-z0-9+.-]*)://", url)
    return found[1].lower() if found else ""


def fsspec_place(node: NodeDescriptor) -> FsspecPlace:
    """Read a node's URL and options. Raises: ConfigurationError."""
    protocol, url = protocol_of(node.url), node.url.removeprefix(PREFIX)
    parts = urlsplit(url)
    path = unquote(parts.path)
    if (
        not protocol
        or "::" in url
        or not (parts.netloc or path.strip("/"))
        or parts.query
        or parts.fragment
        or {".", ".."} & set(path.split("/"))
    ):
        message = (
            f"node {node.node_id!r}: url {masked_url(node.url)!r} names no place; write {PREFIX}protocol://host/path without '::', '..', "
            "'?' and '#'"
        )
        raise ConfigurationError(message)
    options = dict(node.storage_options)
    sole_writer = options.pop(SOLE_WRITER, False)
    if not isinstance(sole_writer, bool):
        message = f"node {node.node_id!r}: storage_options.{SOLE_WRITER} is neither true nor false"
        raise ConfigurationError(message)
    return FsspecPlace(protocol, url, options, sole_writer)


def comparable(node: NodeDescriptor) -> tuple[str, ...]:
    """Return the place as components, nested ones beginning with those of the outer. Raises: ConfigurationError."""
    place = fsspec_place(node)
    parts = urlsplit(place.url)
    where = "|".join(str(place.options.get(name, "")) for name in _WHERE)
    host = parts.netloc.rpartition("@")[2]
    components = [component for component in unquote(parts.path).split("/") if component]
    return ("fsspec", place.protocol, where, host, *components)
