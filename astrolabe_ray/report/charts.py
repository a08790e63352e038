"""Charts as SVG: lines with bands, a timeline, bars. Plain strings, no library in the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 38


@dataclass(frozen=True)
class Line:
    """A named curve; `spread` is the half-width of its band at each point, or empty."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    spread: tuple[float, ...] = ()
    marks_only: bool = False  # separate points with error bars instead of a curve


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """Curves with their bands, axes and a legend. Line i has the class `series-i`."""
    lines = [line for line in lines if line.xs]
    if not lines:
        return '<p class="nothing">No data.</p>'
    lows = [y - s for line in lines for y, s in zip(line.ys, _spread(line), strict=True)]
    highs = [y + s for line in lines for y, s in zip(line.ys, _spread(line), strict=True)]
    xs = [x for line in lines for x in line.xs]
    axes = _Axes(min(xs), max(xs), min(lows), max(highs))
    body = "".join(_series(i, line, axes) for i, line in enumerate(lines))
    return _svg(axes.frame(x_label, y_label) + body, f"{y_label} over {x_label}") + _legend(lines)


def bar_chart(counts: Sequence[tuple[str, float]], *, x_label: str, y_label: str) -> str:
    """One bar per label."""
    if not counts:
        return '<p class="nothing">No data.</p>'
    axes = _Axes(0, len(counts), 0, max(count for _, count in counts))
    bars = []
    for i, (label, count) in enumerate(counts):
        left, right, top = axes.x(i + 0.15), axes.x(i + 0.85), axes.y(count)
        bars.append(
            f'<rect class="series-0 fill" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{axes.y(0) - top:.1f}"><title>{escape(label)}: {count:g}</title></rect>'
            f'<text x="{(left + right) / 2:.1f}" y="{HEIGHT - BOTTOM + 14}" class="tick middle">{escape(label)}</text>'
        )
    return _svg(axes.frame(x_label, y_label, x_ticks=False) + "".join(bars), f"{y_label} by {x_label}")


def timeline_chart(spans: Sequence[tuple[str, str, float, float, str]]) -> str:
    """A row for each stage: (stage, who, start, end in seconds, title)."""
    if not spans:
        return '<p class="nothing">No data.</p>'
    stages = list(dict.fromkeys(stage for stage, *_ in spans))
    end = max(stop for _, _, _, stop, _ in spans)
    width, row = 960, 26
    left, height = 70, row * len(stages) + 34

    def x(seconds: float) -> float:
        return left + seconds / end * (width - left - 10)

    parts = []
    for i, stage in enumerate(stages):
        parts.append(f'<text x="{left - 8}" y="{row * i + 20}" class="tick end">{escape(stage)}</text>')
        for name, who, start, stop, title in spans:
            if name == stage:
                parts.append(
                    f'<rect class="series-{i} fill span" x="{x(start):.1f}" y="{row * i + 6}" height="{row - 8}" '
                    f'width="{max(1.0, x(stop) - x(start)):.1f}">'
                    f"<title>{escape(f'{who}: {title}, {stop - start:.2f} s')}</title></rect>"
                )
    for tick in _ticks(0, end):
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 14}" class="tick middle">{tick:g}</text>')
    parts.append(
        f'<text x="{width / 2}" y="{height - 1}" class="label middle">seconds since the start</text>'
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="timeline of the roles">'
        f"{''.join(parts)}</svg>"
    )


@dataclass(frozen=True)
class _Axes:
    x_min: float
    x_max: float
    y_min: float
    y_max: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_min) / ((self.x_max - self.x_min) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_min) / ((self.y_max - self.y_min) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def frame(self, x_label: str, y_label: str, *, x_ticks: bool = True) -> str:
        """Grid lines, tick labels and the names of the axes."""
        parts = []
        for tick in _ticks(self.y_min, self.y_max):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="tick end">{tick:g}</text>')
        for tick in _ticks(self.x_min, self.x_max) if x_ticks else ():
            parts.append(
                f'<text x="{self.x(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" class="tick middle">{tick:g}</text>'
            )
        middle = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" class="label middle">{escape(x_label)}</text>')
        parts.append(
            f'<text transform="translate(12 {middle}) rotate(-90)" class="label middle">{escape(y_label)}</text>'
        )
        return "".join(parts)


def _spread(line: Line) -> tuple[float, ...]:
    return line.spread or (0.0,) * len(line.xs)


def _series(number: int, line: Line, axes: _Axes) -> str:
    points = [(axes.x(x), axes.y(y)) for x, y in zip(line.xs, line.ys, strict=True)]
    edges = [
        (axes.y(y + s), axes.y(y - s)) for y, s in zip(line.ys, _spread(line), strict=True)
    ]  # upper and lower end of the band
    parts = []
    if line.marks_only:
        for (x, _), (top, bottom) in zip(points, edges, strict=True):
            parts.append(
                f'<line class="series-{number} whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
            )
    else:
        outline = [(x, top) for (x, _), (top, _) in zip(points, edges, strict=True)]
        outline += [(x, bottom) for (x, _), (_, bottom) in zip(points, edges, strict=True)][::-1]
        if line.spread:
            parts.append(f'<polygon class="series-{number} band" points="{_joined(outline)}"/>')
        parts.append(f'<polyline class="series-{number} curve" points="{_joined(points)}"/>')
    for (x, y), true_x, true_y in zip(points, line.xs, line.ys, strict=True):
        title = escape(f"{line.name}: {true_y:.4g} at {true_x:g}")
        parts.append(
            f'<circle class="series-{number} point" cx="{x:.1f}" cy="{y:.1f}" r="{4 if line.marks_only else 2}">'
            f"<title>{title}</title></circle>"
        )
    return "".join(parts)


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _legend(lines: Sequence[Line]) -> str:
    keys = (f'<span><i class="series-{i}"></i>{escape(line.name)}</span>' for i, line in enumerate(lines))
    return f'<p class="legend">{"".join(keys)}</p>'


def _svg(body: str, description: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">{body}</svg>'


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within low..high, about `count` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
