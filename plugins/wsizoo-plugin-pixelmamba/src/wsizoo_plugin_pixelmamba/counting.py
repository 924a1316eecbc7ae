"""Parameters and multiply-adds of a network, from its settings alone."""

from __future__ import annotations

from dataclasses import dataclass

from wsizoo_plugin_pixelmamba.fusion import merges
from wsizoo_plugin_pixelmamba.settings import Settings

PER_UPDATE = 3  # multiply-adds of one step of one state, beside one exponential


@dataclass(frozen=True)
class MultiplyAdds:
    """Of one slide, one way (forward), by part; norms, gates and expansions are left out.

    Args:
        projections: the blocks' linear maps in and out.
        x_proj, dt_proj, conv: of both directions.
        updates: steps of single states in both directions, each `PER_UPDATE` and an exponential.
    """

    projections: int = 0
    x_proj: int = 0
    dt_proj: int = 0
    conv: int = 0
    updates: int = 0

    @property
    def published(self) -> int:
        """By the rule that gives the paper's Table 1: what a counter sees that does not look into
        the fused Mamba function. That this is its rule is inferred from the numbers."""
        return self.projections

    @property
    def complete(self) -> int:
        """All of it: linear maps, convolutions and scans."""
        maps = self.projections + self.x_proj + self.dt_proj + self.conv
        return maps + PER_UPDATE * self.updates


def regions_left(settings: Settings, regions: int) -> list[int]:
    """Regions that each layer is given, and what is left after the last."""
    left = [regions]
    for _ in settings.layers:
        n = regions if settings.count == "input" else left[-1]
        k = min(merges(settings.alpha, n, len(settings.layers)), left[-1] // 2)
        left.append(left[-1] - k)
    return left


def tokens_of(settings: Settings, regions: int, region: tuple[int, int] = (224, 224)) -> list[int]:
    """Tokens that each layer works on, CLS tokens among them."""
    pairs = zip(regions_left(settings, regions), settings.grids(region), strict=True)
    return [n * (h * w + 1) for n, (h, w) in pairs][: len(settings.layers)]


def multiply_adds(
    settings: Settings, regions: int = 1, region: tuple[int, int] = (224, 224)
) -> MultiplyAdds:
    """Of one slide.

    Args:
        regions: of the slide. region: their height and width, px.
    """
    total = MultiplyAdds()
    tokens = tokens_of(settings, regions, region)
    for count, width in zip(tokens, settings.widths, strict=True):
        inner, rank = settings.expand * width, settings.dt_rank(width)
        total = MultiplyAdds(
            total.projections + count * 3 * inner * width,
            total.x_proj + count * 2 * inner * (rank + 2 * settings.d_state),
            total.dt_proj + count * 2 * inner * rank,
            total.conv + count * 2 * inner * settings.d_conv,
            total.updates + count * 2 * inner * settings.d_state,
        )
    return total


def parameters(settings: Settings) -> int:
    """Trained values without a head: CLS token, layers and the final norm."""
    per_norm = 1 if settings.norm == "rms" else 2
    total = 3 + (settings.out_dim * per_norm if settings.final_norm else 0)
    for width, kind in zip(settings.widths, settings.layers, strict=True):
        inner, rank, n = settings.expand * width, settings.dt_rank(width), settings.d_state
        convs = (1 if settings.share_conv else 2) * inner * (settings.d_conv + 1)
        maps = 3 * inner * width + 2 * inner * (rank + 2 * n) + 2 * (rank + 1) * inner
        total += maps + convs + 2 * inner * (n + 1) + width * per_norm
        if settings.cls_mode == "linear" and kind.endswith("cat"):
            total += 2 * width * width
    return total
