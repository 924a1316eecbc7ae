"""What a synthetic demo slide holds and where: tissue, lymphoid foci, tumour nests, glands, nuclei.

Maps have one value per 8 x 8 level-0 px: (672, 672), [row, column]. Cells are the 24 x 24 squares
of 224 px. Whether the foci are clustered or scattered can be read from positions only: a focus
never crosses the border of its cell, so the patches of the grid, taken as a set, are alike in both
arrangements.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsizoo.demo.arrangement import choose_clustered, choose_scattered
from wsizoo.demo.frame import (
    CELL,
    CELL_MAP,
    CELLS,
    MAP,
    SIDE,
    STEP,
    Cells,
    Flags,
    Nuclei,
    look_up,
    window,
)
from wsizoo.demo.glands import grow_glands
from wsizoo.demo.noise import Field, Generator, Points, jittered_grid, smooth_noise

FOCI = 20
FOCUS_NUCLEI = 80
LYMPHOCYTE_REACH = 9.0
"""No lymphocyte extends further than this from its centre, px."""


@dataclass(frozen=True)
class Plan:
    """A slide before it is painted.

    tissue, nests, ground, epithelium, lumen: (672, 672) float32 in 0..1; ground is that of foci.
    foci: (20, 2), cells, (column, row).
    nuclei: the first `FOCI * FOCUS_NUCLEI` lymphocytes are those of the foci, focus by focus.
    offset: (x, y) px into the fibre texture.
    """

    tumour: int
    clustered: int
    tissue: Field
    nests: Field
    ground: Field
    epithelium: Field
    lumen: Field
    foci: Cells
    nuclei: tuple[Nuclei, ...]
    offset: tuple[int, int]

    def tumour_cells(self) -> Field:
        """(24, 24) float32, [row, column]: share of a cell's area that is tumour nest."""
        inside = (self.nests > 0.5).reshape(CELLS, CELL_MAP, CELLS, CELL_MAP)
        share: Field = inside.mean(axis=(1, 3), dtype=np.float32)
        return share

    def tumour_share(self) -> float:
        """Area of the nests over area of the tissue."""
        return float((self.nests > 0.5).sum() / (self.tissue > 0.5).sum())


