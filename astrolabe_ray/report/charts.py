"""Charts as SVG: lines with bands, a timeline, bars. Plain strings, no library in the page.

Colours come from the page's style: item i of a chart has the class `series-i`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from astrolabe_ray.types import Span

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 82, 14, 10, 42
NOTHING = '<p class="nothing">No data.</p>'


@dataclass(frozen=True)
class Line:
    """A named curve; `spread` is the half-width of its band at each point, or empty."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    spread: tuple[float, ...] = ()


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """Curves with their bands, axes and a legend (of two curves or more). A single point has a whisker."""
    lines = [line for line in lines if line.xs]
    if not lines:
        return NOTHING
    edges = [y + sign * s for line in lines for y, s in _with_spread(line) for sign in (-1, 1)]
    axes = _Axes(*_range([x for line in lines for x in line.xs]), *_range(edges))
    body = "".join(_series(i, line, axes) for i, line in enumerate(lines))
    legend = _legend([line.name for line in lines]) if len(lines) > 1 else ""
    return _svg(axes.frame(x_label, y_label) + body, f"{y_label} over {x_label}") + legend


def bar_chart(counts: Sequence[tuple[str, float]], *, x_label: str, y_label: str) -> str:
    """One bar per label."""
    if not counts:
        return NOTHING
    axes = _Axes(0, len(counts), 0, max(count for _, count in counts) or 1)
    bars = []
    for i, (label, count) in enumerate(counts):
        left, right, top = axes.x(i + 0.15), axes.x(i + 0.85), axes.y(count)
        bars.append(
            f'<rect class="series-0 fill" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{axes.y(0) - top:.1f}"><title>{escape(label)}: {count:g}</title></rect>'
            + _text((left + right) / 2, HEIGHT - BOTTOM + 16, label, "tick middle")
        )
    return _svg(axes.frame(x_label, y_label, x_ticks=False) + "".join(bars), f"{y_label} by {x_label}")


def timeline_chart(spans: Sequence[Span]) -> str:
    """A row for each worker, a colour for each stage."""
    if not spans:
        return NOTHING
    workers = sorted({span.who for span in spans}, key=lambda who: (who == "learner", who))
    stages = list(dict.fromkeys(span.stage for span in spans))
    end = max(span.end_s for span in spans) or 1.0
    width, row, left = 960, 28, 116
    height = row * len(workers) + 40

    def x(seconds: float) -> float:
        return left + seconds / end * (width - left - 16)

    parts = [_text(left - 10, row * i + 20, who, "tick end") for i, who in enumerate(workers)]
    for span in spans:
        detail = ", ".join(f"{key} {value}" for key, value in span.detail.items())
        title = f"{span.stage} by {span.who} ({detail}): {span.start_s:.1f} to {span.end_s:.1f} s"
        parts.append(
            f'<rect class="series-{stages.index(span.stage)} fill span" x="{x(span.start_s):.1f}" '
            f'y="{row * workers.index(span.who) + 5}" height="{row - 8}" '
            f'width="{max(1.0, x(span.end_s) - x(span.start_s)):.1f}"><title>{escape(title)}</title></rect>'
        )
    parts += [_text(x(tick), height - 22, f"{tick:g}", "tick middle") for tick in _ticks(0, end, 8)]
    parts.append(_text((left + width) / 2, height - 4, "seconds since the start", "label middle"))
    svg = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="timeline of the roles">'
        f"{''.join(parts)}</svg>"
    )
    return f'<div class="scroll wide">{svg}</div>{_legend(stages)}'


@dataclass(frozen=True)
class _Axes:
    x_min: float
    x_max: float
    y_min: float
    y_max: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_min) / (self.x_max - self.x_min) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_min) / (self.y_max - self.y_min)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def frame(self, x_label: str, y_label: str, *, x_ticks: bool = True) -> str:
        """Grid lines, tick labels and the names of the axes."""
        parts = []
        for tick in _ticks(self.y_min, self.y_max):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(LEFT - 6, y + 4, f"{tick:g}", "tick end"))
        for tick in _ticks(self.x_min, self.x_max) if x_ticks else ():
            parts.append(_text(self.x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "tick middle"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "label middle"))
        parts.append(
            f'<g transform="rotate(-90 12 {middle})">{_text(12, middle, y_label, "label middle")}</g>'
        )
        return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest; a single value gets room on both sides."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1))


def _with_spread(line: Line) -> Iterable[tuple[float, float]]:
    return zip(line.ys, line.spread or (0.0,) * len(line.ys), strict=True)


def _series(number: int, line: Line, axes: _Axes) -> str:
    xs = [axes.x(x) for x in line.xs]
    upper = [axes.y(y + s) for y, s in _with_spread(line)]
    lower = [axes.y(y - s) for y, s in _with_spread(line)]
    parts = []
    if line.spread:
        outline = [*zip(xs, upper, strict=True), *zip(xs[::-1], lower[::-1], strict=True)]
        kind = "band" if len(xs) > 1 else "whisker"
        parts.append(f'<polygon class="series-{number} {kind}" points="{_joined(outline)}"/>')
    curve = [(x, axes.y(y)) for x, y in zip(xs, line.ys, strict=True)]
    parts.append(f'<polyline class="series-{number} curve" points="{_joined(curve)}"/>')
    radius = 4 if len(xs) <= 12 else 2
    for (x, y), true_x, true_y in zip(curve, line.xs, line.ys, strict=True):
        title = escape(f"{line.name}: {true_y:.4g} at {true_x:g}")
        parts.append(
            f'<circle class="series-{number} point" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{title}</title></circle>"
        )
    return "".join(parts)


def _joined(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x: float, y: float, content: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(content)}</text>'


def _legend(names: Sequence[str]) -> str:
    keys = (f'<span><i class="series-{i}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<p class="legend">{"".join(keys)}</p>'


def _svg(body: str, description: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">{body}</svg>'


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within low..high, about `count` of them. Needs low < high."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
