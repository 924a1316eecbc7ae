"""How much memory a network needs, told before it runs."""

from __future__ import annotations

from wsizoo_plugin_pixelmamba.counting import tokens_of
from wsizoo_plugin_pixelmamba.settings import Settings

BYTES = 4  # of a float32
MB = 1_000_000
COPIES = 3  # of a layer's tokens at once where they are fused and expanded


def working_floats(settings: Settings, width: int, training: bool = True) -> int:
    """Values a token that a layer of this width works with, beside what it is given and gives.

    Counted where scans keep no states: those of numba, and CUDA's.
    """
    inner = settings.expand * width
    of_scan = settings.dt_rank(width) + 2 * settings.d_state
    return 20 * inner + 4 * of_scan if training else 8 * inner + of_scan


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
    """The most memory that tensors of a slide take at once, beside the weights and their slopes.

    In training with `recompute` each layer keeps its input, and one layer works; in evaluation
    nothing is kept. It presumes float32, and a scan that keeps no states: any but the reference.
    What a process holds may be up to twice that: glibc keeps much of what it is given back in
    blocks of less than 32 MB (with MALLOC_MMAP_THRESHOLD_=1048576 in the environment it does not).

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
        peak = max(peak, kept + own + working + COPIES * tokens * width)
        kept += own if training else 0
    return BYTES * peak
