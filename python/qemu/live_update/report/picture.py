# SPDX-License-Identifier: GPL-2.0-or-later
"""
Draw the latency of each request of a guest, around its pauses
"""
import io
import textwrap
from typing import (
    Dict,
    List,
    NamedTuple,
    Sequence,
    Tuple,
)

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FuncFormatter,
    MultipleLocator,
    NullFormatter,
)

from .rings import PERIOD, Request, gaps


# Inches; letters have a good size when a figure is shown 900 pixels wide.
WIDTH = 9.0
LEFT, RIGHT, BETWEEN, BOTTOM = 0.8, 0.12, 0.35, 0.6
HEIGHT = 2.4                    # of the axes of a panel
LINE = 0.19                     # a line of text
DPI = 200
NOTICEABLE = 0.2                # seconds; longer gaps are shaded

# Colours that colour-blind people can tell apart (M. Okabe and K. Ito).
COLOURS = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9')
GAP = '#d55e00'
INK, GREY, PALE = '#1a1a1a', '#666666', '#dddddd'


class Mark(NamedTuple):
    """A switch-over: the guest was paused from begin to end."""
    begin: float
    end: float
    label: str


class Panel(NamedTuple):
    """The requests of a guest from begin to end (seconds, time.time())."""
    title: str
    subtitle: str
    requests: Sequence[Request]
    marks: Sequence[Mark]
    begin: float
    end: float


def _seconds(value: float, _: object = None) -> str:
    """Format a duration as milliseconds or seconds."""
    if value < 0.9995:
        return f'{value * 1000:.3g} ms'
    return f'{value:.3g} s'


def _plain(text: str) -> str:
    """Escape dollars, between which matplotlib expects mathematics."""
    return text.replace('$', r'\$')


def _wrap(text: str, width: float, size: float) -> List[str]:
    """Split a text into lines of at most so many inches."""
    return textwrap.wrap(text, max(10, int(width * 72 / size / 0.55)))


def _step(duration: float) -> float:
    """Choose the distance of two ticks of the time axis."""
    return next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)
                 if duration / step <= 12), duration / 10)


def _draw_requests(axes: Axes, panel: Panel, colours: Dict[str, str]) -> None:
    for colour in dict.fromkeys(colours.values()):
        known = [(request.ended - panel.begin,
                  max(request.ended - request.submitted, PERIOD))
                 for request in panel.requests
                 if colours[request.device] == colour
                 and request.submitted is not None
                 and panel.begin <= request.ended <= panel.end]
        # An SVG with thousands of dots is slow to show: draw a bitmap.
        axes.plot([x for x, _ in known], [y for _, y in known], 'o',
                  color=colour, markersize=2.2, markeredgewidth=0, alpha=0.5,
                  rasterized=True, zorder=3)


def _draw_gaps(axes: Axes, panel: Panel, inch: float) -> None:
    """Shade the gaps; a second is "inch" inches wide."""
    for begin, end in gaps(panel.requests, panel.begin, panel.end):
        length = end - begin
        begin, end = max(begin, panel.begin), min(end, panel.end)
        if length < NOTICEABLE or end <= begin:
            continue
        axes.axvspan(begin - panel.begin, end - panel.begin, color=GAP,
                     alpha=0.25, linewidth=0, zorder=2.5)
        label = f'no I/O for {length:.2f} s'
        level = len(label) * 8 * 0.55 / 72 < (end - begin) * inch
        axes.text((begin + end) / 2 - panel.begin, 0.7, label, color=GAP,
                  fontsize=8, fontweight='bold', zorder=5,
                  rotation='horizontal' if level else 'vertical',
                  horizontalalignment='center', verticalalignment='center',
                  transform=axes.get_xaxis_transform(),
                  bbox={'facecolor': 'white', 'linewidth': 0, 'alpha': 0.85,
                        'boxstyle': 'square,pad=0.15'})


def _rows(panel: Panel, inch: float) -> List[int]:
    """Choose a row for the label of each mark, so that none overlap."""
    ends: List[float] = []
    rows = []
    for mark in panel.marks:
        middle = (mark.begin + mark.end) / 2 * inch
        half = len(mark.label) * 8 * 0.6 / 72 / 2
        row = next((row for row, end in enumerate(ends)
                    if end < middle - half), len(ends))
        ends[row:row + 1] = [middle + half]
        rows.append(row)
    return rows


