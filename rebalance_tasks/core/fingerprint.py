"""What identifies one version of an object on a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Two equal fingerprints mean "not changed in between".

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
