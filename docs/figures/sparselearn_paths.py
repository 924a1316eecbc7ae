"""Draws sparselearn-paths.svg, the figure of docs/sparselearn.md: both paths of the selector.

python docs/figures/sparselearn_paths.py
"""

import math
import random
from pathlib import Path

SCORES = (-1.2, 0.1, 2.4, -0.3, -2.0, 1.9, 0.6, -0.9, 1.1, -1.6)  # standardised, of ten patches
KEPT, TEMPERATURE = 3, 0.35
LEFT, CELL, GAP = 176, 44, 6  # of the row of patches, in drawing units
ROW = {"score": 118, "gate": 236, "train": 300, "denoise": 372, "eval": 504}  # tops of the rows
WIDTH, HEIGHT = 900, 592
BAR = 52  # height of a gate of 1
STYLE = """
.paper{fill:#fff}.panel{fill:#f1f5f9}.cell{fill:#7fa6e8}.kept{fill:#c2410c}.bar{fill:#0f766e}
.back{fill:#dfe3ea}.dot{fill:#475569}.box{fill:#fff;stroke:#475569;stroke-width:1.5}
.flow{stroke:#475569;stroke-width:1.8;fill:none}.head{fill:#475569}.line{stroke:#94a3b8}
text{fill:#1e293b;font:14px system-ui,sans-serif}.small{font-size:12.5px;fill:#475569}
.mid{text-anchor:middle}.end{text-anchor:end}.bold{font-weight:600}
@media (prefers-color-scheme:dark){.paper{fill:#0f172a}.panel{fill:#16213a}.cell{fill:#3f6fc4}
.kept{fill:#fb923c}.bar{fill:#5eead4}.back{fill:#243044}.dot{fill:#a9b6c9}
.box{fill:#0f172a;stroke:#a9b6c9}.flow{stroke:#a9b6c9}.head{fill:#a9b6c9}.line{stroke:#64748b}
text{fill:#e8edf5}.small{fill:#b6c2d4}}
"""


def gates(scores: tuple[float, ...], k: int, temperature: float) -> list[float]:
    """Sigmoids of scores, shifted alike so that they sum to k; by bisection."""
    low, high = min(scores) - 50, max(scores) + 50
    for _ in range(200):
        middle = (low + high) / 2
        found = [1 / (1 + math.exp((middle - s) / temperature)) for s in scores]
        low, high = (middle, high) if sum(found) > k else (low, middle)
    return found


