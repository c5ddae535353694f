"""From a node's URL to its driver, and the check that no two nodes share a place.

A new kind of store joins by one entry in `_SCHEMES`. URLs come from the process' own configuration only, never from a message
(invariant 13). Keeps: two nodes never hold the same object twice, since neither's root lies in the other's.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.fidelity import lost
from rebalance_tasks.core.pacing.inflight import LARGE_AT_ONCE
from rebalance_tasks.core.routes import seen_from, share_a_host, shared_queues
from rebalance_tasks.drivers import fidelity
from rebalance_tasks.drivers.burst import NoBurst
from rebalance_tasks.drivers.driver_many import DriverMany
from rebalance_tasks.drivers.fsspec import options as fsspec_options
from rebalance_tasks.drivers.lanes import MOST_AT_ONCE
from rebalance_tasks.drivers.local.burst import LocalBurst, free_held
from rebalance_tasks.drivers.local.compiled import compiled_rows
from rebalance_tasks.drivers.local.direct import DIRECT_FROM_BYTES
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.object_stores.burst import ObjectBurst
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.places import bucket_and_prefix, sftp_place
from rebalance_tasks.drivers.s3.options import endpoint_of, open_s3_bucket, options_of
from rebalance_tasks.drivers.small_burst import MOST_BYTES, SmallBurst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rebalance_tasks.core.fidelity import Attribute, Fidelity
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.drivers.burst import Burst
    from rebalance_tasks.drivers.local.plain_rows import PlainRows
    from rebalance_tasks.drivers.small_burst import Many
    from rebalance_tasks.drivers.spelling import Spelling

#: Hosts that a file URL may name: this one.
_THIS_HOST: Final = frozenset({"", "localhost"})


@dataclass(frozen=True, slots=True)
class _Scheme:
    """What one URL scheme stands for."""

    open: Callable[[NodeDescriptor], Driver]
    #: the place as comparable components; a root nested in another begins with the other's.
    place: Callable[[NodeDescriptor], tuple[str, ...]]
    #: what its objects have and keep besides their bytes.
    fidelity: Fidelity
    #: modules that take long to import, and may be imported before a process forks
    ahead: tuple[str, ...] = ()


def local_path(node: NodeDescriptor) -> str:
    """Return the absolute path of a ``file://`` URL or of a plain absolute path. Raises: ConfigurationError."""
    url = node.url
    if url.startswith("/"):
        path = url
    else:
        parts = urlsplit(url)
        if parts.netloc not in _THIS_HOST:
            message = f"node {node.node_id!r}: url {url!r} names host {parts.netloc!r}; write file:///absolute/path (three slashes)"
            raise ConfigurationError(message)
        if parts.query or parts.fragment:
            message = f"node {node.node_id!r}: url {url!r} holds a bare '?' or '#'; write them as %3F and %23"
            raise ConfigurationError(message)
        path = unquote(parts.path, errors="surrogateescape")
    if not path.startswith("/") or "\0" in path:
        message = f"node {node.node_id!r}: url {url!r} is not absolute; write file:///absolute/path"
        raise ConfigurationError(message)
    return path


def _open_local(node: NodeDescriptor) -> Driver:
    # Whatever else is there is of the node's remote URL.
    direct = node.storage_options.get("direct", True)
    if not isinstance(direct, bool):
        message = f"node {node.node_id!r}: storage_options.direct is neither true nor false"
        raise ConfigurationError(message)
    return LocalDriver(node.node_id, local_path(node), include=node.include, exclude=node.exclude, direct=direct)


def _local_place(node: NodeDescriptor) -> tuple[str, ...]:
    return ("file", *(part for part in os.path.realpath(local_path(node)).split("/") if part))


def _open_s3(node: NodeDescriptor) -> Driver:
    bucket, prefix = open_s3_bucket(node)
    return ObjectStoreDriver(
        node.node_id,
        bucket,
        prefix=prefix,
        include=node.include,
        exclude=node.exclude,
        trash=options_of(node).free == "trash",
    )


