"""What all pictures share: room around everything, colours that everybody tells apart, plain numbers at the ticks."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from snnp.files import write_atomically
from snnp.text import printable

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GREY", "colours", "new_figure", "plain_ticks", "png", "save_figure", "shortened"]

# Okabe and Ito's, told apart by everybody; black and yellow are left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#b8bcc2"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) whose parts keep apart from each other and from the edge."""
    # Imported where it is drawn: matplotlib takes a third of a second that nothing else need wait for.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1), dpi=150)


def colours(n: int) -> list[str]:
    """`n` colours: the six above, then a map of as many as are needed."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if n <= len(COLOURS):
        return list(COLOURS[:n])
    return [to_hex(each) for each in colormaps["turbo"](np.linspace(0.05, 0.95, n))]


def plain_ticks(*axes: Axis, most: int = 5) -> None:
    """At most about `most` ticks, with numbers such as 0.02 in place of 2 × 10⁻², or of offsets at the end of the axis.

    For linear and logarithmic axes, after their limits are set.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    for axis in axes:
        low, high = sorted(axis.get_view_interval())
        if axis.get_scale() != "log" or high < 3.0 * low:
            axis.set_major_locator(MaxNLocator(most))
            axis.set_minor_locator(NullLocator())
        else:
            few = math.log10(high / low) * 3.0 <= most + 1
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=most + 4))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))


def shortened(name: str, longest: int = 28) -> str:
    """A name that leaves room for the picture: its beginning and its end."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def _plain(figure: Figure) -> Figure:
    """Texts show what they hold: names come from files, and dollars in them, taken for a formula, end in an error."""
    from matplotlib.text import Text

    for each in figure.findobj(Text):
        assert isinstance(each, Text)
        each.set_text(printable(each.get_text()))
        if "$" in each.get_text() and not each.get_text().startswith("$\\mathdefault"):  # as ticks of powers begin
            each.set_parse_math(False)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes."""
    stream = io.BytesIO()
    _plain(figure).savefig(stream, format="png")
    return stream.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the name ends in, PNG where in none; the file is replaced atomically."""
    stream = io.BytesIO()
    _plain(figure).savefig(stream, format=path.suffix.lower().removeprefix(".") or "png")
    write_atomically(path, stream.getvalue())