def words(x: float, y: float, text: str, kind: str = "") -> str:
    """Text whose baseline begins (`mid`: has its middle, `end`: ends) at (x, y)."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{text}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, opacity: float = 1) -> str:
    """A rectangle, its upper left corner at (x, y)."""
    size = f'width="{width:g}" height="{height:g}" rx="4"'
    faded = f' opacity="{opacity:.2f}"' if opacity < 1 else ""
    return f'<rect x="{x:g}" y="{y:g}" {size} class="{kind}"{faded}/>'


def at(i: float) -> float:
    """Left edge of patch i."""
    return LEFT + i * (CELL + GAP)


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A line with a head at its end."""
    return f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" class="flow" marker-end="url(#tip)"/>'


def noise(x: float, y: float, share: float, seed: int) -> list[str]:
    """Dots over a patch, more of them the more of it is noise."""
    drawn, rng = [], random.Random(seed)
    for _ in range(round(70 * share)):
        a, b = x + 3 + rng.random() * (CELL - 6), y + 3 + rng.random() * (CELL - 6)
        drawn.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="1.5" class="dot"/>')
    return drawn


def scored() -> list[str]:
    """Patches, the scorer and its scores: what both paths share."""
    top, end = ROW["score"], at(len(SCORES) - 1) + CELL
    drawn = [words(24, 40, "both", "bold"), words(24, 62, "N patches", "small")]
    drawn += [rect(at(i), 28, CELL, CELL, "cell") for i in range(len(SCORES))]
    drawn += [words(24, top, "scorer", "small"), words(24, top + 18, "a score a patch", "small")]
    for i, score in enumerate(SCORES):
        drawn.append(arrow(at(i) + CELL / 2, 76, at(i) + CELL / 2, top - 16))
        drawn.append(words(at(i) + CELL / 2, top + 4, f"{score:.1f}", "mid"))
    return [*drawn, words(end + 18, 56, "D numbers each", "small")]


def training() -> list[str]:
    """Gates that sum to k, patches that fade into noise, the denoiser."""
    soft, drawn = gates(SCORES, KEPT, TEMPERATURE), [rect(12, 142, WIDTH - 24, 306, "panel")]
    end = at(len(SCORES) - 1) + CELL
    drawn.append(words(24, 170, "in training", "bold"))
    drawn.append(words(24, ROW["gate"] - 24, "soft top-k", "small"))
    drawn.append(words(24, ROW["gate"] - 6, f"gates sum to k = {KEPT}", "small"))
    for i, gate in enumerate(soft):
        drawn.append(rect(at(i) + 10, ROW["gate"] - BAR, CELL - 20, BAR, "back"))
        drawn.append(rect(at(i) + 10, ROW["gate"] - BAR * gate, CELL - 20, BAR * gate, "bar"))
        drawn.append(words(at(i) + CELL / 2, ROW["gate"] + 18, f"{gate:.2f}", "mid small"))
        drawn.append(rect(at(i), ROW["train"], CELL, CELL, "back"))
        drawn.append(rect(at(i), ROW["train"], CELL, CELL, "cell", math.sqrt(gate)))
        drawn += noise(at(i), ROW["train"], 1 - gate, i)
        x = at(i) + CELL / 2
        drawn.append(arrow(x, ROW["gate"] + 26, x, ROW["train"] - 6))
        drawn.append(arrow(x, ROW["train"] + CELL + 4, x, ROW["denoise"] - 3))
    drawn.append(words(24, ROW["train"] + 18, "noise gate", "small"))
    drawn.append(words(24, ROW["train"] + 36, "&#8730;g x + &#8730;(1-g) noise", "small"))
    drawn.append(words(end + 18, ROW["train"] + 18, "of the variance", "small"))
    drawn.append(words(end + 18, ROW["train"] + 36, "that x has", "small"))
    drawn.append(words(24, ROW["denoise"] + 24, "denoiser", "small"))
    drawn.append(rect(LEFT, ROW["denoise"], end - LEFT, 36, "box"))
    told = "a Transformer block; each patch attends to itself alone"
    drawn.append(words((LEFT + end) / 2, ROW["denoise"] + 23, told, "mid small"))
    middle = (LEFT + end) / 2
    drawn.append(arrow(middle, ROW["denoise"] + 38, middle, ROW["denoise"] + 56))
    told = "aggregator on all N; its loss alone teaches the scorer, colder and colder"
    return [*drawn, words(middle, ROW["denoise"] + 70, told, "mid small")]


def evaluation() -> list[str]:
    """The k best as they are."""
    best = sorted(sorted(range(len(SCORES)), key=lambda i: -SCORES[i])[:KEPT])
    top, middle = ROW["eval"], at(len(SCORES) / 2) - GAP / 2
    drawn = [words(24, 474, "in eval", "bold"), words(24, top - 6, "hard top-k", "small")]
    drawn.append(words(24, top + 12, "no gate, no noise,", "small"))
    drawn.append(words(24, top + 30, "no denoiser", "small"))
    for i in range(len(SCORES)):
        drawn.append(rect(at(i), top - 22, CELL, CELL, "kept" if i in best else "back"))
    drawn.append(arrow(middle, top + 28, middle, top + 50))
    told = "aggregator on the k patches as they were, in their order and place"
    return [*drawn, words(middle, top + 66, told, "mid small")]


def figure() -> str:
    """The whole drawing as SVG, which follows the reader's choice of light or dark."""
    tip = '<path d="M0 0 8 4 0 8z" class="head"/>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>SparseLearn: soft gates and noise in training, the k best patches in eval</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" '
        f'orient="auto">{tip}</marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" class="paper"/>',
        *(part for group in (scored(), training(), evaluation()) for part in group),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("sparselearn-paths.svg").write_text(figure(), encoding="utf-8")
