"""A figure of a report: drawn once by matplotlib, saved as PNG and SVG, shown on the page as SVG with live marks."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from ammpl.escaping import file_name, html, visible

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
"""Okabe and Ito's, which colour-blind people can tell apart."""
GREY = "#8a8f98"
WIDTH = 7.2
"""Inches; a page column."""

_STYLE: dict[str, object] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "text.parse_math": False,  # a dollar is one
    "svg.hashsalt": "ammpl",  # the same figure gives the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#5f6570",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.4,
    "figure.dpi": 110,
    "savefig.dpi": 200,
}

_SVG = "http://www.w3.org/2000/svg"
_LINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Mark:
    """What a page tells of a drawn thing.

    Attributes:
        key: things of one key are shown together, across figures and tables.
        tip: a few lines of text.
    """

    key: str
    tip: str


@dataclass
class Figure:
    """A figure.

    Attributes:
        name: of its files, without an ending.
        title: what it shows.
        caption: how to read it.
        drawing: matplotlib's.
        marks: by the identity (``gid``) of an artist.
    """

    name: str
    title: str
    caption: str
    drawing: Drawing
    marks: dict[str, Mark] = field(default_factory=dict)

    def mark(self, artist: Artist, key: str, tip: str) -> None:
        """Let a page tell of an artist."""
        identity = f"m{len(self.marks)}"
        artist.set_gid(identity)
        self.marks[identity] = Mark(visible(key), visible(tip))

    def save(self, folder: Path) -> None:
        """Write ``<name>.svg`` and ``<name>.png``."""
        with matplotlib.style.context(["default", _STYLE]):
            self.drawing.savefig(folder / f"{file_name(self.name)}.svg", metadata={"Date": None})
            self.drawing.savefig(folder / f"{file_name(self.name)}.png")

    def html(self) -> str:
        """Return the figure for a page, as SVG within it."""
        text = io.StringIO()
        with matplotlib.style.context(["default", _STYLE]):
            self.drawing.savefig(text, format="svg", metadata={"Date": None})
        return (
            f'<figure id="figure-{file_name(self.name)}"><figcaption><b>{html(self.title)}.</b> {html(self.caption)}'
            f"</figcaption>{_inline(text.getvalue(), self)}</figure>"
        )


def draw(
    name: str,
    title: str,
    caption: str,
    paint: Callable[[Figure], None],
    size: tuple[float, float] = (WIDTH, 3.2),
) -> Figure:
    """Return a figure that ``paint`` has drawn in the report's style; ``size`` is in inches."""
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(name, title, caption, Drawing(figsize=size, layout="constrained"))
        paint(figure)
        _show_all(figure.drawing)
    return figure


def color(index: int) -> str:
    """Return the colour of the index-th series."""
    return COLORS[index % len(COLORS)]


def shade(position: float) -> str:
    """Return a colour from dark blue (0) over green to yellow (1)."""
    red, green, blue, _ = matplotlib.colormaps["viridis"](0.92 * min(1.0, max(0.0, position)))
    return f"#{int(255 * red):02x}{int(255 * green):02x}{int(255 * blue):02x}"


def scaled(values: Sequence[float]) -> Callable[[float], float]:
    """Return what maps the values' range to 0..1; the middle where they do not differ."""
    low, high = min(values), max(values)
    return lambda value: 0.5 if high == low else (value - low) / (high - low)


@dataclass(frozen=True)
class _Visible:
    """The labels of another formatter, with escapes for what has no sign of its own."""

    given: FuncFormatter

    def __call__(self, value: float, place: int | None) -> str:
        return visible(self.given(value, place))


def _show_all(drawing: Drawing) -> None:
    """Let all texts show what has no sign of its own: SVG could not hold it."""
    for text in drawing.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(visible(text.get_text()))
    for axes in drawing.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(given := axis.get_major_formatter(), FuncFormatter):  # makes labels anew when drawn
                axis.set_major_formatter(FuncFormatter(_Visible(given)))


def _inline(svg: str, figure: Figure) -> str:
    """Return the SVG element with names of its own on the page, its marks with what is told of them."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(svg)
    for drawn in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(drawn)
    prefix = f"{file_name(figure.name)}-"
    for element in root.iter():
        identity = element.get("id")
        if identity is not None:
            element.set("id", prefix + identity)
        for name, value in list(element.attrib.items()):
            if value.startswith("#") and name.endswith("href"):
                element.set(name, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(name, re.sub(r"url\(#", f"url(#{prefix}", value))
        _tell(element, figure.marks.get(identity or ""))
    root.set("role", "img")
    root.set("aria-label", visible(f"{figure.title}. {figure.caption}"))
    for size in ("width", "height"):  # the page decides; the view box keeps the proportions
        root.attrib.pop(size, None)
    return ElementTree.tostring(root, encoding="unicode")


def _tell(element: ElementTree.Element, mark: Mark | None) -> None:
    if mark is not None:
        element.set("class", "mark")
        element.set("data-key", mark.key)
        element.set("data-tip", mark.tip)
