"""Processor time of everything that a benchmark has started: servers, workers and rivals, whether they still run or have ended."""

from __future__ import annotations

import contextlib
import resource

import psutil


def processor_s() -> float:
    """Seconds of processor time so far; what this process itself uses (it waits, and looks on) is not among them."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            used = child.cpu_times()
            total += used.user + used.system
    return total
