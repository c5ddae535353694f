"""Ask whether a vulnerability is known of any pin in a lock file: ``python ops/audit.py requirements/run.lock``.

pip-audit does it, against the OSV database; nothing is resolved or installed. Exit code 1 when something is found, 0 when not, and 0
with a word when the database cannot be reached: a build without a network is not a build with a flaw.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

#: How the clients say that nobody answers.
AWAY: Final = ("ConnectionError", "Max retries", "ServiceError", "ProxyError", "timed out", "Could not connect")


def main(lock: str) -> int:
    """Audit a lock file and say what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", "pip_audit", "--requirement", lock, "--require-hashes", "--disable-pip"]
        command += ["--vulnerability-service", "osv", "--timeout", "10", "--progress-spinner", "off"]
        command += ["--format", "json", "--output", str(found)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own words
        if not found.exists():
            reachable = not any(word in done.stderr for word in AWAY)
            sys.stderr.write(done.stderr if reachable else f"{lock}: audit skipped, the database cannot be reached\n")
            return 1 if reachable else 0
        packages = json.loads(found.read_text(encoding="utf-8"))["dependencies"]
    flawed = [(entry, flaw) for entry in packages for flaw in entry.get("vulns", [])]
    for entry, flaw in flawed:
        mended = ", ".join(flaw["fix_versions"]) or "no release yet"
        sys.stderr.write(f"{entry['name']} {entry['version']}: {flaw['id']}, mended in {mended}\n")
    sys.stdout.write(f"{lock}: {len(packages)} packages, {len(flawed)} known vulnerabilities\n")
    return 1 if flawed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
