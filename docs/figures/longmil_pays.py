"""Draws longmil-pays.svg, the figure of docs/longmil.md: python docs/figures/longmil_pays.py"""

import math
from pathlib import Path

WIDE, HIGH, CELL = 24, 18, 13  # cells of the slide, and the side of one in drawing units
QUERY, RADIUS = (14, 8), 4.0  # the patch that attends, and how far, in patches
LEFT, TOP, POOLED, CHART = 24, 70, 410, 660  # of the drawing's three parts
IN_DISK = 317  # lattice points at most 10 apart: the neighbours of a patch, itself among them
TICKS = (100, 1_000, 10_000, 100_000)  # patches of a slide
WIDTH, HEIGHT = 300, 234  # of the chart
LOWEST, HIGHEST = 4, 11  # powers of ten of its y axis
STYLE = """
.paper{fill:#fff}.cell{fill:#c9d3e4}.near{fill:#7fa6e8}.query{fill:#c2410c}
.ring{fill:none;stroke:#1d4ed8;stroke-width:2.5}.flow{stroke:#475569;stroke-width:1.8;fill:none}
.head{fill:#475569}.web{stroke:#0f766e;stroke-width:1.1;opacity:.55}.axis{stroke:#94a3b8}
.grid{stroke:#dfe3ea}.full{stroke:#c2410c}.both{stroke:#1d4ed8}.linear{stroke:#0f766e}
.full,.both,.linear{fill:none;stroke-width:2.5}.linear{stroke-dasharray:6 4}
text{fill:#1e293b;font:14px system-ui,sans-serif}.small{font-size:12.5px;fill:#475569}
.mid{text-anchor:middle}.end{text-anchor:end}.bold{font-weight:600}
@media (prefers-color-scheme:dark){.paper{fill:#0f172a}.cell{fill:#3b4a63}.near{fill:#3f6fc4}
.query{fill:#fb923c}.ring{stroke:#93c5fd}.flow{stroke:#a9b6c9}.head{fill:#a9b6c9}
.web{stroke:#5eead4}.axis{stroke:#64748b}.grid{stroke:#243044}.full{stroke:#fb923c}
.both{stroke:#93c5fd}.linear{stroke:#5eead4}text{fill:#e8edf5}.small{fill:#b6c2d4}}
"""


def tissue() -> set[tuple[int, int]]:
    """Cells (x, y) that hold a patch: one piece with a ragged rim, and an island."""

    def inside(x: int, y: int) -> bool:
        large = ((x - 12.4) / 9.6) ** 2 + ((y - 8.2) / 7.6) ** 2 + 0.12 * ((x * 7 + y * 5) % 4)
        return large < 1.1 or (x - 3) ** 2 + (y - 16) ** 2 < 4

    return {(x, y) for x in range(WIDE) for y in range(HIGH) if inside(x, y)}


def pairs(n: float) -> dict[str, float]:
    """Pairs of tokens that meet in all layers of a slide of n patches without gaps, by method."""
    local = 2 * n * min(n, IN_DISK)
    return {"full": 2 * n * n, "both": local + (n / 4) ** 2, "linear": local}