def _draw_marks(axes: Axes, panel: Panel, rows: Sequence[int]) -> None:
    for mark, row in zip(panel.marks, rows):
        begin, end = mark.begin - panel.begin, mark.end - panel.begin
        # A pause of some milliseconds is too narrow: its edge shows it.
        axes.axvspan(begin, end, facecolor=PALE, edgecolor=INK, linewidth=0.9,
                     alpha=0.6, zorder=2)
        axes.annotate(_plain(mark.label), ((begin + end) / 2, 1),
                      (0, 3 + row * LINE * 72), fontsize=8, color=INK,
                      xycoords=axes.get_xaxis_transform(),
                      textcoords='offset points',
                      horizontalalignment='center', annotation_clip=False)


def _prepare(axes: Axes, panel: Panel, limits: Tuple[float, float],
             step: float) -> None:
    axes.set_yscale('log')
    axes.set_xlim(0, panel.end - panel.begin)
    axes.set_ylim(*limits)
    axes.yaxis.set_major_formatter(FuncFormatter(_seconds))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g} s'))
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=0, colors=GREY, which='both')
    for side, spine in axes.spines.items():
        spine.set_visible(side == 'bottom')
        spine.set_color(GREY)


def draw(panels: Sequence[Panel], title: str = '') -> Figure:
    """Draw panels side by side, with the same scales."""
    latencies = [request.ended - request.submitted for panel in panels
                 for request in panel.requests
                 if request.submitted is not None]
    limits = PERIOD * 0.8, max([0.02, *latencies]) * 1.5
    devices = sorted({request.device for panel in panels
                      for request in panel.requests})
    colours = dict.fromkeys(devices, GREY)
    colours.update(zip(devices, COLOURS))
    durations = [panel.end - panel.begin for panel in panels]
    inch = (WIDTH - LEFT - RIGHT - BETWEEN * (len(panels) - 1)) / sum(
        durations)

    heads = [(_wrap(panel.title, duration * inch, 10),
              _wrap(panel.subtitle, duration * inch, 8.5))
             for panel, duration in zip(panels, durations)]
    rows = [_rows(panel, inch) for panel in panels]
    labels = LINE * max([0, *(row + 1 for some in rows for row in some)])
    above = labels + 0.08 + LINE * max(len(a) + len(b) for a, b in heads)
    top = 0.12 + bool(title) * 0.32
    height = BOTTOM + HEIGHT + above + top

    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    left = LEFT
    for panel, duration, head, some in zip(panels, durations, heads, rows):
        axes = figure.add_axes((left / WIDTH, BOTTOM / height,
                                duration * inch / WIDTH, HEIGHT / height))
        _prepare(axes, panel, limits, _step(sum(durations)))
        if left > LEFT:
            axes.tick_params(labelleft=False)
        _draw_gaps(axes, panel, inch)
        _draw_marks(axes, panel, some)
        _draw_requests(axes, panel, colours)
        place = height - top
        for lines, size, weight, colour in ((head[0], 10, 'bold', INK),
                                            (head[1], 8.5, 'normal', GREY)):
            for line in lines:
                figure.text(left / WIDTH, place / height, _plain(line),
                            fontsize=size, fontweight=weight, color=colour,
                            verticalalignment='top')
                place -= LINE
        left += duration * inch + BETWEEN

    if title:
        figure.text(0.1 / WIDTH, 1 - 0.1 / height, _plain(title), fontsize=12,
                    fontweight='bold', color=INK, verticalalignment='top')
    names = {colour: device for device, colour in colours.items()}
    if GREY in names:
        names[GREY] = 'others'
    keys = [Line2D([], [], color=colour, marker='o', linestyle='',
                   label=_plain(name))
            for colour, name in names.items()]
    keys.append(Line2D([], [], color=INK, marker='|', markersize=9,
                       linestyle='', label='guest paused'))
    figure.legend(handles=keys, ncol=len(keys), loc='lower left',
                  bbox_to_anchor=(LEFT / WIDTH, 0.08 / height),
                  fontsize=8.5, frameon=False, borderpad=0, borderaxespad=0,
                  handletextpad=0, columnspacing=1)
    figure.text(0.1 / WIDTH, (BOTTOM + HEIGHT / 2) / height,
                'time each request took', rotation=90, fontsize=8, color=GREY,
                verticalalignment='center')
    return figure


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element."""
    file = io.StringIO()
    figure.savefig(file, format='svg', dpi=DPI, metadata=dict.fromkeys(
        ('Creator', 'Date', 'Format', 'Type')))
    text = file.getvalue()
    return text[text.index('<svg'):]


def png(figure: Figure, path: str) -> None:
    """Write a figure to a PNG file."""
    figure.savefig(path, format='png', dpi=DPI)
