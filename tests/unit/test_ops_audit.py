"""What `make audit` makes of pip-audit: nothing known, something known, nobody answers, or it broke."""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

SCRIPT = str(Path(__file__).parents[2] / "ops" / "audit.py")
FLAW = {"id": "CVE-1", "fix_versions": ["2.0"]}


def audit(monkeypatch: pytest.MonkeyPatch, *, found: list[dict[str, Any]] | None, stderr: str = "") -> int:
    """Run the script over a pip-audit that writes this."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if found is not None:
            Path(command[command.index("--output") + 1]).write_text(json.dumps({"dependencies": found}))
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return int(runpy.run_path(SCRIPT)["main"]("some.lock"))


def test_nothing_known_passes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(monkeypatch, found=[{"name": "a", "version": "1", "vulns": []}]) == 0
    assert "1 packages, 0 known vulnerabilities" in capsys.readouterr().out


def test_a_known_flaw_fails_and_names_the_release_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(monkeypatch, found=[{"name": "a", "version": "1", "vulns": [FLAW]}]) == 1
    assert "a 1: CVE-1, mended in 2.0" in capsys.readouterr().err


def test_without_a_network_it_is_skipped_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(monkeypatch, found=None, stderr="requests.exceptions.ConnectionError: …") == 0
    assert "skipped" in capsys.readouterr().err


def test_what_breaks_for_another_reason_is_no_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(monkeypatch, found=None, stderr="error: no such option") == 1
    assert "no such option" in capsys.readouterr().err
