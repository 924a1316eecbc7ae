"""How much memory a network needs, told before it runs."""

from __future__ import annotations

from wsizoo_plugin_pixelmamba.settings import Settings

BYTES = 4  # of a float32
MB = 1_000_000


def working_floats(settings: Settings, width: int) -> int:
    """Values a token that a layer of this width holds at most, forward and backward together."""
    inner = settings.expand * width
    return 16 * inner + 6 * (settings.dt_rank(width) + 2 * settings.d_state)


def piece_of(settings: Settings, width: int) -> int:
    """Tokens on which a layer of this width may work at once."""
    each = BYTES * working_floats(settings, width)
    return max(settings.working_mb * MB // each, 64)
