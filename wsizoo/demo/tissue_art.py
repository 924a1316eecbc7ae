"""Paint a planned synthetic slide in haematoxylin and eosin: fibres, nuclei, stains, light.

Concentrations of the two stains are built up in blocks that stay in the processor's cache, and
turned into colour by the Beer-Lambert law. Fibre texture and nucleus stamps have fixed seeds and
are made once a process.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from wsizoo.demo.frame import MAP, SIDE, STEP
from wsizoo.demo.noise import Field, Generator, enlarge, smooth_noise
from wsizoo.demo.plan import Plan

TORUS = 1024
BLOCK = 168
STAMP = 36
MARGIN = STAMP // 2
ANGLES = 24
VARIANTS = 6
FULL = 200.0
"""The value of a stamp at darkness 1."""

HAEMATOXYLIN = np.array([0.5626, 0.7201, 0.4062])
EOSIN = np.array([0.2159, 0.8012, 0.5581])
GRAIN = 0.8

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Texture:
    """The fibres of the stroma on a torus, extended by one block to the right and bottom.

    eosin, haematoxylin: concentrations. grain: mean 0, variance about 0.5. angles: (128, 128) rad.
    """

    eosin: Field
    haematoxylin: Field
    grain: Field
    angles: Field


@dataclass(frozen=True)
class NucleusStyle:
    """Half-axes in px, how much paler the middle is, the chromatin's contrast, the darkness."""

    long: tuple[float, float]
    short: tuple[float, float]
    vesicular: float
    chromatin: float
    darkness: tuple[float, float]
    nucleolus: bool = False


STYLES = {
    "spindle": NucleusStyle((9, 14), (2.8, 4.2), 0.15, 0.10, (0.75, 0.95)),
    "epithelial": NucleusStyle((7, 9), (5, 6.5), 0.30, 0.12, (0.65, 0.85)),
    "lymphocyte": NucleusStyle((5, 6.2), (4.7, 5.8), 0.05, 0.10, (0.95, 1.15)),
    "tumour": NucleusStyle((8.5, 13), (7, 10), 0.55, 0.20, (0.60, 0.90), nucleolus=True),
}


