"""Extraction of a cohort: its memory, with worker processes, and on a local Ray cluster."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks._measure import Cost, cost_of
from wsizoo.demo.cohort import MPP, draw
from wsizoo.slides.tiff import write_pyramid

MANY, FEW, EDGE = 50, 5, 3_584
GOAL = 0.10  # of the memory that a few slides take


def run(scratch: Path, many: int = MANY, few: int = FEW, edge: int = EDGE) -> None:
    slides = write_slides(scratch / "slides", many, edge)
    start = extract(slides[:1], scratch / "one")
    print(f"  extraction of {many} slides of {edge} x {edge} px at {MPP} um/px, handcrafted-he")
    print(f"    one slide alone: {_told(start)}")
    few_cost = extract(slides[:few], scratch / "few")
    many_cost = extract(slides, scratch / "workers-1")
    more = many_cost.largest / few_cost.largest - 1
    print(f"    {few} slides: {_told(few_cost)}")
    print(f"    {many} slides: {_told(many_cost)}; memory {more:+.1%}, goal within {GOAL:.0%}")
    two = extract(slides, scratch / "workers-2", "--workers", "2")
    speed = many_cost.seconds / two.seconds
    print(f"    {many} slides, --workers 2: {_told(two)}; {speed:.2f} x as fast as one")
    if find_spec("ray") is None:
        print("    --engine ray: left out, Ray is not installed: pip install 'wsizoo[ray]'")
        return
    cluster = extract(slides, scratch / "ray", "--workers", "2", "--engine", "ray")
    speed = many_cost.seconds / cluster.seconds
    print(f"    {many} slides, --engine ray: {_told(cluster)}; {speed:.2f} x as fast as one")


def _told(cost: Cost) -> str:
    return (
        f"{cost.seconds:.1f} s, {cost.largest:.0f} MiB at most in one process, "
        f"{cost.together:.0f} MiB in all"
    )


def write_slides(folder: Path, count: int, edge: int) -> list[Path]:
    """Slides that differ: parts of the middle of one synthetic slide, turned and mirrored."""
    image = draw(1).image
    room = (image.shape[0] - edge) // 2
    folder.mkdir()
    paths = []
    for index in range(count):
        x, y = (room // 2 + index * step % room for step in (401, 577))
        part = image[y : y + edge, x : x + edge]
        part = np.rot90(part[:, ::-1] if index % 2 else part, index // 2)
        paths.append(write_pyramid(folder / f"slide-{index:02d}.svs", part, MPP))
    return paths


def extract(slides: list[Path], out: Path, *options: str) -> Cost:
    """Run `wsizoo extract` in a process of its own."""
    names = [str(slide) for slide in slides]
    return cost_of([sys.executable, "-m", "wsizoo", "extract", *names, "-o", str(out), *options])
