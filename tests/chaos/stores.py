"""The storm over unlike nodes: two disks, a bucket, and a folder behind SFTP, each server behind a line of its own that is struck too.

The same processes die, the same judge looks: what is in the bucket is downloaded for him first. Strangers write where there are files:
on the disks, and to the folder behind the SFTP server's back.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from rebalance_tasks.drivers.object_stores.bucket import NotThere
from tests.chaos.storm import Storm
from tests.support import strangers
from tests.support.fleets import NodeSpec
from tests.support.places import S3Place, SftpPlace
from tests.support.proxy import HOST, ChaosProxy
from tests.support.sftp import Sftp
from tests.support.weed import Weed

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.support.places import Place

DISKS: Final = ("n1", "n2")
BUCKET: Final = "bucket"
FAR: Final = "far"
PREFIX: Final = "its/prefix"
CAPACITY: Final = 10**8


class StoresStorm(Storm):
    """A round over disks, S3 and SFTP."""

    def __post_init__(self) -> None:
        for name in ("weed", "sftp"):
            (self.folder / name).mkdir(parents=True)
        self.weed, self.sftp = Weed(self.folder / "weed"), Sftp(self.folder / "sftp")
        self.lines = {BUCKET: ChaosProxy(self.weed.port), FAR: ChaosProxy(self.sftp.port)}
        known_hosts = self.folder / "known_hosts"
        key = self.sftp.known_hosts.read_text().split(" ", 1)[1]
        known_hosts.write_text(f"[{HOST}]:{self.lines[FAR].port} {key}")
        name = self.weed.bucket()
        #: the bucket as we look at it, whatever its line does; the reader has a door of his own
        self.bucket = S3Place(name, PREFIX, self.weed.options())
        self.open_door = self.bucket.door
        endpoint = f"http://{HOST}:{self.lines[BUCKET].port}"
        self.served: dict[str, Place] = {
            BUCKET: S3Place(name, PREFIX, self.weed.options() | {"endpoint_url": endpoint}),
            FAR: SftpPlace(
                self.folder / "nodes" / FAR,
                self.lines[FAR].port,
                self.sftp.options() | {"known_hosts": str(known_hosts)},
            ),
        }
        super().__post_init__()
        self.upload()

    def layout(self) -> dict[str, NodeSpec]:
        disks = {node: NodeSpec(capacity_bytes=CAPACITY) for node in DISKS}
        return disks | {
            node: NodeSpec(capacity_bytes=CAPACITY, settings={"url": place.url(), **place.settings()})
            for node, place in self.served.items()
        }

    # -- the bucket, which has no files ---------------------------------------------------------------------------
    @property
    def mirror(self) -> Path:
        """Where its objects are laid as files."""
        return self.fleet.roots[BUCKET]

    def upload(self) -> None:
        """What was made for it goes there."""
        for key in strangers.keys_on(self.mirror):
            self.bucket.put(key, (self.mirror / key).read_bytes())
        shutil.rmtree(self.mirror)
        self.mirror.mkdir()

    def doors(self) -> dict[str, Callable[[str], bytes]]:
        return super().doors() | {BUCKET: self.read}

    def read(self, key: str) -> bytes:
        """An object of the bucket, as `strangers.door` reads a file."""
        try:
            return self.open_door.get(f"{PREFIX}/{key}", 0, None)[1]
        except NotThere as exc:
            raise FileNotFoundError(key) from exc

    def written_to(self) -> Mapping[str, Path]:
        return {node: root for node, root in self.fleet.roots.items() if node != BUCKET}

    def homes(self) -> dict[str, tuple[str, int]]:
        stored = {
            item.name.removeprefix(f"{PREFIX}/"): item.size_bytes
            for page in self.bucket.door.pages(f"{PREFIX}/")
            for item in page
        }
        objects = {key: size for key, size in stored.items() if key.partition("/")[0] != strangers.RESERVED}
        return super().homes() | {key: (BUCKET, size) for key, size in objects.items()}

    # -- lines ----------------------------------------------------------------------------------------------------
    def line(self, dice: random.Random) -> ChaosProxy:
        return dice.choice((self.proxy, self.proxy, *self.lines.values()))

    def mend(self) -> None:
        super().mend()
        for line in self.lines.values():
            line.calm()

    def gather(self) -> None:
        self.bucket.mirror(self.mirror)

    def end(self) -> None:
        super().end()
        for line in self.lines.values():
            line.close()
        self.weed.kill()
        self.sftp.kill()
