"""An SFTP node's URL and ``storage_options``: validated, and turned into a line to its server.

A host key that is not known is refused, as ssh does. Secrets are held by what connects and shown nowhere: an error here names
fields, never values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.models import Frozen
from rebalance_tasks.drivers.places import sftp_place
from rebalance_tasks.drivers.sftp.link import SftpAddress, SftpLink

if TYPE_CHECKING:
    from rebalance_tasks.core.models import NodeDescriptor


class SftpOptions(Frozen):
    """``storage_options`` of an ``sftp://`` node.

    Attributes:
        username: else the URL's, else the one this process runs as.
        password: of the user; keys of the agent and of ``~/.ssh`` are tried without it.
        client_key: file of a private key.
        passphrase: of that key.
        known_hosts: file of host keys; ``~/.ssh/known_hosts`` when empty.
    """

    username: str = ""
    password: SecretStr = SecretStr("")
    client_key: str = ""
    passphrase: SecretStr = SecretStr("")
    known_hosts: str = ""


def sftp_link(node: NodeDescriptor) -> tuple[SftpLink, str]:
    """Return the line to a node's server, and its root's absolute path; nothing is connected yet. Raises: ConfigurationError."""
    host, port, *components = sftp_place(node)
    try:
        options = SftpOptions.model_validate(dict(node.storage_options))
    except ValidationError as exc:
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors(include_input=False)
        )
        message = (
            f"node {node.node_id!r}: storage_options are wrong: {wrong}; known: {', '.join(SftpOptions.model_fields)}"
        )
        raise ConfigurationError(message) from None
    more: dict[str, Any] = {
        "username": options.username or urlsplit(node.url).username,
        "password": options.password.get_secret_value(),
        "client_keys": [options.client_key] if options.client_key else None,
        "passphrase": options.passphrase.get_secret_value(),
        "known_hosts": options.known_hosts,
    }
    given = {name: value for name, value in more.items() if value}
    return SftpLink(SftpAddress(host, int(port), given)), "/" + "/".join(components)
