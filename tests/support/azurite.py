"""A real server of Azure's blobs for tests, where one is to be had: Azurite from npm (`npm install azurite`), never needed.

It is looked for on PATH and at ``AZURITE_BLOB`` (the file ``azurite-blob``); tests that want it are skipped without.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from rebalance_tasks.embedded import HOST, free_port
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The account that every Azurite has; the key is printed in its manual.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def binary() -> str | None:
    """Where it is, if it is anywhere."""
    return os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")


def options(port: int) -> dict[str, Any]:
    """``storage_options`` of a node on it."""
    endpoint = f"http://{HOST}:{port}/{ACCOUNT}"
    return {"account_name": ACCOUNT, "account_key": KEY, "endpoint": endpoint, "allow_http": True}


def make_container(port: int, name: str) -> None:
    """Create a container, which obstore cannot: one request, signed with the account's key."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    canonical = "".join(f"{header}:{value}\n" for header, value in sorted(headers.items()))
    to_sign = f"PUT{chr(10) * 12}{canonical}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), to_sign.encode(), hashlib.sha256).digest()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}", "Content-Length": "0"}
    url = f"http://{HOST}:{port}/{ACCOUNT}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers), timeout=30).close()


@contextlib.contextmanager
def azurite_server(directory: Path, found: str) -> Iterator[int]:
    """Run it until the context ends; yield its port."""
    port = free_port()
    arguments = ["--blobHost", HOST, "--blobPort", str(port), "--location", str(directory), "--skipApiVersionCheck"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([found, *arguments], stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(port), 60, "Azurite answers")
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
