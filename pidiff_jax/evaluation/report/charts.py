"""Line charts of a run's history, as SVG text that a report holds."""

import io
import math
from collections.abc import Mapping, Sequence

Point = tuple[float | int, float | int]

_INK, _FAINT, _GRID = "#181c24", "#5a6270", "#e2e5ea"


def line_chart(title: str, series: Mapping[str, Sequence[Point]], x_label: str = "step") -> str:
    """Draws named lines of (x, y) points as an <svg> element; points that aren't finite are left out.

    Raises:
        ValueError: no point is left to draw.
    """
    # Here, because a run should not wait for it at its start.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    if not any(finite.values()):
        raise ValueError(f"expected at least one finite point to draw for {title!r}, got none; leave the chart out")
    figure = Figure(figsize=(4.6, 2.6), layout="constrained")
    axes = figure.subplots()
    for name, points in finite.items():
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, label=name, marker="o" if len(points) == 1 else None, markersize=4, linewidth=1.4)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_INK)
    axes.set_xlabel(x_label, fontsize=8, color=_FAINT)
    axes.tick_params(labelsize=8, labelcolor=_FAINT, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.legend(fontsize=8, frameon=False, labelcolor=_FAINT)
    buffer = io.StringIO()
    # Text stays text (small, searchable), and equal numbers make equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pidiff"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]  # without the XML prologue, which HTML doesn't have
