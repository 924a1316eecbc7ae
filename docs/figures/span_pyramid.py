"""Draws span-pyramid.svg, the figure of docs/span.md: python docs/figures/span_pyramid.py"""

from pathlib import Path

WIDE, HIGH, CELL = 16, 12, 14  # cells of stage 0, and the side of one in drawing units
HALF = 3  # half a window's side in cells, at every stage
QUERIES = ((9, 6), (4, 3), (2, 1))  # the cell of each stage whose windows are shown
LEFT, STEP, TOP = 24, 300, 150  # of the first grid, from grid to grid, of all grids
BELOW = TOP + HIGH * CELL  # lower edge of the grids
STYLE = """
.paper{fill:#fff}.cell{fill:#c9d3e4}.near{fill:#7fa6e8}.query{fill:#c2410c}
.empty{fill:none;stroke:#dfe3ea}.regular,.shifted{fill:none;stroke:#1d4ed8;stroke-width:2.5}
.shifted{stroke:#0f766e;stroke-dasharray:6 4}.token{fill:#fde3c8;stroke:#c2410c;stroke-width:2}
.flow{stroke:#475569;stroke-width:1.8;fill:none}.head{fill:#475569}
.box{fill:#f1f4f9;stroke:#94a3b8}text{fill:#1e293b;font:14px system-ui,sans-serif}
.small{font-size:12.5px;fill:#475569}.mid{text-anchor:middle}.bold{font-weight:600}
@media (prefers-color-scheme:dark){.paper{fill:#0f172a}.cell{fill:#3b4a63}.near{fill:#3f6fc4}
.query{fill:#fb923c}.empty{stroke:#243044}.regular{stroke:#93c5fd}.shifted{stroke:#5eead4}
.token{fill:#5b2f12;stroke:#fb923c}.flow{stroke:#a9b6c9}.head{fill:#a9b6c9}
.box{fill:#1b263b;stroke:#64748b}text{fill:#e8edf5}.small{fill:#b6c2d4}}
"""


def tissue() -> set[tuple[int, int]]:
    """Cells (x, y) of stage 0 that hold a patch: two pieces with a ragged rim."""

    def inside(x: int, y: int) -> bool:
        large = ((x - 9.6) / 5.9) ** 2 + ((y - 6.2) / 4.7) ** 2 + 0.16 * ((x * 7 + y * 5) % 4)
        small = ((x - 2.2) / 2.3) ** 2 + ((y - 2.4) / 2.2) ** 2
        return large < 1.1 or small < 1

    return {(x, y) for x in range(WIDE) for y in range(HIGH) if inside(x, y)}


def square(x: float, y: float, side: float, kind: str) -> str:
    """A square cell, its corner at (x, y)."""
    return f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" class="{kind}"/>'


