"""The denoiser: a Transformer block in which each patch attends to itself alone."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor, nn


class SelfAlone(nn.Module):
    """Attention whose mask lets a patch see only itself: its weight is 1, so queries and keys fall.

    Reads state dicts of `torch.nn.MultiheadAttention` too: of `in_proj_*` the last third.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.register_load_state_dict_pre_hook(_take_values)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out_proj(self.value(x))
        return found


def _take_values(_: nn.Module, state: MutableMapping[str, Any], prefix: str, *__: Any) -> None:
    for name in ("weight", "bias"):
        joined = state.pop(f"{prefix}in_proj_{name}", None)
        if joined is not None:
            state[f"{prefix}value.{name}"] = joined[-(len(joined) // 3) :]


class Denoiser(nn.Module):
    """y + attention of a patch to itself, then + a feed-forward layer; pre-norm, exact GELU.

    No patch learns anything of another. It starts as the identity: both output maps are 0. The
    layout is that of `torch.nn.TransformerEncoderLayer(norm_first=True, activation="gelu")`, whose
    state dicts it reads.

    Args:
        dim: width D of the features. feedforward: width of the hidden layer.

    Source: DiffPrune, https://arxiv.org/abs/2605.28051, Section 4.4.
    Differs: norm, activation, width and start are ours; it says a Transformer block, no more.
    """

    def __init__(self, dim: int, feedforward: int) -> None:
        super().__init__()
        self.self_attn = SelfAlone(dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward), nn.Linear(feedforward, dim)
        for layer in (self.self_attn.out_proj, self.linear2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor) -> Tensor:
        y = y + self.self_attn(self.norm1(y))
        found: Tensor = y + self.linear2(nn.functional.gelu(self.linear1(self.norm2(y))))
        return found