def _s3_place(node: NodeDescriptor) -> tuple[str, ...]:
    name, prefix = bucket_and_prefix(node)
    return ("s3", endpoint_of(node, options_of(node))[0], name, *(part for part in prefix.split("/") if part))


def _open_obstore(node: NodeDescriptor) -> Driver:
    # An extra, as asyncssh.
    try:
        from rebalance_tasks.drivers.gcs_azure.options import open_obstore_bucket  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        message = f"node {node.node_id!r}: {exc.name} is not installed; install rebalance-tasks[stores]"
        raise ConfigurationError(message) from exc
    bucket, prefix = open_obstore_bucket(node)
    return ObjectStoreDriver(node.node_id, bucket, prefix=prefix, include=node.include, exclude=node.exclude)


def _obstore_place(node: NodeDescriptor) -> tuple[str, ...]:
    """The same container in two accounts is two places."""
    name, prefix = bucket_and_prefix(node)
    where = "|".join(str(node.storage_options.get(option, "")) for option in ("account_name", "endpoint", "base_url"))
    return (urlsplit(node.url).scheme, where, name, *(part for part in prefix.split("/") if part))


def _open_sftp(node: NodeDescriptor) -> Driver:
    # An extra: asyncssh is needed by those only who have such a node.
    try:
        from rebalance_tasks.drivers.sftp.driver import SftpDriver  # noqa: PLC0415
        from rebalance_tasks.drivers.sftp.options import sftp_link  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        message = f"node {node.node_id!r}: {exc.name} is not installed; install rebalance-tasks[sftp]"
        raise ConfigurationError(message) from exc
    link, root = sftp_link(node)
    return SftpDriver(node.node_id, link, root, include=node.include, exclude=node.exclude)


def _sftp_place(node: NodeDescriptor) -> tuple[str, ...]:
    return ("sftp", *sftp_place(node))


def _open_fsspec(node: NodeDescriptor) -> Driver:
    place = fsspec_options.fsspec_place(node)
    # An extra, as asyncssh; and most protocols need a library of their own besides.
    try:
        from rebalance_tasks.drivers.fsspec.driver import FsspecDriver  # noqa: PLC0415

        return FsspecDriver(node.node_id, place, include=node.include, exclude=node.exclude)
    except (ImportError, ValueError) as exc:
        message = f"node {node.node_id!r}: {exc}; install rebalance-tasks[fsspec], and the library that serves {place.protocol}://"
        raise ConfigurationError(message) from exc


_OBSTORE: Final = _Scheme(open=_open_obstore, place=_obstore_place, fidelity=fidelity.OBSTORE)
_SCHEMES: Final = {
    "az": _OBSTORE,
    "file": _Scheme(open=_open_local, place=_local_place, fidelity=fidelity.LOCAL),
    "gs": _OBSTORE,
    "memory": _OBSTORE,
    "s3": _Scheme(open=_open_s3, place=_s3_place, fidelity=fidelity.S3),
    "sftp": _Scheme(
        open=_open_sftp, place=_sftp_place, fidelity=fidelity.SFTP, ahead=("rebalance_tasks.drivers.sftp.driver",)
    ),
}


def known_schemes() -> tuple[str, ...]:
    """Return the URL schemes that `open_driver` serves."""
    return tuple(sorted(_SCHEMES))


#: Whatever fsspec knows.
_FSSPEC: Final = _Scheme(open=_open_fsspec, place=fsspec_options.comparable, fidelity=fidelity.FSSPEC)


def _scheme(node: NodeDescriptor) -> _Scheme:
    name = "file" if node.url.startswith("/") else urlsplit(node.url).scheme
    found = _SCHEMES.get(name)
    if found is not None:
        return found
    if name and (node.url.startswith(fsspec_options.PREFIX) or _known_to_fsspec(name)):
        return _FSSPEC
    known = ", ".join(f"{scheme}://" for scheme in known_schemes())
    message = f"node {node.node_id!r}: url {node.url!r} has unknown scheme {name!r}; known: {known}, and what fsspec serves (rebalance-tasks[fsspec])"
    raise ConfigurationError(message)


