"""Run the benchmarks: ``python -m tests.bench [NAME …]``. Exits 1 when a figure misses its limit."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Final

from tests.bench.report import Report

#: name -> module with a ``run(report)``
BENCHES: Final = {
    "gate": "bench_gate",
    "pause": "bench_pause",
    "throttle": "bench_throttle",
    "adaptive": "bench_adaptive",
    "recovery": "bench_recovery",
    "listing": "bench_listing",
    "retention": "bench_retention",
    "survey": "bench_survey",
    "store": "bench_store",
    "start": "bench_start",
    "copy": "bench_copy",
    "durable": "bench_durable",
    "stores": "bench_stores",
    "sftp": "bench_sftp",
    "fleet": "bench_fleet",
    "memory": "bench_memory",
    "simulate": "bench_simulate",
    "metrics": "bench_metrics",
    "placement": "bench_placement",
    "plan": "bench_plan",
    "moves": "bench_moves",
    "console": "bench_console",
    "scale": "bench_scale",
    "availability": "bench_availability",
    "hosted": "bench_hosted",
    "turns": "bench_turns",
}


def main() -> int:
    """Run what was asked for, print the table, write the samples."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*BENCHES, []], help=f"which (default: all of {', '.join(BENCHES)})"
    )
    parser.add_argument("--json", type=Path, default=Path("build/bench/samples.json"), help="where the samples go")
    options = parser.parse_args()
    report = Report()
    for name in options.names or BENCHES:
        importlib.import_module(f"tests.bench.{BENCHES[name]}").run(report)
    report.console.print(report.table())
    report.write(options.json)
    report.console.print(f"samples: {options.json}")
    return 1 if any(figure.missed for figure in report.figures) else 0


if __name__ == "__main__":
    sys.exit(main())
