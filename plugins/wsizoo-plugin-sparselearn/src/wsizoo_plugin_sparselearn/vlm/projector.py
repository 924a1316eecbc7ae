"""From features of patches to vectors that a language model reads in place of words."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsizoo.errors import SpecError

KINDS = ("mlp2x_gelu", "linear")
CODE = 6  # numbers of a position


class Projector(nn.Module):
    """(K, D) features -> (K, H) vectors of the language model's dtype.

    Args:
        in_dim: D. width: H, of the language model's embeddings.
        std: of those embeddings: the output begins with it.
        kind: "mlp2x_gelu" (Linear, GELU, Linear), or "linear".
        hidden: width between the two layers; default H.
        positions: append where a patch lies on its slide, see `position_code`.
        norm: LayerNorm, then one learned scale that begins at `std`. False: as published, neither.

    Its own numbers are float32; the cast to the language model's dtype comes last.
    Source: `mlp2x_gelu` of LLaVA, as SlideChat has it. Differs: positions, and the norm.
    """

    def __init__(
        self,
        in_dim: int,
        width: int,
        std: float,
        kind: str = "mlp2x_gelu",
        hidden: int | None = None,
        positions: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise SpecError(f"projector.kind is '{kind}', expected {' or '.join(KINDS)}")
        if hidden is not None and kind == "linear":
            raise SpecError(f"projector.hidden is {hidden}, but a linear projector has none")
        self.positions = positions
        in_dim += CODE * positions
        if kind == "linear":
            self.layers: nn.Module = nn.Linear(in_dim, width)
        else:
            between = hidden or width
            self.layers = nn.Sequential(
                nn.Linear(in_dim, between), nn.GELU(), nn.Linear(between, width)
            )
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.scale = nn.Parameter(torch.tensor(float(std))) if norm else None

    def forward(self, features: Tensor, code: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Features (K, D) and, with `positions`, their codes (K, 6) -> (K, H)."""
        own = next(self.parameters()).dtype
        x = features.to(own)
        if code is not None:
            x = torch.cat([x, code.to(own)], 1)  # (K, D + 6)
        x = self.norm(self.layers(x))  # (K, H)
        found: Tensor = (x if self.scale is None else x * self.scale).to(dtype)
        return found


def position_code(coords: Tensor) -> Tensor:
    """Where patches lie within their slide: u, sin(pi u), cos(pi u) of x, then of y.

    Args:
        coords: (N, 2) int64, level-0 px, of all patches of the slide: u is 0 at the left (top) edge
            of what they cover and 1 at the right (bottom) one; 0 where they cover no distance.

    Returns: (N, 6) float32: u_x, u_y, sin of both, cos of both.
    """
    from_edge = (coords - coords.amin(0)).double()
    u = (from_edge / from_edge.amax(0).clamp(min=1)).float()  # (N, 2)
    return torch.cat([u, torch.sin(math.pi * u), torch.cos(math.pi * u)], 1)  # (N, 6)
