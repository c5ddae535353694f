"""The URL and ``storage_options`` of a node in Google Cloud Storage, Azure or memory: turned into a bucket, nothing asked yet.

Options are obstore's configuration keys (``account_key``, ``service_account``, …); without them its chains are used: environment,
application default credentials, workload and managed identities. They are held by obstore and shown nowhere: an error here names
fields, never values.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, MemoryStore

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.drivers.gcs_azure.bucket import ObstoreBucket
from rebalance_tasks.drivers.places import bucket_and_prefix

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

    from rebalance_tasks.core.models import NodeDescriptor

#: A store that is away must be noticed well within a task's time limit; obstore's own three minutes are beyond it.
_RETRY: Final[RetryConfig] = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
#: Ours: an endpoint without TLS, as an emulator has.
_ALLOW_HTTP: Final = "allow_http"


@cache
def _memory(name: str) -> MemoryStore:
    """One store for each name, as long as the process lives."""
    del name
    return MemoryStore()


def open_obstore_bucket(node: NodeDescriptor) -> tuple[ObstoreBucket, str]:
    """Return a node's bucket and its prefix. Raises: ConfigurationError."""
    name, prefix = bucket_and_prefix(node)
    scheme = urlsplit(node.url).scheme
    options: dict[str, Any] = dict(node.storage_options)
    client: ClientConfig = {"allow_http": bool(options.pop(_ALLOW_HTTP, False))}
    try:
        store = _open(scheme, name, options, client)
    except (BaseError, TypeError, ValueError) as exc:
        # Its words may hold a value; the names of what was given do not.
        message = (
            f"node {node.node_id!r}: storage_options of {scheme}:// were refused by obstore ({type(exc).__name__}); "
            f"given: {', '.join(sorted(options)) or 'none'}; see its configuration keys for this store"
        )
        raise ConfigurationError(message) from None
    bucket = ObstoreBucket(store, url=f"{scheme}://{name}", name=name, keeps_backslashes=scheme != "az")
    return bucket, prefix


def _open(scheme: str, name: str, options: dict[str, Any], client: ClientConfig) -> ObjectStore:
    match scheme:
        case "gs":
            return GCSStore(name, client_options=client, retry_config=_RETRY, **options)
        case "az":
            return AzureStore(name, client_options=client, retry_config=_RETRY, **options)
        case _:
            if options:
                msg = "a store in memory takes no options"
                raise ValueError(msg)
            return _memory(name)
