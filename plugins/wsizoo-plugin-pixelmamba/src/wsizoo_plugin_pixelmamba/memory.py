"""How much memory a network needs, told before it runs."""

from __future__ import annotations

from wsizoo_plugin_pixelmamba.counting import parameters, tokens_of
from wsizoo_plugin_pixelmamba.settings import Settings

BYTES = 4  # of a float32
MB = 1_000_000
COPIES = 3  # of a layer's tokens at once where they are fused and expanded
ON_GPU = 8  # times `working_mb`: pieces that keep a cache warm are too small for a GPU
LIBRARIES = 220 * MB  # what torch and numba load, and buffers of theirs, when a network first runs


def working_floats(
    settings: Settings, width: int, training: bool = True, half: bool = False
) -> int:
    """Values a token that a layer of this width works with, beside what it is given and gives.

    Measured, where scans keep no states: all backends but the reference.

    Args:
        half: under autocast to bfloat16, whose copies come on top of what stays float32.
    """
    inner = settings.expand * width
    of_scan = settings.dt_rank(width) + 2 * settings.d_state
    each, of_both = (15, 3) if training else (7, 1)
    return (each + 2 * half) * inner + (of_both + half) * of_scan


def piece_of(settings: Settings, width: int, device: str = "cpu") -> int:
    """Tokens on which a layer of this width may work at once, on such a device."""
    each = BYTES * working_floats(settings, width)
    room = settings.working_mb * MB * (1 if device == "cpu" else ON_GPU)
    return max(room // each, 64)


def peak_bytes(
    settings: Settings,
    regions: int,
    region: tuple[int, int] = (224, 224),
    training: bool = True,
    half: bool = False,
) -> int:
    """The most memory that tensors of a slide take at once, beside the weights and their slopes.

    In training with `recompute` each layer keeps its input, and one layer works; in evaluation
    nothing is kept. It presumes a scan that keeps no states: any but the reference.

    Args:
        regions: of the slide. region: their height and width, px.
        half: under autocast to bfloat16. Tokens between the layers stay float32, so on a CPU this
            takes more memory, not less.
    """
    kept = regions * region[0] * region[1] * 3 // BYTES  # the uint8 pixels themselves
    peak = 0
    for tokens, width in zip(tokens_of(settings, regions, region), settings.widths, strict=True):
        own = tokens * width
        at_once = min(tokens, piece_of(settings, width))
        if training and not settings.recompute:
            at_once, own = tokens, own + tokens * working_floats(settings, width, half=half) // 2
        working = at_once * working_floats(settings, width, training, half)
        peak = max(peak, kept + own + working + COPIES * tokens * width)
        kept += own if training else 0
    return BYTES * peak


def process_bytes(
    settings: Settings,
    regions: int,
    region: tuple[int, int] = (224, 224),
    training: bool = True,
    half: bool = False,
) -> int:
    """What a process holds at most beyond what it held when the network was built, on a CPU.

    `peak_bytes`, the normalised pixels, the libraries, and in training the gradients, AdamW's two
    values a parameter, and as much again as a layer works with: within a piece glibc finds room in
    few of its holes. What it holds between layers they give back: `wsizoo.ops.memory.give_back`.
    """
    pixels = BYTES * 3 * regions * region[0] * region[1]
    told = LIBRARIES + pixels + peak_bytes(settings, regions, region, training, half)
    if not training:
        return told
    pairs = zip(tokens_of(settings, regions, region), settings.widths, strict=True)
    holes = max(
        min(tokens, piece_of(settings, width)) * working_floats(settings, width, half=half)
        for tokens, width in pairs
    )
    return told + BYTES * (holes + 3 * parameters(settings))
