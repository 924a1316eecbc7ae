"""Coordinates of other tools onto one grid, with a report of what had to move."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wsizoo.errors import DataError

Rule = Literal["error", "nearest", "mean", "first"]
RULES: tuple[Rule, ...] = get_args(Rule)
Floats = NDArray[np.float64]
Index = NDArray[np.int64]

SLACK = 1.0  # px that rounding may cost: on a grid all the same
EXACT = 1e-3  # px
PHASES = 1024  # resolution at which the origin of a grid is sought, per step
REACH = (1, 2, 4, 8, 16, 32)  # cells that `nearest` looks around for a free one


@dataclass(frozen=True)
class Regridded:
    """What became of the coordinates of a slide; distances in level-0 px (or the file's unit).

    Args:
        n: patches in the file. spacing: step of the grid, None where there is none to be found.
        moved: patches that were not on the grid. mean_px, max_px: how far those moved.
        collisions: patches beyond the first of a cell. rule: what was done about them.
        lost: patches that are no rows of their own any more (`mean`, `first`).
    """

    n: int
    spacing: float | None = None
    moved: int = 0
    mean_px: float = 0.0
    max_px: float = 0.0
    collisions: int = 0
    lost: int = 0
    rule: Rule = "error"

    @property
    def on_grid(self) -> bool:
        """Whether every patch lay on one grid, in a cell of its own."""
        return self.spacing is not None and self.moved == 0 and self.collisions == 0

    @property
    def max_patches(self) -> float:
        """The longest move in steps of the grid."""
        return self.max_px / self.spacing if self.spacing else 0.0

    def told(self) -> str:
        """One line for people; "" where nothing had to be done."""
        parts = []
        if self.moved:
            parts.append(
                f"{self.moved} of {self.n} patches moved onto the grid, {self.mean_px:.1f} px in "
                f"the mean, {self.max_px:.1f} at most ({self.max_patches:.2f} patches)"
            )
        if self.collisions:
            parts.append(f"{self.collisions} collided ({self.rule})")
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Grid:
    """The result of `fit` and `settle`.

    Args:
        coords: (M, 2) int64; `round(coords / spacing)` are cells of one grid from (0, 0).
        cells: (M, 2) int64. rows: (M,) the rows of the file that these patches are.
        groups: (N,) row of `coords` that each patch of the file went to.
    """

    coords: Index
    cells: Index
    rows: Index
    groups: Index
    report: Regridded


def fit(coords: Floats, steps: Sequence[float | None] = ()) -> Grid:
    """The grid that moves patches least; they may still share cells.

    Args:
        coords: (N, 2) top-left corners, finite and >= 0.
        steps: distances of neighbours that the file states or suggests, the likeliest first; the
            coordinates' own is tried too.

    Raises:
        DataError: neighbours less than 1 px apart: no coordinates in px.

    Cost: N log N.
    """
    found = estimate_step(coords)
    whole = round(found) if found else None
    tried = dict.fromkeys(float(s) for s in (*steps, found, whole) if s)
    n = len(coords)
    if not tried:
        kept = np.rint(coords).astype(np.int64)
        own = np.arange(n)
        return Grid(kept, np.zeros_like(kept), own, own, Regridded(n))
    fits = [_on(coords, step) for step in tried]
    return min(fits, key=lambda each: (each[0], each[1].report.collisions))[1]


def settle(grid: Grid, coords: Floats, rule: Rule, name: str) -> Grid:
    """Resolve the cells that several patches share.

    Args:
        coords: as given to `fit`. name: whose they are.

    Raises:
        DataError: there are any and the rule is "error", or "nearest" finds no free cell near.
    """
    if grid.report.collisions == 0:
        return grid
    if rule == "error":
        raise DataError(_offenders(grid, coords, name))
    if rule == "nearest":
        return _spread(grid, coords, name)
    rows, groups = _first_of_each(grid.cells)
    report = replace(grid.report, rule=rule, lost=len(groups) - len(rows))
    return Grid(grid.coords[rows], grid.cells[rows], rows, groups, report)


def estimate_step(coords: Floats) -> float | None:
    """The commonest distance of neighbours in a row or column of patches; None without any."""
    gaps = np.concatenate([_gaps(coords, axis) for axis in (0, 1)])
    if len(gaps) == 0:
        gaps = np.concatenate([np.diff(np.unique(coords[:, axis])) for axis in (0, 1)])
    if len(gaps) == 0:
        return None
    whole, counts = np.unique(np.rint(gaps), return_counts=True)
    common = whole[counts.argmax()]
    near = gaps[np.abs(gaps - common) <= SLACK]
    return _refined(coords, float(near.mean()))


def _gaps(coords: Floats, axis: int) -> Floats:
    """Distances along an axis of neighbours that agree in the other, in any order of rows."""
    along, across = coords[:, axis], np.rint(coords[:, 1 - axis])
    order = np.lexsort((along, across))
    gaps: Floats = np.diff(along[order])
    gaps = gaps[(np.diff(across[order]) == 0) & (gaps > SLACK)]
    return gaps


def _refined(coords: Floats, step: float) -> float:
    """The step by least squares over all cells, where it puts every patch on one grid."""
    cells = np.stack([_counted(coords[:, axis], step) for axis in (0, 1)], 1)
    centred = cells - cells.mean(0)
    spread = float((centred**2).sum())
    if spread == 0:
        return step
    better = float((centred * (coords - coords.mean(0))).sum()) / spread
    whole = float(round(better))
    if whole > 0 and _rest(coords, whole) < EXACT:
        return whole
    return better if better > 0 and _rest(coords, better) <= 2 * _slack(better) else step


def _counted(values: Floats, step: float) -> Floats:
    """Cells along an axis, counted from one value to the next: a step that is off cannot add up."""
    used, inverse = np.unique(values, return_inverse=True)
    counted: Floats = np.cumsum(np.rint(np.diff(used, prepend=used[:1]) / step))[inverse]
    return counted


def _rest(coords: Floats, step: float) -> float:
    """How far patches are from one grid of this step, at most."""
    low = coords.min(0)
    rest = coords - low - np.rint((coords - low) / step) * step
    return float(np.ptp(rest, axis=0).max())


def _slack(step: float) -> float:
    return min(SLACK, step / 8)


def _on(coords: Floats, step: float) -> tuple[int, Grid]:
    """How many patches are off the best grid of this step, and each in its cell."""
    if step < 1:
        raise DataError(
            f"coordinates are {step:.3g} apart, expected level-0 px of patches (or um), as the "
            "tool that cut them wrote them"
        )
    places = np.rint(coords).astype(np.int64)
    cells = np.rint(places / step).astype(np.int64)
    rest = coords - cells * step
    slack = _slack(step)
    n, own = len(coords), np.arange(len(coords))
    if (np.ptp(rest, axis=0) <= 2 * slack).all():
        report = Regridded(n, step, collisions=n - _count(cells))
        return 0, Grid(places, cells, own, own, report)
    best = np.array([_origin(coords[:, axis], step) for axis in (0, 1)])
    rest = np.abs((coords - best + step / 2) % step - step / 2)
    misfits = int(np.any(rest > slack, axis=1).sum())
    origin = _safe(best, step)
    cells = np.rint((coords - origin) / step).astype(np.int64)
    exact = origin + cells * step
    off = np.any(np.abs(coords - exact) > slack, axis=1)
    places = np.where(off[:, None], _placed(exact), places)
    off = np.any(np.abs(places - coords) > slack, axis=1)  # what was put back to 0 stays
    return misfits, Grid(places, cells, own, own, _moves(coords, places, off, step, cells))


def _safe(origin: Floats, step: float) -> Floats:
    """So far from half a step that rounding cannot change a cell."""
    limit = max(0.0, step / 2 - 2 * _slack(step) - 0.5)
    return origin.clip(-limit, limit)


def _placed(exact: Floats) -> Index:
    return np.rint(exact).astype(np.int64).clip(0)


def _moves(
    coords: Floats, places: Index, off: NDArray[np.bool_], step: float, cells: Index
) -> Regridded:
    far = np.hypot(*(places - coords)[off].T)
    return Regridded(
        len(coords),
        step,
        moved=int(off.sum()),
        mean_px=float(far.mean()) if len(far) else 0.0,
        max_px=float(far.max()) if len(far) else 0.0,
        collisions=len(cells) - _count(cells),
    )


def _origin(values: Floats, step: float) -> float:
    """Where the grid begins on one axis, in [-step/2, step/2]: the circular median of the rests."""
    phase = np.mod(values, step)
    width = max(1.0, step / PHASES)
    bins = np.minimum((phase / width).astype(np.int64), int(np.ceil(step / width)) - 1)
    _, inverse, weight = np.unique(bins, return_inverse=True, return_counts=True)
    middle = np.bincount(inverse, phase) / weight
    apart = np.abs(middle[:, None] - middle[None])
    cost = np.rint(np.minimum(apart, step - apart) @ weight)  # whole px: ties are real ties
    signed = np.where(middle > step / 2, middle - step, middle)
    best = min(np.flatnonzero(cost == cost.min()), key=lambda i: (abs(signed[i]), signed[i]))
    return float(signed[best])


def _count(cells: Index) -> int:
    return len(np.unique(_key(cells)))


def _key(cells: Index) -> Index:
    low = cells.min(0)
    width = cells[:, 1].max() - low[1] + 1
    key: Index = (cells[:, 0] - low[0]) * width + cells[:, 1] - low[1]
    return key


def _first_of_each(cells: Index) -> tuple[Index, Index]:
    """The first row of each cell, in the order of rows, and which of them each row belongs to."""
    _, first, inverse = np.unique(_key(cells), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]


def _offenders(grid: Grid, coords: Floats, name: str) -> str:
    rows, groups = _first_of_each(grid.cells)
    second = int(np.flatnonzero(rows[groups] != np.arange(len(groups)))[0])
    first = int(rows[groups[second]])
    at = " and ".join(f"({coords[i, 0]:g}, {coords[i, 1]:g})" for i in (first, second))
    report = grid.report
    return (
        f"{name}: {report.collisions} of {report.n} patches share a cell of the grid (spacing "
        f"{report.spacing:g}) with another, first patches {first} and {second} at {at}. Choose "
        "what becomes of them: wsizoo convert FILE FOLDER --collisions nearest (the one farther "
        "off goes to the next free cell), mean (one patch with the mean of their features) or "
        "first (the others go)"
    )


def _spread(grid: Grid, coords: Floats, name: str) -> Grid:
    """Of the patches of a cell the nearest stays; the others go to the nearest free cells."""
    step = grid.report.spacing
    assert step is not None
    origin = _safe(np.median(grid.coords - grid.cells * step, axis=0), step)
    cells = grid.cells.copy()
    away = np.hypot(*(coords - origin - cells * step).T)
    order = np.lexsort((coords[:, 1], coords[:, 0], away))  # the same for any order of rows
    stays, _ = _first_of_each(cells[order])
    losers = np.delete(order, stays)
    taken = set(map(tuple, cells.tolist()))
    for row in losers.tolist():
        free = _nearest_free(cells[row], (coords[row] - origin) / step, taken)
        if free is None:
            raise DataError(
                f"{name}: no free cell within {REACH[-1]} of patch {row} at ({coords[row, 0]:g}, "
                f"{coords[row, 1]:g}): too many patches lie on each other. Choose --collisions "
                "mean or first"
            )
        taken.add(free)
        cells[row] = free
    places = grid.coords.copy()
    places[losers] = _placed(origin + cells[losers] * step)
    off = np.any(np.abs(places - coords) > _slack(step), axis=1)
    report = _moves(coords, places, off, step, cells)
    report = replace(report, rule="nearest", collisions=grid.report.collisions)
    return Grid(places, cells, grid.rows, grid.groups, report)


def _nearest_free(
    cell: Index, place: Floats, taken: set[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """The free cell nearest to a place, both in steps of the grid."""
    for reach in REACH:
        near = cell + _square(reach)
        far = np.hypot(*(near - place).T)
        for i in np.lexsort((near[:, 1], near[:, 0], far)).tolist():
            found = tuple(near[i].tolist())
            if min(found) >= 0 and found not in taken:
                if far[i] <= reach + 0.5 or reach == REACH[-1]:
                    return found
                break  # one outside this square may be nearer
    return None


@functools.cache
def _square(reach: int) -> Index:
    """Offsets of the cells around one."""
    steps = range(-reach, reach + 1)
    return np.array([offset for offset in itertools.product(steps, repeat=2) if any(offset)])
