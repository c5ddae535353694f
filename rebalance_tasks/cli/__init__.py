"""The command line ``rebalance``: what an operator types, printed as tables or, with ``--json``, as one document.

It decides nothing: each command is one call of `rebalance_tasks.client` (or of a pure function) and one way to print the answer. Exit codes: 0 done,
1 failed (with one line on stderr that says why), 2 wrong usage or configuration, 130 interrupted.

- `app`: the commands
- `session`: the client they use, and which job is meant when none is named
- `output`: tables or JSON, and errors
- `tables`, `node_tables`: how jobs, plans and nodes look; `fitting`: in two forms, by the width of the terminal
- `watching`: following a job live
- `checks`: what the last checks saw
- `plan`, `picture`: the dry run, its bars, and why one object moves or stays
- `simulate`, `simulation_inputs`, `plot_html`, `plot_png`: many cycles on paper
- `node_states`, `undo`, `upkeep`: drain and activate, the way back of a job, commands for when it must change
- `console`: the web console, which has a package of its own
- `events`, `metrics`, `doctor`: the history, the endpoint for Prometheus, is everything as it should be?
"""

from __future__ import annotations

import gc
from typing import Final, NoReturn

from rebalance_tasks import lazily

#: What is made while a command starts stays. Looking through it for garbage after each 700 objects, which is Python's default, took a
#: tenth of what `rebalance status` needs; the garbage of a long-lived command is still found.
_OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000


def main() -> NoReturn:
    """Entry point of the console script."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
    lazily.package("redis", "asyncio")  # redis-py loads it for everybody, and nothing here uses it

    import sys  # noqa: PLC0415  nothing is loaded before it is needed

    from rebalance_tasks.cli.app import run  # noqa: PLC0415

    code = run(sys.argv[1:])
    gc.freeze()  # the interpreter would look through everything once more before it ends
    sys.exit(code)
