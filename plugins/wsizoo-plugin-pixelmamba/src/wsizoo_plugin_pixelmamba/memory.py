"""How much memory a network needs, told before it runs."""

from __future__ import annotations

from wsizoo_plugin_pixelmamba.counting import tokens_of
from wsizoo_plugin_pixelmamba.settings import Settings

BYTES = 4  # of a float32
MB = 1_000_000
COPIES = 4  # of a layer's tokens at once where they are fused and expanded
LEFT_BEHIND = 1.4  # factor of a working layer's memory: the next one cannot use all of it again


def working_floats(settings: Settings, width: int, training: bool = True) -> int:
    """Values a token that a layer of this width works with, beside what it is given and gives.

    Measured (Linux, glibc) with a scan that keeps no states. Somewhat more than half of them are
    alive at once; the rest is memory that the C library, which is given back tensors of less than
    32 MB, does not return at once.
    """
    inner = settings.expand * width
    of_scan = settings.dt_rank(width) + 2 * settings.d_state
    return 35 * inner + 7 * of_scan if training else 16 * inner + 2 * of_scan


def piece_of(settings: Settings, width: int) -> int:
    """Tokens on which a layer of this width may work at once."""
    each = BYTES * working_floats(settings, width)
    return max(settings.working_mb * MB // each, 64)


def peak_bytes(
    settings: Settings,
    regions: int,
    region: tuple[int, int] = (224, 224),
    training: bool = True,
) -> int:
    """The most memory that a slide takes at once, in float32, beside the weights and their slopes.

    In training with `recompute` each layer keeps its input, and one layer works; in evaluation
    nothing is kept. It presumes a scan that keeps no states: any but the reference.

    Args:
        regions: of the slide. region: their height and width, px.
    """
    kept = regions * region[0] * region[1] * 3 // BYTES  # the uint8 pixels themselves
    peak = 0
    for tokens, width in zip(tokens_of(settings, regions, region), settings.widths, strict=True):
        own = tokens * width
        at_once = min(tokens, piece_of(settings, width))
        if training and not settings.recompute:
            at_once, own = tokens, own + tokens * working_floats(settings, width) // 2
        working = at_once * working_floats(settings, width, training)
        working = round(working * LEFT_BEHIND) if training else working
        peak = max(peak, kept + own + working + COPIES * tokens * width)
        kept += own if training else 0
    return BYTES * peak