def words(x: float, y: float, text: str, kind: str = "") -> str:
    """Text whose baseline begins (or, `mid`, has its middle) at (x, y)."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{text}</text>'


def arrow(*points: tuple[float, float], both: bool = False) -> str:
    """A line through these points, with a tip at its end."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    start = ' marker-start="url(#tip)"' if both else ""
    return f'<polyline points="{path}" class="flow" marker-end="url(#tip)"{start}/>'


def window(corner: tuple[int, int], stage: int, kind: str) -> str:
    """The outline of a window, cut at the border of the grid."""
    cell, inset = CELL * 2**stage, 2 if kind == "regular" else -2
    spans = []
    for low, cells in zip(corner, (WIDE >> stage, HIGH >> stage), strict=True):
        first, last = max(low, 0), min(low + 2 * HALF, cells)
        spans.append((first * cell + inset, (last - first) * cell - 2 * inset))
    (x, width), (y, height) = spans
    left = LEFT + stage * STEP
    place = f'x="{left + x}" y="{TOP + y}" width="{width}" height="{height}"'
    return f'<rect {place} rx="3" class="{kind}"/>'


def grid(stage: int, cells: set[tuple[int, int]]) -> list[str]:
    """One stage: its cells, and the two windows of one of them."""
    side, left, query = CELL * 2**stage, LEFT + stage * STEP, QUERIES[stage]
    regular = tuple(v // (2 * HALF) * 2 * HALF for v in query)
    shifted = tuple((v + HALF) // (2 * HALF) * 2 * HALF - HALF for v in query)
    drawn = []
    for x in range(WIDE >> stage):
        for y in range(HIGH >> stage):
            near = any(
                all(low <= v < low + 2 * HALF for low, v in zip(corner, (x, y), strict=True))
                for corner in (regular, shifted)
            )
            kind = "query" if (x, y) == query else "near" if near else "cell"
            kind = kind if (x, y) in cells else "empty"
            drawn.append(square(left + x * side + 1, TOP + y * side + 1, side - 2, kind))
    return [*drawn, window(regular, stage, "regular"), window(shifted, stage, "shifted")]


def tokens() -> list[str]:
    """The global token over each grid, which hears all cells and tells them."""
    drawn = []
    for stage in range(3):
        x = LEFT + stage * STEP + WIDE * CELL / 2
        drawn += [
            f'<circle cx="{x:g}" cy="70" r="19" class="token"/>',
            words(x, 75, f"g{stage}", "mid bold"),
            arrow((x, 94), (x, TOP - 8), both=True),
        ]
        if stage:
            drawn.append(arrow((x - STEP + 24, 70), (x - 26, 70)))
    drawn.append(words(LEFT + 126, 124, "hears all cells, tells all", "small"))
    return drawn


def flows() -> list[str]:
    """What leads from stage to stage, and back."""
    drawn = []
    for stage, patches in enumerate(("one patch", "2 x 2 patches", "4 x 4 patches")):
        left = LEFT + stage * STEP
        middle = left + WIDE * CELL / 2
        drawn.append(words(middle, BELOW + 24, f"stage {stage}: a cell is {patches}", "mid"))
        if stage < 2:
            y = TOP + HIGH * CELL / 2
            drawn += [
                arrow((left + WIDE * CELL + 10, y), (left + STEP - 10, y)),
                words(left + WIDE * CELL + 38, y - 10, "2 x 2", "mid small"),
            ]
            y = BELOW + 72
            drawn += [
                arrow((middle + STEP - 74, y), (middle + 74, y)),
                words(middle + STEP / 2, y - 9, "expand", "mid small"),
                arrow((middle, BELOW + 34), (middle, y - 20)),
                words(middle + 8, BELOW + 46, "skip", "small"),
            ]
        y, name = BELOW + 52, ("decoder 0", "decoder 1", "stage 2")[stage]
        drawn += [
            f'<rect x="{middle - 66:g}" y="{y}" width="132" height="40" rx="6" class="box"/>',
            words(middle, y + 25, name, "mid"),
        ]
    top = LEFT + 2 * STEP + WIDE * CELL / 2
    drawn.append(arrow((top, BELOW + 34), (top, BELOW + 50)))
    return drawn


def answers() -> list[str]:
    """What the heads read."""
    right = LEFT + 2 * STEP + WIDE * CELL + 34
    left = LEFT + WIDE * CELL / 2
    return [
        arrow((right - 120, 70), (right - 6, 70)),
        f'<rect x="{right}" y="38" width="166" height="64" rx="6" class="box"/>',
        words(right + 83, 64, "SPAN-MIL", "mid bold"),
        words(right + 83, 86, "g0 + g1 + g2 to a slide", "mid small"),
        arrow((right - 24, TOP + 84), (right - 6, TOP + 84)),
        f'<rect x="{right}" y="{TOP + 52}" width="166" height="64" rx="6" class="box"/>',
        words(right + 83, TOP + 78, "SPAN v1", "mid bold"),
        words(right + 83, TOP + 100, "attention over the top", "mid small"),
        arrow((left, BELOW + 94), (left, BELOW + 110)),
        f'<rect x="{left - 100:g}" y="{BELOW + 112}" width="200" height="56" rx="6" class="box"/>',
        words(left, BELOW + 136, "SPAN-UNet", "mid bold"),
        words(left, BELOW + 156, "one vector a patch", "mid small"),
    ]


def legend() -> list[str]:
    """What outlines and colours mean."""
    x, y = LEFT + STEP, BELOW + 128
    rows = (("regular", "regular window, 6 x 6 cells"), ("shifted", "window shifted by 3 cells"))
    drawn = [
        f'<rect x="{x}" y="{y + i * 24}" width="26" height="14" rx="3" class="{kind}"/>'
        + words(x + 36, y + 12 + i * 24, text, "small")
        for i, (kind, text) in enumerate(rows)
    ]
    x += 250
    drawn += [square(x, y, 14, "query"), words(x + 24, y + 12, "a cell", "small")]
    drawn += [
        square(x, y + 24, 14, "near"),
        words(x + 24, y + 36, "the cells that it attends to", "small"),
    ]
    return drawn


def figure() -> str:
    """The whole drawing as SVG, which follows the reader's choice of light or dark."""
    cells, grids = tissue(), []
    for stage in range(3):
        grids += grid(stage, cells)
        cells = {(x // 2, y // 2) for x, y in cells}
    width, height = LEFT + 2 * STEP + WIDE * CELL + 34 + 166 + 24, BELOW + 188
    tip = '<path d="M0 0 8 4 0 8z" class="head"/>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>The pyramid of SPAN: three grids, their windows and global tokens</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" '
        f'orient="auto-start-reverse" markerUnits="userSpaceOnUse">{tip}</marker></defs>',
        f'<rect width="{width}" height="{height}" rx="12" class="paper"/>',
        *(part for group in (grids, tokens(), flows(), answers(), legend()) for part in group),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("span-pyramid.svg").write_text(figure(), encoding="utf-8")
