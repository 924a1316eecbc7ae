"""Smooth random fields, jittered grids, bilinear enlargement: what synthetic tissue is made of."""

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Field = NDArray[np.float32]
Points = NDArray[np.float64]
Generator = np.random.Generator


def smooth_noise(rng: Generator, side: int, sigma: float | tuple[float, float]) -> Field:
    """White noise on a torus after a Gaussian low-pass; mean 0, variance 1.

    Args:
        side: of the square field, px.
        sigma: of the Gaussian, px; a pair is (along rows, along columns).

    Returns:
        (side, side) float32.
    """
    along_y, along_x = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    spectrum = scipy.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    decay_y = np.exp(-2 * (np.pi * along_y * np.fft.fftfreq(side)) ** 2)
    decay_x = np.exp(-2 * (np.pi * along_x * np.fft.rfftfreq(side)) ** 2)
    spectrum *= decay_y.astype(np.float32)[:, None] * decay_x.astype(np.float32)
    spectrum[0, 0] = 0
    field: Field = scipy.fft.irfft2(spectrum, s=(side, side))
    field /= field.std()
    return field


def jittered_grid(
    rng: Generator, side: int, pitch: float, jitter: float, staggered: bool = False
) -> Points:
    """Points of a square grid, each moved at random by at most `jitter` along either axis.

    Args:
        side: number of points along either axis.
        pitch: their distance, px; the unmoved points are centred in squares of this edge.
        staggered: every second row is moved by half a pitch, as in a honeycomb.

    Returns:
        (side * side, 2) float64, px, (x, y).
    """
    row, column = (index.ravel() for index in np.indices((side, side)))
    shift = (row % 2) / 2 - 0.25 if staggered else 0.0
    points = (np.stack([column + shift, row], axis=1) + 0.5) * pitch
    moved: Points = points + rng.uniform(-jitter, jitter, points.shape)
    return moved


def enlarge(field: Field, factor: int) -> Field:
    """Bilinear enlargement of the inside of a field; the outermost values serve only the next.

    Written with slices rather than as matrix products: these would wake the threads of the linear
    algebra library, which on a busy machine wait for each other longer than they work.

    Returns:
        ((H - 2) * factor, (W - 2) * factor) float32.
    """
    weight = ((np.arange(factor) + 0.5) / factor).astype(np.float32)
    cut = factor // 2
    step = np.diff(field, axis=1)[:, :, None]
    wide = (field[:, :-1, None] + weight * step).reshape(len(field), -1)  # (H, (W-1)*factor)
    wide = wide[:, cut : cut - factor]  # (H, (W-2)*factor)
    step = np.diff(wide, axis=0)[:, None]
    tall: Field = (wide[:-1, None] + weight[:, None] * step).reshape(-1, wide.shape[1])
    return tall[cut : cut - factor]  # ((H-2)*factor, (W-2)*factor)