def words(x: float, y: float, text: str, kind: str = "") -> str:
    """Text whose baseline begins (or, `mid`, has its middle) at (x, y)."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{text}</text>'


def square(x: float, y: float, side: float, kind: str) -> str:
    """A cell, its corner at (x, y)."""
    return f'<rect x="{x:g}" y="{y:g}" width="{side - 2:g}" height="{side - 2:g}" class="{kind}"/>'


def local_layer(cells: set[tuple[int, int]]) -> list[str]:
    """The slide, one patch and its disk."""
    drawn = [words(LEFT, 34, "1  local, twice", "bold")]
    drawn.append(words(LEFT, 54, "to patches within the radius", "small"))
    for x, y in sorted(cells):
        near = math.dist((x, y), QUERY) <= RADIUS
        kind = "query" if (x, y) == QUERY else "near" if near else "cell"
        drawn.append(square(LEFT + x * CELL, TOP + y * CELL, CELL, kind))
    x, y = (start + (at + 0.5) * CELL - 1 for start, at in zip((LEFT, TOP), QUERY, strict=True))
    return [*drawn, f'<circle cx="{x:g}" cy="{y:g}" r="{(RADIUS + 0.5) * CELL:g}" class="ring"/>']


def global_layer(cells: set[tuple[int, int]]) -> list[str]:
    """The pooled cells, and lines from one to all."""
    pooled, side = sorted({(x // 2, y // 2) for x, y in cells}), 17
    at = {c: (POOLED + c[0] * side + side / 2, TOP + 26 + c[1] * side + side / 2) for c in pooled}
    x, y = at[QUERY[0] // 2, QUERY[1] // 2]
    lines = [f'<path d="M{x:g} {y:g}L{a:g} {b:g}" class="web"/>' for a, b in at.values()]
    drawn = [words(POOLED, 34, "2  global, once", "bold")]
    drawn.append(words(POOLED, 54, "each 2 x 2 patches to all others", "small"))
    half = side / 2
    drawn += [square(a - half, b - half, side, "cell") for a, b in at.values()]
    drawn += [*lines, square(x - half, y - half, side, "query")]
    start, end, height = LEFT + WIDE * CELL + 12, POOLED - 12, TOP + HIGH * CELL / 2
    drawn.append(f'<path d="M{start:g} {height:g}H{end:g}" class="flow" marker-end="url(#tip)"/>')
    drawn.append(words((start + end) / 2, height - 10, "pool", "mid small"))
    return drawn


def place(n: float, count: float) -> tuple[float, float]:
    """Where a slide of n patches with so many pairs lies on the chart, of powers of 10."""
    first, last = (math.log10(t) for t in (TICKS[0], TICKS[-1]))
    across = (math.log10(n) - first) / (last - first)
    up = (math.log10(count) - LOWEST) / (HIGHEST - LOWEST)
    return CHART + 46 + across * WIDTH, TOP + (1 - up) * HEIGHT


def chart() -> list[str]:
    """Pairs that meet over patches of a slide."""
    drawn = [words(CHART + 46, 34, "Pairs that meet, radius 10", "bold")]
    bottom, right = TOP + HEIGHT, CHART + 46 + WIDTH
    for power in range(LOWEST, HIGHEST + 1, 2):
        _, y = place(TICKS[0], 10**power)
        drawn.append(f'<path d="M{CHART + 46} {y:g}H{right}" class="grid"/>')
        label = f'10<tspan dy="-5" font-size="10">{power}</tspan>'
        drawn.append(words(CHART + 38, y + 4, label, "end small"))
    for tick in TICKS:
        x, _ = place(tick, 10**LOWEST)
        drawn.append(f'<path d="M{x:g} {TOP}V{bottom}" class="grid"/>')
        drawn.append(words(x, bottom + 18, f"{tick:,}", "mid small"))
    drawn.append(words(CHART + 46 + WIDTH / 2, bottom + 38, "patches of the slide", "mid small"))
    steps = [10 ** (2 + i / 20) for i in range(61)]
    for kind in ("full", "both", "linear"):
        line = "L".join("{:.1f} {:.1f}".format(*place(n, pairs(n)[kind])) for n in steps)
        drawn.append(f'<path d="M{line}" class="{kind}"/>')
    x, _ = place(IN_DISK, 1e5)
    drawn.append(f'<path d="M{x:g} {TOP}V{bottom}" class="axis" stroke-dasharray="3 4"/>')
    drawn.append(words(x + 5, TOP + 14, "disk = slide", "small"))
    rows = (("full", "full"), ("both", "local-global"), ("linear", "local-linear"))
    for kind, name in rows:
        _, y = place(1e5, pairs(1e5)[kind])
        drawn.append(words(right + 8, y + 4, name, "small"))
    return drawn


def figure() -> str:
    """The whole drawing as SVG, which follows the reader's choice of light or dark."""
    cells = tissue()
    width, height = CHART + 46 + WIDTH + 100, TOP + HEIGHT + 54
    tip = '<path d="M0 0 8 4 0 8z" class="head"/>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>LongMIL: local layers, a global layer, and how many pairs of patches meet</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" '
        f'orient="auto">{tip}</marker></defs>',
        f'<rect width="{width}" height="{height}" rx="12" class="paper"/>',
        *(part for group in (local_layer(cells), global_layer(cells), chart()) for part in group),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("longmil-pays.svg").write_text(figure(), encoding="utf-8")