@cache
def make_texture() -> Texture:
    """Wavy collagen: two sinusoids under one warp, of varying contrast, with clefts and grain."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:TORUS, :TORUS].astype(np.float32) * np.float32(2 * np.pi / TORUS)
    warp = 34 * smooth_noise(rng, TORUS, 55) + 4 * smooth_noise(rng, TORUS, 12)
    warp = (warp + 1.2 * smooth_noise(rng, TORUS, 4)) * np.float32(2 * np.pi / 32)
    phase = 32 * y + 8 * x + warp
    waves = 0.325 * (1 + np.sin(phase)) + 0.175 * (1 + np.sin(64 * y + 24 * x + 2.3 * warp))
    contrast = np.clip(0.55 + 0.35 * smooth_noise(rng, TORUS, 40), 0, 1)
    fibre = 0.5 + (waves - 0.5) * contrast + 0.10 * smooth_noise(rng, TORUS, (3, 9))
    ridges = np.sin(phase / 2 + 1.3) + 1.1 * smooth_noise(rng, TORUS, 18)
    solid = 1 - 0.75 * np.clip(5 * (ridges - 2.15), 0, 1)
    grain = 0.5 * smooth_noise(rng, TORUS, 0.8) + 0.5 * smooth_noise(rng, TORUS, 2.2)
    eosin = np.maximum(0.14 + 0.19 * fibre + 0.035 * grain, 0) * solid
    haematoxylin = np.maximum(0.035 + 0.02 * grain + 0.02 * fibre, 0) * solid
    return Texture(_repeat(eosin), _repeat(haematoxylin), _repeat(grain), _directions(phase))


def _repeat(field: Field) -> Field:
    return np.pad(field, (0, BLOCK), mode="wrap").astype(np.float32)


def _directions(phase: Field) -> Field:
    """Direction of the fibres, along which the phase stays the same, per 8 px of the torus."""
    slope_y = np.sin(np.roll(phase, -1, 0) - phase)
    slope_x = np.sin(np.roll(phase, -1, 1) - phase)
    blocks = (TORUS // STEP, STEP, TORUS // STEP, STEP)
    twice_x = (slope_x**2 - slope_y**2).reshape(blocks).mean(axis=(1, 3))
    twice_y = (2 * slope_x * slope_y).reshape(blocks).mean(axis=(1, 3))
    return np.asarray(np.arctan2(twice_y, twice_x) / 2 + np.pi / 2, np.float32)


@cache
def make_stamps() -> dict[str, Image]:
    """Nuclei by kind: (24 * 6, 36, 36) uint8, angle by angle, with `FULL` for darkness 1."""
    rng = np.random.default_rng(11)
    return {
        kind: np.stack(
            [_draw_nucleus(rng, style, angle * np.pi / ANGLES)
             for angle in range(ANGLES) for _ in range(VARIANTS)]
        )
        for kind, style in STYLES.items()
    }  # fmt: skip


def _draw_nucleus(rng: Generator, style: NucleusStyle, angle: float) -> Image:
    """One nucleus with a wavy outline, a soft edge of 1.2 px, chromatin and perhaps a nucleolus."""
    place = np.arange(STAMP) - (STAMP - 1) / 2
    x, y = place[None, :], place[:, None]
    long, short = rng.uniform(*style.long), rng.uniform(*style.short)
    along = (np.cos(angle) * x + np.sin(angle) * y) / long
    across = (np.cos(angle) * y - np.sin(angle) * x) / short
    theta, phases = np.arctan2(across, along), rng.uniform(0, 2 * np.pi, 2)
    wave = 1 + 0.07 * np.sin(2 * theta + phases[0]) + 0.05 * np.sin(3 * theta + phases[1])
    reach = np.hypot(along, across) / wave
    width = np.hypot(x, y) / np.maximum(np.hypot(along, across), 1e-6)  # px per unit of reach
    shape = np.clip((1 - reach) * width / 1.2 + 0.5, 0, 1)
    inside = 1 - style.vesicular * np.clip(1 - reach**2, 0, 1)
    inside *= 1 + style.chromatin * smooth_noise(rng, STAMP, 1.4)
    if style.nucleolus:
        away = rng.uniform(-2.5, 2.5, 2)
        inside += 0.45 * np.exp(-((x - away[0]) ** 2 + (y - away[1]) ** 2) / (2 * 1.7**2))
    value = FULL * rng.uniform(*style.darkness) * shape * inside
    stamp: Image = np.clip(np.rint(value), 0, 255).astype(np.uint8)
    return stamp


def paint(plan: Plan, rng: Generator) -> Image:
    """The slide at level 0.

    Args:
        rng: of this slide's staining, light, and choice of nuclei.

    Returns:
        (5376, 5376, 3) uint8 RGB.

    Cost: about 0.5 s on one core.
    """
    return _Painter(plan, rng).paint()


class _Painter:
    def __init__(self, plan: Plan, rng: Generator) -> None:
        self.plan = plan
        self.texture = make_texture()
        self.nuclei = stamp_nuclei(plan, rng)
        stains = np.stack([HAEMATOXYLIN, EOSIN]) + rng.normal(0, 0.025, (2, 3))
        strength = rng.uniform(0.85, 1.15, 2)
        self.white = np.clip(rng.uniform(238, 246) + rng.normal(0, 1, 3), 236, 247)
        exponents = -np.log(10) * strength[:, None] * stains  # (2, 3), per unit of concentration
        self.absorb = exponents.astype(np.float32)
        self._mix(rng)

    def _mix(self, rng: Generator) -> None:
        """Maps of the share of stroma, and of what the other structures add to either stain."""
        plan = self.plan
        stroma = np.ones((MAP, MAP), np.float32)
        eosin = np.zeros((MAP, MAP), np.float32)
        haematoxylin = np.zeros((MAP, MAP), np.float32)
        for share, e, h in (
            (plan.epithelium, 0.20, 0.12),
            (plan.nests, 0.19, 0.17),
            (0.7 * plan.ground, 0.12, 0.10),
        ):
            stroma *= 1 - share
            eosin += (e - eosin) * share
            haematoxylin += (h - haematoxylin) * share
        solid = plan.tissue * (1 - plan.lumen)
        thickness = 1 + 0.10 * smooth_noise(rng, MAP, 45)
        self.solid, self.thickness, self.stroma, self.eosin, self.haematoxylin = (
            np.pad(field, 1, mode="edge")
            for field in (solid, thickness, stroma, eosin, haematoxylin)
        )

    def paint(self) -> Image:
        image = np.empty((SIDE, SIDE, 3), np.uint8)
        glass = np.empty((BLOCK, BLOCK, 3), np.uint8)
        grain = self.texture.grain[:BLOCK, :BLOCK]
        self._expose(glass, [np.zeros_like(grain)] * 3, grain)
        for y in range(0, SIDE, BLOCK):
            for x in range(0, SIDE, BLOCK):
                block = image[y : y + BLOCK, x : x + BLOCK]
                if self._map(self.solid, y, x).max() > 0.3:
                    self._paint_block(block, y, x)
                else:
                    block[:] = glass
        return image

    def _map(self, field: Field, y: int, x: int) -> Field:
        side = BLOCK // STEP + 2
        return field[y // STEP : y // STEP + side, x // STEP : x // STEP + side]

    def _enlarge(self, field: Field, y: int, x: int) -> Field:
        return enlarge(self._map(field, y, x), STEP)

    def _paint_block(self, block: Image, y: int, x: int) -> None:
        rows = slice((y + self.plan.offset[1]) % TORUS, (y + self.plan.offset[1]) % TORUS + BLOCK)
        columns = slice(
            (x + self.plan.offset[0]) % TORUS, (x + self.plan.offset[0]) % TORUS + BLOCK
        )
        grain = self.texture.grain[rows, columns]
        eosin, haematoxylin = self._ground(y, x, rows, columns)
        nuclei = self.nuclei[y + MARGIN : y + MARGIN + BLOCK, x + MARGIN : x + MARGIN + BLOCK]
        if nuclei.any():
            nucleus = nuclei * np.float32(1 / FULL)
            haematoxylin += nucleus * (0.95 + 0.05 * grain)
            eosin *= 1 - 0.45 * np.minimum(1.5 * nucleus, 1)
        amount = self._amount(y, x)
        haematoxylin *= amount
        eosin *= amount
        losses = [h * haematoxylin + e * eosin for h, e in self.absorb.T]
        self._expose(block, losses, grain)

    def _amount(self, y: int, x: int) -> Field:
        """Thickness of the tissue; its edges are sharpened after enlarging."""
        amount = self._enlarge(self.thickness, y, x)
        if self._map(self.solid, y, x).min() < 1:
            amount *= np.clip(2.5 * self._enlarge(self.solid, y, x) - 0.75, 0, 1)
        return amount

    def _ground(self, y: int, x: int, rows: slice, columns: slice) -> tuple[Field, Field]:
        """Concentrations of eosin and haematoxylin without nuclei, before thinning out at edges."""
        eosin = self.texture.eosin[rows, columns]
        haematoxylin = self.texture.haematoxylin[rows, columns]
        if self._map(self.stroma, y, x).min() == 1:
            return eosin.copy(), haematoxylin.copy()
        stroma = self._enlarge(self.stroma, y, x)
        mottle = 1 + 0.15 * self.texture.grain[rows, columns]
        return (
            eosin * stroma + self._enlarge(self.eosin, y, x) * mottle,
            haematoxylin * stroma + self._enlarge(self.haematoxylin, y, x) * mottle,
        )

    def _expose(self, block: Image, losses: list[Field], grain: Field) -> None:
        """Write the transmitted light, given the natural logarithm of what each channel keeps."""
        noise = GRAIN * grain + 0.5
        for channel, loss in enumerate(losses):
            value = np.exp(loss)
            value *= np.float32(self.white[channel])
            value += noise
            block[..., channel] = value


def stamp_nuclei(plan: Plan, rng: Generator) -> Image:
    """All nuclei of a slide; where two overlap, the darker value holds.

    Returns:
        (5376 + 36, 5376 + 36) uint8, with a margin of 18 px on every side.
    """
    canvas = np.zeros((SIDE + STAMP, SIDE + STAMP), np.uint8)
    for nuclei in plan.nuclei:
        stamps = make_stamps()[nuclei.kind]
        turn = np.rint(nuclei.angles * ANGLES / np.pi).astype(int) % ANGLES
        chosen = turn * VARIANTS + rng.integers(0, VARIANTS, len(turn))
        corners = np.rint(nuclei.centres).astype(int)
        for (x, y), stamp in zip(corners.tolist(), chosen.tolist(), strict=True):
            place = canvas[y : y + STAMP, x : x + STAMP]
            np.maximum(place, stamps[stamp], out=place)
    return canvas
