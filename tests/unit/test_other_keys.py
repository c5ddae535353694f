"""Hashes of keys that are no candidates: bounded in Redis, kept apart in files that are believed only where they are whole and of that listing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.control.surveying import other_keys
from rebalance_tasks.control.surveying.memory import SurveyMemory
from rebalance_tasks.control.surveying.other_keys import FLEET_HASHES, HashFiles, share_of
from rebalance_tasks.core.keeping.sought import Sought, unpacked

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HASHES = st.sets(st.integers(0, 2**64 - 1) | st.integers(0, 40) | st.integers(2**64 - 40, 2**64 - 1), max_size=60)


def hashes(values: set[int]) -> NDArray[np.uint64]:
    return np.array(sorted(values), dtype=np.uint64)


@given(sought=HASHES, others=HASHES)
def test_hashes_are_found_among_others_exactly_where_they_are(sought: set[int], others: set[int]) -> None:
    looked = Sought(hashes(sought))
    assert looked.among(hashes(others)).tolist() == [at for at, one in enumerate(sorted(others)) if one in sought]
    assert set(unpacked(looked.packed()).tolist()) == sought


@pytest.mark.parametrize("nodes", [0, 1, 7, 1_000, 10**7])
@pytest.mark.parametrize("parts", [1, 4, 64])
def test_what_a_fleet_hands_in_to_redis_is_bounded(nodes: int, parts: int) -> None:
    assert share_of(nodes, parts) * parts * nodes <= FLEET_HASHES


@pytest.fixture
def files(tmp_path: Path) -> HashFiles:
    return HashFiles(tmp_path / "seen")


def test_a_file_of_hashes_is_read_back_and_searched(files: HashFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_keys, "_GROUP", 64)
    kept = np.sort(np.random.default_rng(1).integers(0, 2**64, 1_000, np.uint64))
    mark = files.keep("n1@3of16", kept)
    found = files.among("n1@3of16", mark, Sought(np.append(kept[::100], np.uint64(5))))
    assert found is not None
    assert found.tolist() == kept[::100].tolist()
    assert [path.name for path in files.folder.iterdir()] == ["n1@3of16.others.parquet"]


def test_an_empty_file_answers_too(files: HashFiles) -> None:
    found = files.among("n", files.keep("n", hashes(set())), Sought(hashes({1})))
    assert found is not None
    assert len(found) == 0


def test_what_another_listing_left_is_not_believed(files: HashFiles) -> None:
    before, after = files.keep("n", hashes({1, 2})), files.keep("n", hashes({1, 2, 3}))
    assert files.among("n", before, Sought(hashes({1}))) is None
    assert files.among("n", after, Sought(hashes({1}))) is not None
    assert files.among("gone", after, Sought(hashes({1}))) is None


def test_a_file_that_was_cut_off_is_not_believed(files: HashFiles) -> None:
    """As a host that lost power may leave it."""
    mark = files.keep("n", hashes(set(range(300))))
    path = files.folder / "n.others.parquet"
    whole = path.read_bytes()
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        assert files.among("n", mark, Sought(hashes({1}))) is None


def test_nothing_is_kept_or_read_where_others_may_write(files: HashFiles) -> None:
    mark = files.keep("n", hashes({1}))
    files.folder.chmod(0o777)
    assert files.among("n", mark, Sought(hashes({1}))) is None
    assert files.keep("n", hashes({2})) != mark
    files.folder.chmod(0o700)
    assert files.among("n", mark, Sought(hashes({1}))) is not None, "the file is the one before"


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from rebalance_tasks.control.surveying.other_keys import HashFiles

Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
HashFiles(Path(sys.argv[1])).keep("n", np.arange(9, dtype=np.uint64))
"""


def test_what_a_killed_task_left_is_not_read_and_removed_in_the_end(files: HashFiles) -> None:
    dead = subprocess.run([sys.executable, "-c", KILLED, str(files.folder)], check=False)
    assert dead.returncode == -signal.SIGKILL
    [left] = files.folder.iterdir()
    assert files.among("n", "any", Sought(hashes({1}))) is None
    mark = files.keep("n", hashes({1, 2}))
    assert files.among("n", mark, Sought(hashes({1}))) is not None
    os.utime(left, ns=(0, 0))
    SurveyMemory(None, timedelta(hours=1), files.folder).tidy(now_ns=10**18)
    assert not left.exists()
