"""A chart of the report as an SVG file of its own, for pages that are not ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from astrolabe_ray.report.charts import HEIGHT, WIDTH, Line, line_chart

LEGEND_ROW = 18
COLOURS = ("#3b6fb6", "#c8553d", "#3f8f5b", "#8a5fb0", "#b08a2e", "#5a6b7b")
STYLE = """
text { font: 11px sans-serif; fill: #333 } .middle { text-anchor: middle } .end { text-anchor: end }
line, path { stroke: #ccc; fill: none } polyline { fill: none; stroke: var(--c); stroke-width: 2 }
polygon { fill: var(--c); opacity: .15 } circle, rect.key { fill: var(--c) }
"""


def standalone(lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """`line_chart` with its legend, as the text of an SVG file on white ground."""
    chart, _, _ = line_chart(lines, x_label=x_label, y_label=y_label).partition("</svg>")
    body = re.sub(r"^<svg[^>]*>", "", chart)
    style = STYLE + " ".join(f".series-{i} {{ --c: {colour} }}" for i, colour in enumerate(COLOURS))
    keys = "".join(
        f'<rect class="key series-{i}" x="82" y="{HEIGHT + i * LEGEND_ROW}" width="11" height="11"/>'
        f'<text x="100" y="{HEIGHT + i * LEGEND_ROW + 10}">{escape(line.name)}</text>'
        for i, line in enumerate(lines)
    )
    height = HEIGHT + len(lines) * LEGEND_ROW + 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{body}{keys}</svg>\n'
    )