def _known_to_fsspec(protocol: str) -> bool:
    try:
        from fsspec import available_protocols  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        return False
    return protocol in available_protocols()


def import_ahead(nodes: Iterable[NodeDescriptor]) -> None:
    """Import what serves these nodes, and open nothing: for a process that forks, so that none of its children has to.

    What is not installed is left to who opens the node and says so.

    Raises:
        ConfigurationError: a URL has an unknown scheme.
    """
    for name in sorted({name for node in _by_url(nodes) for name in _scheme(node).ahead}):
        with suppress(ModuleNotFoundError):
            import_module(name)


def open_driver(node: NodeDescriptor) -> Driver:
    """Return the driver that serves a node; it opens nothing before its first call. Raises: ConfigurationError."""
    return _scheme(node).open(node)


def lost_between(source: NodeDescriptor, target: NodeDescriptor) -> tuple[Attribute, ...]:
    """Return what an object may lose on its way between two nodes. Raises: ConfigurationError."""
    target = seen_from(target, next(iter(shared_queues(source, target)), ""))
    kept = _scheme(target).fidelity
    # Which of them copies on the server's side depends on the accounts too; where it may be, so it may be lost.
    if kept is fidelity.S3 and _scheme(source).fidelity is fidelity.S3 and _s3_place(source)[1] == _s3_place(target)[1]:
        kept = fidelity.S3_BY_THE_SERVER
    return lost(_scheme(source).fidelity, kept)


def at_once(source: Driver, target: Driver, sizes: Iterable[int]) -> int:
    """Return how many objects of these sizes in bytes may go through a step at once between two nodes."""
    if isinstance(source, LocalDriver) and isinstance(target, LocalDriver):
        # Around the page cache each waits for the disk, which the others keep busy meanwhile.
        large = sum(size >= DIRECT_FROM_BYTES for size in sizes)
        return min(LARGE_AT_ONCE, large) if large and target.tree.direct else 1
    return min(MOST_AT_ONCE, max(int(getattr(driver, "parallel", 1)) for driver in (source, target)))


def burst(source: Driver, target: Driver, *, objects: int, largest: int = 0) -> Burst:
    """Return the fastest way for fresh objects between two nodes.

    Args:
        source: where they are.
        target: where they go.
        objects: how many, at most.
        largest: bytes of the largest of them.
    """
    if objects < 2 or _folds(target):  # noqa: PLR2004  one is no burst
        return NoBurst()
    if isinstance(source, LocalDriver) and isinstance(target, LocalDriver):
        # Without syncfs each copy is synced when it is finished, which its own writer does.
        return NoBurst() if target.tree.calls.syncfs is None else LocalBurst(source.tree, target.tree, objects=objects)
    stores = ObjectBurst(source, target) if isinstance(source, ObjectStoreDriver) else NoBurst()
    if _many_of(source) is None and _many_of(target) is None:
        return stores
    here, there = _end(source, stores), _end(target, stores)
    if here is None or there is None:
        return stores
    # What is too large to go together, and a look at each copy in a bucket, takes a round trip.
    return SmallBurst(here, there, alone=largest <= MOST_BYTES and not isinstance(target, ObjectStoreDriver))


def _folds(target: Driver) -> bool:
    """Whether each name has to be looked at before it is given there (`drivers.spelling`), which a burst does not."""
    spelling: Spelling | None = getattr(target, "spelling", None)
    return spelling is not None and spelling.folds


def _many_of(driver: Driver) -> Callable[[Driver], Many] | None:
    """What a kind of node has to offer for many objects at once."""
    # Of its class, which is asked to make an end of the node.
    offered: Callable[[Driver], Many] | None = getattr(type(driver), "many", None)
    return offered


