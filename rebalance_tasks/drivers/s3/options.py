"""An S3 node's URL and ``storage_options``: validated, and turned into a bucket.

Credentials come from ``storage_options`` or, when they are not there, from botocore's chain (environment, profile, web identity,
container, instance). They are held by what signs and shown nowhere: an error here names fields, never values.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.models import Frozen
from rebalance_tasks.drivers.places import bucket_and_prefix
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from rebalance_tasks.drivers.s3.http import S3Endpoint
from rebalance_tasks.drivers.s3.signing import Credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.credentials import RefreshableCredentials
    from botocore.session import Session

    from rebalance_tasks.core.models import NodeDescriptor

#: What an endpoint without regions signs for.
DEFAULT_REGION: Final = "us-east-1"


class S3Options(Frozen):
    """``storage_options`` of an ``s3://`` node.

    Attributes:
        endpoint_url: of a compatible store; AWS' own when empty.
        region: what requests are signed for; else what the environment or the profile says.
        access_key_id: with ``secret_access_key``, instead of the usual chain.
        session_token: of temporary credentials.
        profile: of the shared configuration files.
        addressing_style: the bucket in the path or in the host; by default in the host at AWS only.
        allow_versions: use a bucket that keeps old versions or locks objects, where deleting frees nothing.
        free: ``trash`` copies a source into the trash before it is deleted, ``delete`` deletes exactly the version that was
            copied at once (where the endpoint honours the condition): half the requests, and nothing to bring back.
    """

    endpoint_url: str = ""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: SecretStr = SecretStr("")
    session_token: SecretStr = SecretStr("")
    profile: str = ""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    allow_versions: bool = False
    free: Literal["trash", "delete"] = "trash"


def options_of(node: NodeDescriptor) -> S3Options:
    """Read a node's ``storage_options``. Raises: ConfigurationError."""
    try:
        options = S3Options.model_validate(dict(node.storage_options))
    except ValidationError as exc:
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors(include_input=False)
        )
        known = ", ".join(S3Options.model_fields)
        message = f"node {node.node_id!r}: storage_options are wrong: {wrong}; known: {known}"
        raise ConfigurationError(message) from None
    if bool(options.access_key_id) != bool(options.secret_access_key.get_secret_value()):
        message = f"node {node.node_id!r}: storage_options need both access_key_id and secret_access_key, or neither"
        raise ConfigurationError(message)
    if options.endpoint_url and urlsplit(options.endpoint_url).scheme not in {"http", "https"}:
        message = (
            f"node {node.node_id!r}: storage_options.endpoint_url is no http URL; write for example https://s3.example"
        )
        raise ConfigurationError(message)
    return options


def endpoint_of(node: NodeDescriptor, options: S3Options) -> tuple[str, str]:
    """Return (endpoint URL, region). Raises: ConfigurationError."""
    region = options.region or _session(node.node_id, options).get_config_variable("region") or DEFAULT_REGION
    return options.endpoint_url.rstrip("/") or f"https://s3.{region}.amazonaws.com", region


def open_s3_bucket(node: NodeDescriptor) -> tuple[S3Bucket, str]:
    """Return a node's bucket and its prefix; nothing is asked yet. Raises: ConfigurationError."""
    name, prefix = bucket_and_prefix(node)
    options = options_of(node)
    url, region = endpoint_of(node, options)
    aws = not options.endpoint_url
    virtual = options.addressing_style == "virtual" or (options.addressing_style == "auto" and aws and "." not in name)
    endpoint = S3Endpoint(url, region=region, credentials=_credentials(node, options), virtual_hosts=virtual)
    return S3Bucket(endpoint, name, prefix=prefix, allow_versions=options.allow_versions), prefix


def _credentials(node: NodeDescriptor, options: S3Options) -> Callable[[], Credentials]:
    if options.access_key_id:
        token = options.session_token.get_secret_value() or None
        fixed = Credentials(options.access_key_id, options.secret_access_key.get_secret_value(), token)
        return lambda: fixed

    @cache
    def chain() -> RefreshableCredentials:
        """Asked when the first request is made: the last link of the chain is a question to the network."""
        found = _session(node.node_id, options).get_credentials()
        if found is None:
            message = (
                f"node {node.node_id!r}: no credentials for {node.url!r}; give storage_options = {{ access_key_id = "
                '"${S3_KEY}", secret_access_key = "${S3_SECRET}" }, or a profile, or set them in the environment'
            )
            raise ConfigurationError(message)
        return found

    def frozen() -> Credentials:
        """Renewed by botocore when they are about to expire."""
        now = chain().get_frozen_credentials()
        return Credentials(now.access_key, now.secret_key, now.token)

    return frozen


def _session(node_id: str, options: S3Options) -> Session:
    # Heavy, and needed by nobody who states keys and region.
    try:
        from botocore.session import Session  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        message = f"node {node_id!r}: botocore is not installed; install rebalance-tasks[s3], or state region and keys"
        raise ConfigurationError(message) from exc
    return Session(profile=options.profile or None)
