"""Glands of the synthetic tissue: rings of epithelium around a lumen."""

import numpy as np
from numpy.typing import NDArray

from wsizoo.demo.frame import MAP, SIDE, STEP, Flags, Nuclei, Window, window
from wsizoo.demo.noise import Field, Generator, Points


def grow_glands(rng: Generator, occupied: Flags) -> tuple[Field, Field, Nuclei]:
    """25 to 44 glands, clear of all else: maps of epithelium and lumen, and their radial nuclei.

    Their number and sizes are drawn before their places, so that they do not depend on how much
    room the other structures leave and tell nothing about these.
    """
    epithelium = np.zeros((MAP, MAP), np.float32)
    lumen = np.zeros((MAP, MAP), np.float32)
    occupied = occupied.copy()
    centres, angles = [np.empty((0, 2))], [np.empty(0)]
    for gland in [_Gland(rng) for _ in range(rng.integers(25, 45))]:
        if not gland.settle(rng, occupied):
            continue
        place, far = gland.distances()
        occupied[place] |= far < gland.radius + 12
        ring = np.clip((gland.radius - far) / 6 + 0.5, 0, 1)
        epithelium[place] = np.maximum(epithelium[place], ring)
        hollow = np.clip((0.42 * gland.radius - far) / 7 + 0.5, 0, 1)
        lumen[place] = np.maximum(lumen[place], hollow)
        nuclei, outward = gland.ring(rng)
        centres.append(nuclei)
        angles.append(outward)
    return epithelium, lumen, Nuclei("epithelial", np.concatenate(centres), np.concatenate(angles))


class _Gland:
    """A wavy ellipse; its distances are in px along the direction in which it is `radius` wide."""

    def __init__(self, rng: Generator) -> None:
        self.centre = np.zeros(2)
        self.radius = rng.uniform(48, 95)
        self.elongation = rng.uniform(1, 1.45)
        self.angle = rng.uniform(0, np.pi)
        self.phases = rng.uniform(0, 2 * np.pi, 2)

    def settle(self, rng: Generator, occupied: Flags) -> bool:
        """Move to a random place with 12 px to spare around; False if 400 tries found none."""
        for centre in rng.uniform(0, SIDE, (400, 2)):
            column, row = (int(value) for value in centre // STEP)
            if occupied[row, column]:
                continue
            self.centre = centre
            place, far = self.distances()
            if not occupied[place][far < self.radius + 12].any():
                return True
        return False

    def _wave(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        wave = 0.07 * np.sin(3 * theta + self.phases[0]) + 0.04 * np.sin(5 * theta + self.phases[1])
        return np.asarray(1 + wave)

    def distances(self) -> tuple[Window, NDArray[np.float64]]:
        """A window of the map around it, and the distance of every value there from the centre."""
        place, x, y = window(self.centre, 1.6 * self.radius * self.elongation)
        along = (np.cos(self.angle) * x + np.sin(self.angle) * y) / self.elongation
        across = np.cos(self.angle) * y - np.sin(self.angle) * x
        return place, np.hypot(along, across) / self._wave(np.arctan2(across, along))

    def ring(self, rng: Generator) -> tuple[Points, NDArray[np.float64]]:
        """Nuclei at 0.82 of the radius, about one per 12.5 px, and the angles pointing outwards."""
        middle = 0.82 * self.radius
        count = int(2 * np.pi * middle * (1 + self.elongation) / 2 / 12.5)
        theta = (np.arange(count) + rng.uniform(-0.25, 0.25, count)) * 2 * np.pi / count
        far = middle * self._wave(theta) + rng.uniform(-5, 5, count)
        along, across = far * np.cos(theta) * self.elongation, far * np.sin(theta)
        x = np.cos(self.angle) * along - np.sin(self.angle) * across
        y = np.sin(self.angle) * along + np.cos(self.angle) * across
        normal = np.arctan2(np.sin(theta) * self.elongation, np.cos(theta)) + self.angle
        return self.centre + np.stack([x, y], axis=1), normal
