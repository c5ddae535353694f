"""A simulation as a PNG, drawn by matplotlib, which is an extra: its absence is told with the way out."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from rebalance_tasks.core.simulation import Simulation

#: Lines that have a name beside them; more would cover the chart.
_MOST_NAMED: Final = 10
_INCHES: Final = (11.0, 9.0)
_DPI: Final = 110
_MIB: Final = 1 << 20


def require_matplotlib() -> None:
    """See that a PNG can be drawn, before anything is played. Raises: ConfigurationError: matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        msg = "--png needs matplotlib: pip install 'rebalance-tasks[plots]'; --html needs nothing more"
        raise ConfigurationError(msg)


def write_png(simulation: Simulation, path: Path, *, title: str) -> None:
    """Write the picture: utilisation by node, bytes and money a cycle.

    Raises:
        ConfigurationError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    # The object interface, without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import MaxNLocator, PercentFormatter  # noqa: PLC0415

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    shares, volume, money = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    named = len(simulation.utilisation) <= _MOST_NAMED
    for name, values in sorted(simulation.utilisation.items()):
        points = [(at, value) for at, value in enumerate(values) if value is not None]
        style = {"label": name} if named else {"color": "#4477aa", "alpha": 0.35}
        shares.plot([at for at, _ in points], [value for _, value in points], linewidth=1.2, **style)
    shares.set_ylim(0, 1)
    shares.set_ylabel("utilisation")
    shares.yaxis.set_major_formatter(PercentFormatter(1.0))
    if named:
        shares.legend(loc="upper right", ncols=2, fontsize="small")
    numbers = [cycle.cycle for cycle in simulation.cycles]
    volume.bar(numbers, [cycle.bytes / _MIB for cycle in simulation.cycles], color="#4477aa")
    volume.set_ylabel("MiB a cycle")
    money.bar(numbers, [float(cycle.cost) for cycle in simulation.cycles], color="#228833")
    money.set_ylabel("money a cycle")
    money.set_ylim(bottom=0)
    money.set_xlabel("cycle")
    money.xaxis.set_major_locator(MaxNLocator(integer=True))
    _mark_events(simulation, (shares, volume, money))
    # Without a date in it the same simulation is the same file.
    figure.savefig(path, format="png", metadata={"Software": None})


def _mark_events(simulation: Simulation, charts: Sequence[Axes]) -> None:
    for cycle in simulation.cycles:
        if not cycle.events:
            continue
        for chart in charts:
            chart.axvline(cycle.cycle, color="#b35900", linestyle=":", linewidth=1)
        charts[0].annotate(
            ", ".join(cycle.events),
            (cycle.cycle, 0.01),
            rotation=90,
            fontsize="x-small",
            color="#b35900",
            va="bottom",
            ha="right",
        )