def make_plan(rng: Generator, tumour: int, clustered: int, fibre_angles: Field) -> Plan:
    """Lay out one slide.

    Args:
        tumour, clustered: the labels, 0 or 1.
        fibre_angles: (128, 128) float32, rad, direction of the fibre texture per 8 px of its torus.
    """
    tissue, foci = _place_tissue_and_foci(rng, bool(clustered))
    ground, focus_centres = _grow_foci(rng, foci)
    nests, nest_centres = _grow_nests(rng, tissue, foci, bool(tumour))
    occupied = (tissue < 0.99) | (nests > 0) | _cell_flags(foci)
    epithelium, lumen, gland_nuclei = grow_glands(rng, occupied)
    columns, rows = (int(start) * STEP for start in rng.integers(0, 1024 // STEP, 2))
    taken = (epithelium > 0) | (nests > 0.3) | (ground > 0.3)
    stroma, fibre = _scatter_stroma(rng, tissue, taken, fibre_angles, (columns, rows))
    spindle = rng.random(len(stroma)) < 0.84
    lone = stroma[~spindle]
    lymphocytes = np.concatenate([focus_centres, lone])
    nuclei = (
        Nuclei(
            "spindle",
            stroma[spindle],
            fibre[spindle] + rng.normal(0, 0.25, spindle.sum()),
        ),
        Nuclei("lymphocyte", lymphocytes, rng.uniform(0, np.pi, len(lymphocytes))),
        gland_nuclei,
        Nuclei("tumour", nest_centres, rng.uniform(0, np.pi, len(nest_centres))),
    )
    return Plan(
        tumour,
        clustered,
        tissue,
        nests,
        ground,
        epithelium,
        lumen,
        foci,
        nuclei,
        (columns, rows),
    )


def _place_tissue_and_foci(rng: Generator, clustered: bool) -> tuple[Field, Cells]:
    """Draw outlines until the tissue covers 40 to 60 % of the slide and has room for the foci.

    Room for either arrangement, whichever is wanted: else the amount of tissue would tell.
    """
    rough = 0.10 * smooth_noise(rng, MAP, 26)
    rough += 0.035 * smooth_noise(rng, MAP, 7) + 0.012 * smooth_noise(rng, MAP, 2.5)
    while True:
        tissue = _outline(rng, rough)
        if not 0.40 < tissue.mean() < 0.60:
            continue
        full = _full_cells(tissue)
        grouped, apart = choose_clustered(rng, full, FOCI), choose_scattered(rng, full, FOCI)
        if grouped is not None and apart is not None:
            return tissue, grouped if clustered else apart


def _full_cells(tissue: Field) -> Flags:
    """(24, 24), [row, column]: True where a cell is tissue throughout."""
    full: Flags = tissue.reshape(CELLS, CELL_MAP, CELLS, CELL_MAP).min(axis=(1, 3)) > 0.99
    return full


def _outline(rng: Generator, rough: Field) -> Field:
    """One to three overlapping ellipses with a rough, steep edge."""
    place = ((np.arange(MAP) + 0.5) / MAP).astype(np.float32)
    inside = np.full((MAP, MAP), -np.inf, np.float32)
    for _ in range(rng.integers(1, 4)):
        centre_x, centre_y = rng.uniform(0.3, 0.7, 2)
        half_a, half_b = rng.uniform(0.22, 0.42, 2)
        angle = rng.uniform(0, np.pi)
        x = place[None, :] - np.float32(centre_x)
        y = place[:, None] - np.float32(centre_y)
        along = np.float32(np.cos(angle) / half_a) * x + np.float32(np.sin(angle) / half_a) * y
        across = np.float32(np.cos(angle) / half_b) * y - np.float32(np.sin(angle) / half_b) * x
        np.maximum(inside, 1 - np.hypot(along, across), out=inside)
    border = np.minimum(place, 1 - place)
    border = 8 * np.minimum(border[:, None], border)
    inside = np.minimum(np.minimum(inside, border - 0.4) + rough, border - 0.1)
    tissue: Field = np.clip(45 * inside + 0.5, 0, 1)
    return tissue


def _cell_flags(cells: Cells) -> Flags:
    """(672, 672): True inside the given cells."""
    flags = np.zeros((CELLS, CELLS), bool)
    flags[cells[:, 1], cells[:, 0]] = True
    return flags.repeat(CELL_MAP, axis=0).repeat(CELL_MAP, axis=1)


def _grow_foci(rng: Generator, foci: Cells) -> tuple[Field, Points]:
    """The ground of the foci, and their nuclei: the 80 grid points nearest to each centre.

    Distances are distorted by noise, so that foci are not round. The ground is zero on the
    outermost map px of its cell, so that enlarging the map cannot carry it across the border
    either.
    """
    bumps = 8 * smooth_noise(rng, MAP, 4)
    ground = np.zeros((MAP, MAP), np.float32)
    centres = []
    middle = (np.arange(CELL_MAP) + 0.5) * STEP
    for column, row in foci:
        corner = np.array([column, row]) * CELL
        x, y = CELL / 2 + rng.uniform(-22, 22, 2)
        own = (
            slice(row * CELL_MAP, (row + 1) * CELL_MAP),
            slice(column * CELL_MAP, (column + 1) * CELL_MAP),
        )
        far = np.hypot(middle[None, :] - x, middle[:, None] - y) + bumps[own]
        ground[own][1:-1, 1:-1] = np.clip((72 - far) / 14 + 0.5, 0, 1)[1:-1, 1:-1]
        points = jittered_grid(rng, 19, 13, 5.2) - 19 * 13 / 2 + (x, y)
        points = (
            points[np.abs(points - CELL / 2).max(axis=1) < CELL / 2 - LYMPHOCYTE_REACH] + corner
        )
        reach = np.hypot(*(points - corner - (x, y)).T) + look_up(bumps, points)
        centres.append(points[np.argsort(reach, kind="stable")[:FOCUS_NUCLEI]])
    return ground, np.concatenate(centres)


def _grow_nests(rng: Generator, tissue: Field, foci: Cells, tumour: bool) -> tuple[Field, Points]:
    """Nests until they cover 2 to 5 % of the tissue (the last may exceed it), and their nuclei."""
    nests = np.zeros((MAP, MAP), np.float32)
    if not tumour:
        return nests, np.empty((0, 2))
    focus = _cell_flags(foci)
    full = _full_cells(tissue)
    full[foci[:, 1], foci[:, 0]] = False
    rows, columns = np.nonzero(full)
    bumps = 0.22 * smooth_noise(rng, MAP, 5)
    wanted = rng.uniform(0.02, 0.05) * (tissue > 0.5).sum()
    while (nests > 0.5).sum() < wanted:
        chosen = rng.integers(len(rows))
        centre = (np.array([columns[chosen], rows[chosen]]) + rng.uniform(0.2, 0.8, 2)) * CELL
        radius = rng.uniform(110, 230)
        place, x, y = window(centre, 1.6 * radius)
        grown = np.clip(6 * (1 - np.hypot(x, y) / radius - bumps[place]), 0, 1) * tissue[place]
        grown[focus[place]] = 0
        nests[place] = np.maximum(nests[place], grown)
    points = jittered_grid(rng, SIDE // 21, 21, 7, staggered=True)
    points = points[look_up(nests, points) > 0.5]
    return nests, points[rng.random(len(points)) < 0.92]


def _scatter_stroma(
    rng: Generator,
    tissue: Field,
    taken: Flags,
    fibre_angles: Field,
    offset: tuple[int, int],
) -> tuple[Points, NDArray[np.float64]]:
    """Nuclei between the structures, denser here and sparser there, and the fibres' directions."""
    density = np.clip(0.55 + 0.25 * smooth_noise(rng, MAP, 20), 0, 1)
    density[taken | (tissue < 0.9)] = 0
    points = jittered_grid(rng, SIDE // 32, 32, 14)
    points = points[rng.random(len(points)) < look_up(density, points)]
    torus = ((points + offset) // STEP).astype(int) % len(fibre_angles)
    return points, fibre_angles[torus[:, 1], torus[:, 0]].astype(np.float64)
