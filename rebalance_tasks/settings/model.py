"""The models behind `rebalance_tasks.settings`: what a fleet's settings are, and what may not stand together.

Credentials live here and nowhere else (invariant 13): everything that shows settings (repr, JSON, `Settings.public`)
masks them, and a node's URL, which is shown everywhere, may not hold any.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_serializer

from rebalance_tasks.core.errors import UnknownNode
from rebalance_tasks.core.events import NOTICES, EventKind
from rebalance_tasks.core.fidelity import Attribute
from rebalance_tasks.core.masking import has_credentials, masked, masked_url
from rebalance_tasks.core.models import Frozen, Identifier, Money, NodeDescriptor
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.pacing.turns import HIGHEST_PRIORITY
from rebalance_tasks.core.placement.rules import DEFAULT_RULE, RuleName
from rebalance_tasks.core.routes import BrokerQueues, share_a_host
from rebalance_tasks.core.rule import Rule
from rebalance_tasks.settings.redis import check_celery_url, check_redis_url

if TYPE_CHECKING:
    from collections.abc import Iterable

Mode: TypeAlias = Literal["observe", "auto"]
Locator: TypeAlias = Literal["union", "crush", "catalogue"]

#: Endings of files that can be read as an inventory.
INVENTORY_FILES: Final = frozenset({".parquet", ".pq", ".arrow", ".feather", ".ipc", ".csv"})
DEFAULT_REDIS_URL: Final = "redis://127.0.0.1:6379/0"
#: The URLs of the ``[fleet]`` table; the two others default to the first.
FLEET_URLS: Final = ("redis_url", "broker_url", "result_backend")
#: A first part of keys, or none: no separator at its end (one is put there), nothing that a pattern would read.
_PREFIX_PATTERN: Final = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$"
#: What an installed package offers.
_PROVIDER: Final = r"provider:[A-Za-z0-9._-]{1,128}"


def _check_node(node: NodeDescriptor) -> NodeDescriptor:
    if not node.url:
        msg = "url is missing; write for example file:///srv/disk1"
        raise ValueError(msg)
    for name, url in (("url", node.url), ("remote_url", node.remote_url)):
        if has_credentials(url):
            msg = (
                f"{name} must not hold credentials, since URLs are shown and logged; give them as "
                'storage_options = { password = "${DISK_PASSWORD}" }'
            )
            raise ValueError(msg)
        if "${" in url:
            msg = f"${{…}} does not expand in a node's {name}, only in storage_options and the fleet's URLs"
            raise ValueError(msg)
    if node.remote_url and not node.queue:
        msg = (
            "remote_url is how hosts reach the node that do not serve its queue, and it names none: every host reaches "
            'it at its url; add for example queue = "host-b", or leave remote_url out'
        )
        raise ValueError(msg)
    if node.remote_url.startswith(("/", "file:")):
        msg = f"remote_url {node.remote_url!r} is a path, which names another place on each host; write for example sftp://host-b/srv/disk1"
        raise ValueError(msg)
    return node


def _check_inventory(source: str) -> str:
    if source == "nodes" or re.fullmatch(_PROVIDER, source) or Path(source).suffix.lower() in INVENTORY_FILES:
        return source
    known = ", ".join(sorted(INVENTORY_FILES))
    msg = f"should be 'nodes', 'provider:<name>' or the path of a file that ends in {known}"
    raise ValueError(msg)


def _check_catalogue(source: str, info: ValidationInfo) -> str:
    if source == "redis":
        return source
    if not re.fullmatch(_PROVIDER, source):
        msg = "should be 'redis' or 'provider:<name>'"
        raise ValueError(msg)
    locator = info.data.get("locator")
    if locator != "catalogue":
        msg = f'a provider says where objects are only with locator = "catalogue"; locator is {locator!r}: change the one, or leave the other out'
        raise ValueError(msg)
    return source


def _one_of(words: tuple[str, ...], source: str) -> str:
    if source in words or re.fullmatch(_PROVIDER, source):
        return source
    msg = f"should be {', '.join(map(repr, words))} or 'provider:<name>'"
    raise ValueError(msg)


def _check_survey_dir(place: str) -> str:
    if place in {"auto", "none"} or place.startswith("/"):
        return place
    msg = "should be 'auto', 'none' or an absolute path"
    raise ValueError(msg)


def _check_distinct(nodes: tuple[NodeDescriptor, ...]) -> tuple[NodeDescriptor, ...]:
    twice = [node_id for node_id, count in Counter(node.node_id for node in nodes).items() if count > 1]
    if twice:
        msg = f"node_id {twice[0]!r} is used twice; every node needs its own"
        raise ValueError(msg)
    by_url: dict[str, list[NodeDescriptor]] = {}
    for node in nodes:
        others = by_url.setdefault(node.url.rstrip("/"), [])
        for other in others:
            if share_a_host(other, node):
                msg = (
                    f"nodes {other.node_id!r} and {node.node_id!r} have the same url {node.url!r}; one place can be one "
                    "node only (on two hosts: give each node the queue of its own)"
                )
                raise ValueError(msg)
        others.append(node)
    return nodes


def _check_prices(prices: tuple[Price, ...]) -> tuple[Price, ...]:
    twice = [pair for pair, count in Counter((p.from_region, p.to_region) for p in prices).items() if count > 1]
    if twice:
        msg = f"the price from {twice[0][0]!r} to {twice[0][1]!r} is given twice"
        raise ValueError(msg)
    return prices


class Price(Frozen):
    """What 10⁹ bytes cost from one region to another; overrides a node's ``egress_cost_per_gb``."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    from_region: str = Field(alias="from", min_length=1)
    to_region: str = Field(alias="to", min_length=1)
    per_gb: Money


