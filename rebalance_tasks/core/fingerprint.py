"""What identifies one version of an object on a node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class Fingerprint(NamedTuple):
    """Two equal fingerprints mean "not changed in between".

    A tuple, since a frozen dataclass takes twice as long to make and each object needs two.
    ``device`` and ``inode`` survive a rename on the same file system, so they also tell whether a published object is
    the one that was staged. Object stores use ``etag`` and leave them 0.
    """

    size_bytes: int
    mtime_ns: int = 0
    inode: int = 0
    device: int = 0
    etag: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "size_bytes": self.size_bytes,
            "mtime_ns": self.mtime_ns,
            "inode": self.inode,
            "device": self.device,
            "etag": self.etag,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**data)

    def same_file(self, other: Fingerprint) -> bool:
        """Tell whether both are one inode (or one entity tag), whatever its times say."""
        return (self.device, self.inode, self.etag) == (other.device, other.inode, other.etag)
