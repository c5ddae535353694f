"""Paths on an SFTP server: confined to a root, folders made as they are needed, and the few calls that change names."""

from __future__ import annotations

import posixpath
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import asyncssh

from rebalance_tasks.core.errors import ObjectUnreadable, TargetExists
from rebalance_tasks.drivers.sftp.errors import GONE
from rebalance_tasks.drivers.sftp.files import SftpSource, SftpWriter, found_of
from rebalance_tasks.drivers.trees.calls import Found, Kind

if TYPE_CHECKING:
    from rebalance_tasks.drivers.sftp.link import SftpLink

#: Folders known to be real ones below the root; forgotten all at once when there are so many.
_MOST_FOLDERS: Final = 4096


class SftpTree:
    """What lies below one root. All methods raise `asyncssh.SFTPError`, `LinkBroken` and `core.errors`."""

    def __init__(self, link: SftpLink, root: str) -> None:
        """Work below the absolute path ``root``."""
        self.link = link
        self.root = root.rstrip("/") or "/"
        self._real: str | None = None
        self._folders: set[str] = set()

    @property
    def label(self) -> str:
        """Its path on the server."""
        return repr(self.root)

    def path(self, name: str) -> str:
        """Absolute path of a name below the root."""
        return posixpath.join(self.root, name)

    def space(self) -> tuple[int | None, int | None]:
        """(all, free) bytes, where the server tells."""

        async def ask(client: asyncssh.SFTPClient) -> tuple[int | None, int | None]:
            try:
                space = await client.statvfs(self.root)
            except asyncssh.SFTPOpUnsupported:
                return None, None
            return space.blocks * space.frsize, space.bavail * space.frsize

        return self.link.run(ask)

    def reader(self, node_id: str, name: str, label: str, found: Found) -> SftpSource:
        """Read a file that was just looked at."""
        return SftpSource(self.link, node_id, self.path(name), label, found)

    def writer(self, node_id: str, name: str, label: str, offset: int) -> SftpWriter:
        """Write a file of ours from ``offset``."""
        return SftpWriter(self.link, node_id, self.path(name), label, offset)

    def look(self, name: str) -> Found | None:
        """What is at a name, links not followed; None when nothing is."""
        path = self.path(name)

        async def lstat(client: asyncssh.SFTPClient) -> Found | None:
            try:
                return found_of(await client.lstat(path))
            except GONE:
                return None

        return self.link.run(lstat)

    def regular(self, name: str) -> Found | None:
        """What is at a name, if it is a regular file; one that is being given its second name has two."""
        found = self.look(name)
        return found if found is not None and found.is_file else None

    def require_real_folder(self, key: str) -> None:
        """Make sure that no folder of a key is a symbolic link. Raises: ObjectUnreadable."""
        folder = posixpath.dirname(key)
        if not folder or folder in self._folders:
            return
        path = self.path(folder)

        async def resolve(client: asyncssh.SFTPClient) -> tuple[str, str]:
            real = self._real or str(await client.realpath(self.root))
            return real, str(await client.realpath(path))

        with suppress(*GONE):
            self._real, real = self.link.run(resolve)
            if real != posixpath.join(self._real, folder):
                raise ObjectUnreadable(key, "a folder of this key is a symbolic link; links are never followed")
            self._remember(folder)

    def _remember(self, folder: str) -> None:
        if len(self._folders) >= _MOST_FOLDERS:
            self._folders.clear()
        self._folders.add(folder)

    def make_folder(self, key: str) -> None:
        """Make the folders of a key. Raises: TargetExists when one of them is something else."""
        folder = posixpath.dirname(key)
        if not folder or folder in self._folders:
            return

        async def make(client: asyncssh.SFTPClient) -> None:
            so_far = ""
            for component in folder.split("/"):
                so_far = posixpath.join(so_far, component)
                with suppress(asyncssh.SFTPFileAlreadyExists, asyncssh.SFTPFailure):
                    await client.mkdir(self.path(so_far))
                found = await client.lstat(self.path(so_far))
                if found_of(found).kind is not Kind.FOLDER:
                    raise TargetExists(key, "a folder of this key is a file or a symbolic link on the target")

        self.link.run(make)
        self._remember(folder)

    def forget_folders(self) -> None:
        """Look at folders anew: one of them was removed."""
        self._folders.clear()

    def move_aside(self, source: str, target: str) -> None:
        """Rename a file that strangers write to, in one step of the server's, to a name of ours that is not taken."""
        old, new = self.path(source), self.path(target)

        async def act(client: asyncssh.SFTPClient) -> None:
            try:
                await client.rename(old, new)
            except asyncssh.SFTPFailure as exc:
                raise await _said_better(client, new, exc) from exc

        self.link.run(act)

    def give_name(self, source: str, target: str) -> None:
        """Rename a file of ours without overwriting, making its folders; see the function."""
        old, new = self.path(source), self.path(target)
        self.make_folder(target)
        try:
            self.link.run(lambda client: give_name(client, old, new, in_one=self.link.renames_once))
        except GONE:  # its folder was removed meanwhile
            self.forget_folders()
            self.make_folder(target)
            self.link.run(lambda client: give_name(client, old, new, in_one=self.link.renames_once))

    def replace(self, source: str, target: str) -> None:
        """Rename over what is there."""
        old, new = self.path(source), self.path(target)
        self.link.run(lambda client: client.posix_rename(old, new))

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        path = self.path(name)

        async def act(client: asyncssh.SFTPClient) -> None:
            with suppress(*GONE):
                await client.remove(path)

        self.link.run(act)

    def cut(self, name: str, size_bytes: int) -> None:
        """Shorten a file."""
        path = self.path(name)
        self.link.run(lambda client: client.truncate(path, size_bytes))

    def read_whole(self, name: str, *, size_bytes: int | None = None) -> bytes:  # noqa: ARG002  it is read to its end
        """Read a small file."""
        path = self.path(name)

        async def act(client: asyncssh.SFTPClient) -> bytes:
            async with client.open(path, "rb") as file:
                data: bytes = await file.read()
                return data

        return self.link.run(act)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, durably where the server can."""
        path = self.path(name)

        async def act(client: asyncssh.SFTPClient) -> None:
            async with client.open(path, "wb") as file:
                await file.write(data)
                with suppress(asyncssh.SFTPOpUnsupported):
                    await file.fsync()

        self.link.run(act)

    def entries(self, folder: str) -> list[tuple[str, Found]]:
        """(name, what it is) of what is in a folder; nothing where there is none."""
        path = self.path(folder) if folder else self.root

        async def act(client: asyncssh.SFTPClient) -> list[tuple[str, Found]]:
            found = []
            with suppress(*GONE):
                async for entry in client.scandir(path):
                    name = entry.filename
                    text = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
                    if text not in {".", ".."}:
                        found.append((text, found_of(entry.attrs)))
            return found

        return self.link.run(act)

    def close(self) -> None:
        """Close the connection."""
        self.link.close()


async def give_name(client: asyncssh.SFTPClient, old: str, new: str, *, in_one: bool) -> None:
    """Rename a file of ours without overwriting: by a second name, where the server makes one, then without the first.

    Between the two a death leaves both names. A server that does just this when it is asked to rename is asked so (``in_one``).
    """
    try:
        if in_one:
            await client.rename(old, new)
            return
        await client.link(old, new)
    except asyncssh.SFTPOpUnsupported:
        # The protocol's own rename refuses a name that is taken.
        await client.rename(old, new)
    except asyncssh.SFTPFailure as exc:
        raise await _said_better(client, new, exc) from exc
    else:
        await client.remove(old)


async def _said_better(client: asyncssh.SFTPClient, path: str, exc: asyncssh.SFTPFailure) -> asyncssh.SFTPError:
    """Protocol 3 has one word for most of what goes wrong: look whether the name was taken."""
    return asyncssh.SFTPFileAlreadyExists(str(exc)) if await client.lexists(path) else exc
