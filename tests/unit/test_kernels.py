"""Which kernel runs, that a broken cache or no numba at all stops nothing, and that forks and threads are harmless."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.placement import fleet as crush_fleet
from rebalance_tasks.core.placement import kernels, kernels_numba

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks.core.crush import RuleName

NODES = [NodeDescriptor(node_id=f"n{i}", zone=f"z{i % 3}", weight=1 + i % 2) for i in range(9)]


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Nothing is loaded yet; yields what is imported."""
    imported: list[str] = []

    def load(name: str) -> object:
        imported.append(name)
        msg = "No module named 'numba'"
        raise ImportError(msg)

    kernels._load.cache_clear()
    monkeypatch.setattr(kernels, "import_module", load)
    yield imported
    kernels._load.cache_clear()


def test_auto_loads_numba_only_where_there_is_enough_to_do(
    unloaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crush_fleet, "WORTH_LOADING_CALLS", 30)
    fleet = CompiledFleet(NODES)
    for i in range(30):
        fleet.place(f"k{i}", 2)
    CrushPlacementAlgorithm().compute_placements(["a"] * 100, 2, fleet)
    assert unloaded == []
    fleet.place("one more")
    assert unloaded == ["rebalance_tasks.core.placement.kernels_numba"]


def test_without_numba_auto_uses_numpy_and_numba_says_what_to_install(unloaded: list[str]) -> None:
    keys = np.arange(kernels.WORTH_LOADING_KEYS, dtype=np.uint64)
    rows = CrushPlacementAlgorithm().compute_placements(keys, 1, NODES)
    assert unloaded
    assert len(rows) == len(keys)
    with pytest.raises(InvalidArgument, match=r"kernel: numba cannot be used .*rebalance-tasks\[fast\]"):
        CompiledFleet(NODES, kernel="numba").place("k")


def test_wrong_kernels_and_threads_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="kernel: 'fortran' is none of auto, numpy, numba"):
        CompiledFleet(NODES, kernel="fortran")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="threads: 0 must be at least 1"):
        CrushPlacementAlgorithm(threads=0)


def test_importing_the_package_and_placing_a_little_does_not_import_numba() -> None:
    script = """
        import sys
        from rebalance_tasks import CompiledFleet, CrushPlacementAlgorithm, NodeDescriptor
        fleet = CompiledFleet([NodeDescriptor(node_id="a"), NodeDescriptor(node_id="b")])
        CrushPlacementAlgorithm().compute_placements(["k"] * 1000, 2, fleet)
        fleet.place("k")
        sys.exit("numba" in sys.modules)
    """
    assert run(script).returncode == 0


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def work(part: slice) -> None:
        if part.start:
            msg = "no"
            raise OSError(msg)

    with pytest.raises(OSError, match="no"):
        kernels.in_threads(work, 200_000, 2)


def test_both_kernels_place_before_and_after_the_fork_of_celerys_pool() -> None:
    script = """
        import sys
        import billiard
        from rebalance_tasks import CompiledFleet, CrushPlacementAlgorithm, NodeDescriptor
        nodes = [NodeDescriptor(node_id=f"n{i}", zone=f"z{i % 3}") for i in range(30)]
        keys = [f"k{i}" for i in range(100_000)]
        def place(kernel):
            algorithm = CrushPlacementAlgorithm(threads=2)
            return algorithm.compute_placements(keys, 3, CompiledFleet(nodes, kernel=kernel)).tobytes()
        if __name__ == "__main__":
            before = place("numba")
            with billiard.get_context("fork").Pool(2) as pool:
                after = pool.map(place, ["numba", "numpy", "numba", "numpy"])
            sys.exit(before != place("numpy") or set(after) != {before})
    """
    done = run(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("rule", ["flat", "tree"])
def test_a_kernel_is_compiled_once_whatever_it_is_given(rule: RuleName) -> None:
    hashes = np.arange(100, dtype=np.uint64)
    frozen = hashes.copy()
    frozen.setflags(write=False)
    texts = [f"k{i}" for i in range(50)]
    arrow = pa.array(texts)
    batches = [texts, arrow, arrow.slice(3), pa.array(texts, pa.large_string()), [], pa.array([], pa.string())]
    batches += [np.array(texts), hashes, frozen, hashes[::2], hashes.astype(">u8"), pa.array(["", ""])]
    for batch in batches:
        for replicas in (1, 3, 12):
            CrushPlacementAlgorithm(rule=rule, kernel="numba").compute_placements(batch, replicas, NODES)
    CompiledFleet(NODES, rule=rule, kernel="numba").place("k", 2)
    kernel = kernels_numba.place_flat if rule == "flat" else kernels_numba.place_tree
    for used in (kernel, kernels_numba.hash_many):
        assert len(used._dispatcher.signatures) == 1


DOUBLE = """
    from rebalance_tasks.core.placement.compiled import Kernel
    def _double(values):
        for i in range(values.shape[0]):
            values[i] *= 2
    double = Kernel(_double)
"""
USE_DOUBLE = """
    import numpy as np
    from double import double
    values = np.arange(3.0)
    double(values)
    double(values)
    assert values.tolist() == [0, 4, 8]
    print(type(double._dispatcher._cache).__name__)
"""


def test_kernels_are_kept_on_disk_beside_their_module(tmp_path: Path) -> None:
    (tmp_path / "double.py").write_text(textwrap.dedent(DOUBLE), encoding="utf-8")
    assert run(USE_DOUBLE, path=tmp_path).stdout.strip() == "FunctionCache"
    assert list((tmp_path / "__pycache__").glob("double.*.nbi"))


def test_a_read_only_install_uses_the_users_cache(tmp_path: Path) -> None:
    (tmp_path / "double.py").write_text(textwrap.dedent(DOUBLE), encoding="utf-8")
    (tmp_path / "__pycache__").write_text("a file, so that nothing can be written here, not even by root")
    home = tmp_path / "home"
    assert run(USE_DOUBLE, path=tmp_path, HOME=str(home)).stdout.strip() == "FunctionCache"
    assert list(home.rglob("double.*.nbi"))


def test_without_a_place_to_write_kernels_are_compiled_into_memory(tmp_path: Path) -> None:
    (tmp_path / "double.py").write_text(textwrap.dedent(DOUBLE), encoding="utf-8")
    (tmp_path / "__pycache__").write_text("a file")
    done = run(USE_DOUBLE, path=tmp_path, HOME=str(tmp_path / "double.py"))
    assert done.stdout.strip() == "NullCache", done.stderr


def test_a_cache_that_was_cut_short_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "double.py").write_text(textwrap.dedent(DOUBLE), encoding="utf-8")
    run(USE_DOUBLE, path=tmp_path)
    [index] = (tmp_path / "__pycache__").glob("double.*.nbi")
    index.write_bytes(index.read_bytes()[:20])
    done = run(USE_DOUBLE, path=tmp_path)
    assert done.stdout.strip() == "NullCache", done.stderr


def run(script: str, *, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))}
    more = {"PYTHONPATH": os.pathsep.join([*([str(path)] if path else []), os.getcwd()])}  # noqa: PTH109
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**clean, **more, **environment}, timeout=120
    )
