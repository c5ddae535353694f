"""A source that is read through a window: one request for a long stretch, and many short reads out of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from rebalance_tasks.core.fingerprint import Fingerprint


class WindowedSource(ABC):
    """What `SourceHandle`s of stores have in common whose every read is a round trip."""

    fingerprint: Fingerprint

    def __init__(self) -> None:
        """Begin at the first byte, with nothing read."""
        self._position = self._start = 0
        self._window = b""

    @abstractmethod
    def _fetch(self, offset: int) -> bytes:
        """Read a stretch from ``offset``, at least one byte of it."""

    def _look(self, offset: int) -> None:
        self._window = self._fetch(offset)
        self._start = offset

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer from the current position; return the number of bytes, 0 at the end."""
        if self._position >= self.fingerprint.size_bytes:
            return 0
        if not self._start <= self._position < self._start + len(self._window):
            self._look(self._position)
        at = self._position - self._start
        chunk = self._window[at : at + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def seek(self, offset: int) -> None:
        """Go to an absolute byte offset."""
        self._position = offset

    def close(self) -> None:
        """Forget what was read."""
        self._window = b""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
