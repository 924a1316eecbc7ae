"""Augmentation of coordinates: one rotation of a slide's cells against a plain loop over points."""

import math

import torch
from torch import Tensor

from benchmarks._measure import interleaved, load_now, report_speed
from wsizoo.augment import REACH, WIDER, augment_cells

GOALS = {4_000: None, 20_000: 20.0}  # patches: at least so many times as fast
DEGREES = 23.7


def run() -> None:
    print(f"  {load_now()}")
    angle = torch.tensor(math.radians(DEGREES))
    cos, sin = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([cos, -sin, sin, cos]).reshape(2, 2)
    for n, least in GOALS.items():
        cells = half_filled_box(n)
        if not torch.equal(augment_cells(cells, turn), plain_augment(cells, turn)):
            raise SystemExit(f"{n} patches: the two differ")
        ours, plain = interleaved(
            lambda cells=cells: augment_cells(cells, turn),
            lambda cells=cells: plain_augment(cells, turn),
            rounds=7,
        )
        report_speed(f"{n} patches", ours, plain, "a plain loop", least)


def half_filled_box(n: int) -> Tensor:
    """(n, 2) distinct cells of a box of 2 n."""
    height = round((2 * n) ** 0.5)
    drawn = torch.randperm(2 * n, generator=torch.Generator().manual_seed(0))[:n].sort().values
    return torch.stack([drawn // height, drawn % height], 1)


def plain_augment(cells: Tensor, matrix: Tensor) -> Tensor:
    """`wsizoo.augment.augment_cells`, the rules one after the other."""
    points = cells.float()
    points = (points - points.mean(0).round()) @ matrix
    return plain_snap(points - points.amin(0))


def plain_snap(points: Tensor) -> Tensor:
    """`wsizoo.augment.snap`, point by point."""
    rounded = points.round()
    turns = ((points - rounded) ** 2).sum(1).argsort(stable=True)
    taken: set[tuple[int, int]] = set()
    placed = torch.empty(len(points), 2, dtype=torch.int64)
    for i in turns.tolist():
        x, y = points[i].tolist()
        cell = (round(x), round(y))
        reach = REACH
        while cell in taken:
            free = [
                ((x - a) * (x - a) + (y - b) * (y - b), order, (a, b))
                for order, (a, b) in enumerate(around(round(x), round(y), reach))
                if (a, b) not in taken
            ]
            if free:
                cell = min(free)[2]
            reach = int(reach * WIDER)
        taken.add(cell)
        placed[i] = torch.tensor(cell)
    return placed - placed.amin(0)


def around(a: int, b: int, reach: int) -> list[tuple[int, int]]:
    """Cells ring by ring; of each the two sides along axis a, cell by cell, then the others."""
    cells = []
    for r in range(1, reach + 1):
        cells += [(a + i, b + j) for i in range(-r, r + 1) for j in (-r, r)]
        cells += [(a + i, b + j) for j in range(-r + 1, r) for i in (-r, r)]
    return cells