def _end(driver: Driver, stores: Burst) -> Many | None:
    """A node as one end of a burst with a node that has something to offer; ``stores`` frees what is in a bucket."""
    offered = _many_of(driver)
    if offered is not None:
        return offered(driver)
    if isinstance(driver, LocalDriver):
        return DriverMany(driver, partial(free_held, driver.tree))
    return DriverMany(driver, stores.free, at_once=driver.parallel) if isinstance(driver, ObjectStoreDriver) else None


def plain_rows(
    source: Driver, target: Driver, moves: Sequence[tuple[str, MoveId, int]], *, rows: int, size_bytes: int
) -> tuple[list[int], PlainRows | None]:
    """Return the places of the moves that can go between two nodes as rows, and the rows, ``None`` where there are none.

    Args:
        source: where they are.
        target: where they go.
        moves: (key, move id, size in bytes), never attempted before.
        rows: most of them in one call.
        size_bytes: most bytes of one call.
    """
    if not (isinstance(source, LocalDriver) and isinstance(target, LocalDriver)) or _folds(target):
        return [], None
    compiled = compiled_rows(source.tree, target.tree, objects=len(moves))
    chosen: list[int] = [] if compiled is None else compiled.plain(moves, most_bytes=size_bytes)
    if compiled is None or not chosen:
        return [], None
    ahead = compiled.Ahead(rows, size_bytes)
    return chosen, compiled.PlainRows(source.tree, target.tree, [moves[place] for place in chosen], ahead=ahead)


def _by_url(nodes: Iterable[NodeDescriptor]) -> list[NodeDescriptor]:
    """The nodes, and those that have a remote URL once more by that: it is the same place for every host."""
    reached = list(nodes)
    return reached + [
        node.model_copy(update={"url": node.remote_url, "remote_url": "", "queue": ""})
        for node in reached
        if node.remote_url
    ]


def validate_roots(nodes: Iterable[NodeDescriptor]) -> None:
    """Refuse two nodes whose roots are the same or nested, symbolic links, ``..`` and bind mounts of a root resolved.

    Nodes that no host reaches both of may have the same path, each on machines of its own.

    Raises:
        ConfigurationError: names both nodes, their URLs and the way out; also for an unknown scheme or a bad URL.
    """
    placed = sorted(
        ((_scheme(node).place(node), node) for node in _by_url(nodes)), key=lambda pair: (pair[0], pair[1].node_id)
    )
    # A prefix sorts before what extends it: those of the one at hand stand open.
    around: list[tuple[tuple[str, ...], NodeDescriptor]] = []
    for inner, second in placed:
        while around and inner[: len(around[-1][0])] != around[-1][0]:
            around.pop()
        for outer, first in around:
            if first.node_id == second.node_id or not share_a_host(first, second):
                continue  # one node's two URLs, or the same path on two machines
            nested = f"are nested ({second.node_id!r} lies in {first.node_id!r})"
            _refuse(first, second, "are the same place" if inner == outer else nested)
        around.append((inner, second))
    seen: dict[tuple[int, int], list[NodeDescriptor]] = {}
    for place, node in placed:
        if place[0] != "file":
            continue
        try:
            status = Path("/", *place[1:]).stat()
        except OSError:
            continue  # a root that is missing is `probe`'s to report
        others = seen.setdefault((status.st_dev, status.st_ino), [])
        for other in others:
            if share_a_host(other, node):
                _refuse(other, node, "are the same folder (a bind mount)")
        others.append(node)


def _refuse(first: NodeDescriptor, second: NodeDescriptor, how: str) -> None:
    message = (
        f"nodes {first.node_id!r} ({first.url}) and {second.node_id!r} ({second.url}) {how}: each object would be counted twice "
        "and a move could overwrite itself; give each node a folder of its own, side by side"
    )
    raise ConfigurationError(message)
