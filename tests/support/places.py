"""Where a node's objects are, seen without its driver: a directory, or a prefix of an S3 bucket.

A place can be written to by strangers, be spoiled, be lost and come back, and be walked by the independent checker: what is not a
directory is downloaded into one first. It can be written down as text, for processes of their own.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.gcs_azure.options import open_obstore_bucket
from rebalance_tasks.drivers.object_stores.bucket import NotThere
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from rebalance_tasks.drivers.s3.http import S3Endpoint
from rebalance_tasks.drivers.s3.signing import Credentials
from rebalance_tasks.migration.faults import corrupt
from tests.support.hooks import mount_again, unmount

if TYPE_CHECKING:
    from rebalance_tasks.drivers.gcs_azure.bucket import ObstoreBucket

TMP, TRASH, MANIFESTS = ".rebalance/tmp", ".rebalance/trash", ".rebalance/manifests"


class Place(Protocol):
    """One node's place."""

    def url(self) -> str:
        """As ``rebalance.toml`` names it."""

    def settings(self) -> dict[str, Any]:
        """What its ``[[nodes]]`` table says besides."""

    def put(self, name: str, data: bytes) -> None:
        """Write an object, or a file of ours."""

    def get(self, name: str) -> bytes | None:
        """Read it."""

    def names(self, folder: str) -> list[str]:
        """Names below one of our folders."""

    def spoil(self, name: str) -> bool:
        """Flip a bit of a file of ours; False where its store would have to be broken into."""

    def lose(self) -> None:
        """Make it look unmounted."""

    def back(self) -> None:
        """Undo `lose`, if it was done."""

    def mirror(self, folder: Path) -> Path:
        """A directory that holds what is there, for the checker."""


def append(place: Place, name: str, data: bytes) -> None:
    """Write to an object as a stranger would: more bytes."""
    place.put(name, (place.get(name) or b"") + data)


@dataclass(frozen=True)
class LocalPlace:
    root: Path

    def __str__(self) -> str:
        return json.dumps({"root": str(self.root)})

    def url(self) -> str:
        return self.root.as_uri()

    def settings(self) -> dict[str, Any]:
        return {}

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def get(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def names(self, folder: str) -> list[str]:
        path = self.root / folder
        return [f"{folder}/{found.name}" for found in path.iterdir()] if path.is_dir() else []

    def spoil(self, name: str) -> bool:
        if (self.root / name).is_file():
            corrupt(self.root / name)
        return True

    def lose(self) -> None:
        unmount(self.root)

    def back(self) -> None:
        if self.root.with_name(f"{self.root.name}-unmounted").exists():
            mount_again(self.root)

    def mirror(self, folder: Path) -> Path:
        return self.root


@dataclass(frozen=True)
class SftpPlace(LocalPlace):
    """A directory of this machine, reached through a server."""

    port: int = 0
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return json.dumps({"root": str(self.root), "port": self.port, "options": self.options})

    def url(self) -> str:
        return f"sftp://127.0.0.1:{self.port}{self.root}"

    def settings(self) -> dict[str, Any]:
        return {"storage_options": self.options}


@dataclass(frozen=True)
class FsspecPlace(LocalPlace):
    """A directory of this machine, reached through a file system of fsspec's."""

    link: str = ""
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return json.dumps({"root": str(self.root), "link": self.link, "options": self.options})

    def url(self) -> str:
        return self.link

    def settings(self) -> dict[str, Any]:
        return {"storage_options": self.options}


@dataclass(frozen=True)
class S3Place:
    """A prefix of a bucket; ``options`` are the node's ``storage_options``."""

    bucket: str
    prefix: str
    options: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return json.dumps({"bucket": self.bucket, "prefix": self.prefix, "options": self.options})

    @property
    def _root(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    @property
    def door(self) -> S3Bucket:
        keys = Credentials(self.options["access_key_id"], os.path.expandvars(self.options["secret_access_key"]))
        endpoint = S3Endpoint(self.options["endpoint_url"], region="us-east-1", credentials=lambda: keys)
        return S3Bucket(endpoint, self.bucket, prefix=self.prefix)

    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def settings(self) -> dict[str, Any]:
        return {"storage_options": self.options}

    def put(self, name: str, data: bytes) -> None:
        self.door.put(f"{self._root}{name}", data, {}, new=False)

    def get(self, name: str) -> bytes | None:
        try:
            return self.door.get(f"{self._root}{name}", 0, 1 << 28)[1]
        except NotThere:
            return None

    def names(self, folder: str) -> list[str]:
        found = [item.name for page in self.door.pages(f"{self._root}{folder}/") for item in page]
        return [name.removeprefix(f"{self._root}") for name in found]

    def spoil(self, name: str) -> bool:
        """A store that checks what it is sent cannot be spoiled through its door."""
        return False

    def lose(self) -> None:
        self.put("lost-node-id", self.get(".rebalance/node-id") or b"")
        self.door.delete(f"{self._root}.rebalance/node-id")

    def back(self) -> None:
        node_id = self.get("lost-node-id")
        if node_id is not None:
            self.put(".rebalance/node-id", node_id)
            self.door.delete(f"{self._root}lost-node-id")

    def mirror(self, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        door = self.door
        for page in door.pages(f"{self._root}"):
            for item in page:
                path = folder / item.name.removeprefix(f"{self._root}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(door.get(item.name, 0, max(1, item.size_bytes))[1])
        for number, upload in enumerate(door.uploads(f"{self._root}")):
            path = folder / TMP / f"{Path(upload.name).name}.upload-{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return folder


@dataclass(frozen=True)
class AzurePlace(S3Place):
    """A prefix of a container."""

    def __str__(self) -> str:
        return json.dumps({"container": self.bucket, "prefix": self.prefix, "options": self.options})

    @property
    def door(self) -> ObstoreBucket:  # type: ignore[override]
        node = NodeDescriptor(node_id="door", url=self.url(), storage_options=self.options)
        return open_obstore_bucket(node)[0]

    def url(self) -> str:
        return f"az://{self.bucket}/{self.prefix}"


@dataclass(frozen=True)
class GcsPlace(AzurePlace):
    """A prefix of a bucket that is spoken to as Google's are."""

    def __str__(self) -> str:
        return json.dumps({"gcs": self.bucket, "prefix": self.prefix, "options": self.options})

    def url(self) -> str:
        return f"gs://{self.bucket}/{self.prefix}"


def place_of(text: str) -> Place:
    """Read what ``str(place)`` wrote."""
    data = json.loads(text)
    if "bucket" in data:
        return S3Place(**data)
    if "container" in data:
        return AzurePlace(data.pop("container"), **data)
    if "gcs" in data:
        return GcsPlace(data.pop("gcs"), **data)
    root = Path(data.pop("root"))
    if "link" in data:
        return FsspecPlace(root, **data)
    return SftpPlace(root, **data) if data else LocalPlace(root)