def _check_webhook_url(url: SecretStr) -> SecretStr:
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = "must be a URL that begins with https:// (or http://, within your own network)"
        raise ValueError(msg)
    return url


class Webhook(Frozen):
    """A receiver of notices.

    Attributes:
        url: gets a signed POST for each event; hidden, since many receivers are known by nothing but their URL.
        secret: signs what is sent; at least 16 characters.
        events: which ones (`rebalance_tasks.core.events.EventKind`).
    """

    url: Annotated[SecretStr, AfterValidator(_check_webhook_url)]
    secret: SecretStr = Field(min_length=16)
    events: tuple[EventKind, ...] = NOTICES


def _listed(value: object) -> object:
    """Names with commas between them, as a variable of the environment holds them."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class Service(Frozen):
    """How the fleet is run; the part that the ``[fleet]`` table and `Settings` share."""

    mode: Mode = "observe"
    locator: Locator = "union"
    catalogue: Annotated[str, AfterValidator(_check_catalogue)] = "redis"
    placement_rule: RuleName = DEFAULT_RULE
    redis_url: Annotated[str, AfterValidator(check_redis_url)] = Field(default=DEFAULT_REDIS_URL, repr=False)
    broker_url: Annotated[str, AfterValidator(check_celery_url)] = Field(
        default_factory=lambda given: given["redis_url"], repr=False, validate_default=False
    )
    result_backend: Annotated[str, AfterValidator(check_celery_url)] = Field(
        default_factory=lambda given: given["redis_url"], repr=False, validate_default=False
    )
    key_prefix: str = Field(default="rebalance", min_length=1, pattern=_PREFIX_PATTERN)
    message_prefix: str = Field(default="", pattern=_PREFIX_PATTERN)
    priority: int | None = Field(default=None, ge=1, le=HIGHEST_PRIORITY)
    inventory: Annotated[str, AfterValidator(_check_inventory)] = "nodes"
    surveys: Literal["auto", "here", "tasks"] = "auto"
    survey_dir: Annotated[str, AfterValidator(_check_survey_dir)] = "auto"
    must_carry: Annotated[tuple[Attribute, ...], BeforeValidator(_listed)] = ()


class Gravity(Frozen):
    """Where the measures behind gravity come from when the inventory brings none of its own; each may be ``provider:NAME``.

    Attributes:
        access: ``none``, ``times``, ``atime`` (the nodes' own access times), ``fleet`` (what went through ``fleet://``), or the path of an
            S3 access log.
        colocation: ``none``, ``folder`` or ``dataset``.
        egress: ``nodes``, their prices and those of ``[[prices]]``.
        latency: ``nodes``, as configured or measured.
        compliance: ``rules``, the regions they require.
    """

    access: Annotated[str, Field(min_length=1)] = "none"
    colocation: Annotated[str, AfterValidator(partial(_one_of, ("none", "folder", "dataset")))] = "none"
    egress: Annotated[str, AfterValidator(partial(_one_of, ("nodes",)))] = "nodes"
    latency: Annotated[str, AfterValidator(partial(_one_of, ("nodes",)))] = "nodes"
    compliance: Annotated[str, AfterValidator(partial(_one_of, ("rules",)))] = "rules"

    @property
    def provided(self) -> dict[str, str]:
        """Dimension → ``provider:NAME``, of those that a provider answers."""
        return {name: source for name, source in self if re.fullmatch(_PROVIDER, source)}

    @property
    def wants_access_times(self) -> bool:
        """Whether a survey is to ask each node when its objects were read last."""
        return self.access == "atime"

    @property
    def follows_listing(self) -> bool:
        """Whether equal listings mean equal measures: what is counted elsewhere, and what a host knows, changes by itself."""
        return self.access in {"none", "times"} and not self.provided


class Contents(Frozen):
    """The tables beside ``[fleet]``; the part that the document and `Settings` share."""

    options: RebalancerOptions = RebalancerOptions()
    nodes: Annotated[
        tuple[Annotated[NodeDescriptor, AfterValidator(_check_node)], ...], AfterValidator(_check_distinct)
    ] = ()
    prices: Annotated[tuple[Price, ...], AfterValidator(_check_prices)] = ()
    rules: tuple[Rule, ...] = ()
    gravity: Gravity = Gravity()
    webhooks: tuple[Webhook, ...] = ()


class _FleetTable(Service):
    """``[fleet]``."""

    name: Identifier = "default"


class Document(Contents):
    """``rebalance.toml`` with the environment laid over it; its field paths are those of error messages."""

    fleet: _FleetTable = _FleetTable()


class Settings(Service, Contents):
    """Everything a process needs to serve one fleet.

    Attributes:
        fleet: the fleet's name, part of every Redis key.
        mode: ``observe`` plans and moves nothing; ``auto`` carries its plans out.
        locator: how readers find an object.
        catalogue: who keeps the catalogue, where that is the locator: Redis, or the host's own by a provider.
        placement_rule: how CRUSH chooses nodes; to change it moves the computed home of nearly every object.
        redis_url: where the truth lives; ``broker_url`` and ``result_backend`` default to it.
        key_prefix: first part of every key of the state.
        message_prefix: first part of every key that Celery makes on the broker and the result backend; none by default.
        priority: how much time it gets at workers that it shares with other fleets, beside theirs; none by default: it shares none.
        inventory: where the list of objects comes from.
        surveys: whether a check lists the nodes itself or has tasks do it, each on its node's queue.
        survey_dir: where this host keeps what its surveys saw, so that what did not change is not listed again, and what fits neither into memory
            nor into Redis.
        must_carry: what no object may lose when it moves; a pool whose nodes cannot promise it is refused.
        prices: egress prices between regions.
        gravity: where measures of use come from.
        rules: what objects need, by key pattern; the first that says something counts.
        webhooks: who is told what happens.
        config_path: the file that was read, if any.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    fleet: Identifier = "default"
    config_path: Path | None = None

    @field_serializer("redis_url", "broker_url", "result_backend")
    def _mask_url(self, url: str) -> str:
        return masked_url(url)

    @field_serializer("nodes")
    def _mask_nodes(self, nodes: tuple[NodeDescriptor, ...]) -> list[dict[str, Any]]:
        return [_public_node(node) for node in nodes]

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Show URLs masked (storage_options are never shown)."""
        yield from super().__repr_args__()
        yield from ((name, masked_url(getattr(self, name))) for name in FLEET_URLS)

    def node(self, node_id: str) -> NodeDescriptor:
        """Return a configured node. Raises: UnknownNode."""
        for node in self.nodes:
            if node.node_id == node_id:
                return node
        raise UnknownNode(node_id, f"in fleet {self.fleet!r}")

    @property
    def price_matrix(self) -> dict[tuple[str, str], Decimal]:
        """(from, to) → money for 10⁹ bytes, between zones or else regions."""
        return {(price.from_region, price.to_region): price.per_gb for price in self.prices}

    @property
    def broker_queues(self) -> BrokerQueues:
        """The names of its queues on the broker: they bear the fleet's where it shares workers."""
        return BrokerQueues("" if self.priority is None else self.fleet)

    def public(self) -> dict[str, Any]:
        """Return plain JSON data without secrets, with the digest; safe to print, log and publish."""
        return {**self.model_dump(mode="json"), "digest": self.digest()}

    def digest(self) -> str:
        """Return 16 hex digits over what the workers of a fleet must agree on.

        That is fleet, mode, locator, catalogue, placement rule, inventory, surveys, what must be carried, options, gravity, nodes, prices and rules, and whether it shares workers. Connection URLs,
        storage_options and the file's path may differ from machine to machine; the order of nodes and prices means nothing.
        """
        agreed = {
            "fleet": self.fleet,
            "mode": self.mode,
            "locator": self.locator,
            "catalogue": self.catalogue,
            "placement_rule": self.placement_rule,
            "inventory": self.inventory,
            "surveys": self.surveys,
            "must_carry": sorted(self.must_carry),
            "options": self.options.model_dump(),
            "nodes": [
                node.model_dump(exclude={"storage_options"})
                for node in sorted(self.nodes, key=lambda node: node.node_id)
            ],
            "gravity": self.gravity.model_dump(),
            "rules": [rule.model_dump(mode="json") for rule in self.rules],
            "prices": sorted((price.from_region, price.to_region, _canonical(price.per_gb)) for price in self.prices),
            # Only where it is so: an older release, which knows of no such thing, is to come to the same digest.
            **({} if self.priority is None else {"shares_workers": True}),
        }
        text = json.dumps(agreed, sort_keys=True, separators=(",", ":"), default=_canonical)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _public_node(node: NodeDescriptor) -> dict[str, Any]:
    return cast("dict[str, Any]", masked(node.model_dump(mode="json")))


def _canonical(value: object) -> str:
    """One text for equal values: 100, 100.0 and 100.00 are the same money."""
    match value:
        case Decimal():
            return format(value.normalize(), "f")
        case timedelta():
            return f"{value // timedelta(microseconds=1)}us"
        case _:
            msg = f"{type(value).__name__} has no canonical form"
            raise TypeError(msg)
