"""From the tokens of all stages to one vector a slide, and how much each cell gave to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsizoo.ops import segment_max, segment_mean, segment_softmax, segment_sum
from wsizoo_plugin_span.encoder import Staged
from wsizoo_plugin_span.layers import ACTIVATIONS
from wsizoo_plugin_span.settings import SlideSettings

Weights = dict[int, Tensor]  # by stage, (T,) of its cells


class Pooling(nn.Module):
    """The base: pool, LayerNorm, dropout; the head's linear map follows."""

    def __init__(self, settings: SlideSettings) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.pooled_width) if settings.pool_norm else None
        self.dropout = nn.Dropout(settings.pool_dropout)

    def forward(self, stages: list[Staged]) -> Tensor:
        """(B, out_dim)."""
        pooled = self.pool(stages)
        return self.dropout(pooled if self.norm is None else self.norm(pooled))

    def pool(self, stages: list[Staged]) -> Tensor:
        raise NotImplementedError

    def weights(self, stages: list[Staged]) -> Weights:
        """How much each cell of the stages that are read gave; empty: not known."""
        raise NotImplementedError


class FromGlobals(Pooling):
    """Of each stage's first global token: the sum, the mean, all side by side, or the last.

    `weights`: the attention that global tokens pay to the tokens of each stage that is read.
    """

    def __init__(self, settings: SlideSettings) -> None:
        super().__init__(settings)
        self.pooling = settings.pooling

    def pool(self, stages: list[Staged]) -> Tensor:
        firsts = [stage.globals_[:, 0] for stage in stages]  # (B, C) each
        if self.pooling == "concat":
            return torch.cat(firsts, -1)
        if self.pooling == "last":
            return firsts[-1]
        total = torch.stack(firsts).sum(0)
        return total / len(firsts) if self.pooling == "mean" else total

    def weights(self, stages: list[Staged]) -> Weights:
        first = len(stages) - 1 if self.pooling == "last" else 0
        found = {i: stages[i].attention() for i in range(first, len(stages))}
        return {i: paid for i, paid in found.items() if paid is not None}


class Addition(Pooling):
    """Maximum plus mean of the last stage's tokens.

    `weights`: the share of channels whose maximum a cell holds.
    """

    def pool(self, stages: list[Staged]) -> Tensor:
        tokens, offsets = stages[-1].tokens, stages[-1].level.offsets
        pooled: Tensor = segment_max(tokens, offsets) + segment_mean(tokens, offsets)
        return pooled

    def weights(self, stages: list[Staged]) -> Weights:
        last = stages[-1]
        highest = segment_max(last.tokens, last.level.offsets)[last.level.segments]
        winners = (last.tokens == highest).to(last.tokens.dtype)  # (T, C)
        tied = segment_sum(winners, last.level.offsets)[last.level.segments]
        return {len(stages) - 1: (winners / tied).mean(1)}


class MultiAttention(Pooling):
    """Attention pooling of each stage's tokens, mixed by learned weights of the stages.

    Per stage f = sum_t softmax_t(w . act(V x_t)) x_t; with a global token g: alpha = sigmoid(
    context + router([f, g])), f <- (1 - alpha) f + alpha g. The stages' weights are
    softmax_i(scale_i + router(f_i)).

    `weights`: a cell's pooling weight times its stage's weight.
    """

    def __init__(self, settings: SlideSettings) -> None:
        super().__init__(settings)
        dim, n = settings.width(0), settings.stages
        hidden = dim // settings.pool_divisor
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim, hidden),
                ACTIVATIONS[settings.pool_activation](),
                nn.Linear(hidden, 1),
            )
            for _ in range(n)
        )
        self.scale = nn.Parameter(torch.zeros(n))
        self.scale_router = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.scale_router.weight)
        self.context, self.context_router = None, None
        if settings.n_tokens:
            self.context = nn.Parameter(torch.full((n,), -2.0))
            self.context_router = nn.Linear(2 * dim, 1)
            nn.init.zeros_(self.context_router.weight)
            nn.init.zeros_(self.context_router.bias)

    def attend(self, stages: list[Staged]) -> list[Tensor]:
        """(T, 1) of each stage, softmax weights of its tokens."""
        return [
            segment_softmax(score(stage.tokens), stage.level.offsets)
            for score, stage in zip(self.stages, stages, strict=True)
        ]

    def mix(self, stages: list[Staged], attention: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, n, C) of each stage, and the stages' weights (B, n)."""
        found = []
        for i, (stage, weights) in enumerate(zip(stages, attention, strict=True)):
            f = segment_sum(weights * stage.tokens, stage.level.offsets)  # (B, C)
            if self.context is not None and self.context_router is not None:
                g = stage.globals_[:, 0]
                alpha = self.context[i] + self.context_router(torch.cat([f, g], -1))  # (B, 1)
                alpha = torch.sigmoid(alpha)
                f = (1 - alpha) * f + alpha * g
            found.append(f)
        each = torch.stack(found, 1)  # (B, n, C)
        return each, torch.softmax(self.scale + self.scale_router(each)[..., 0], -1)

    def pool(self, stages: list[Staged]) -> Tensor:
        attention = [self.dropout(weights) for weights in self.attend(stages)]
        each, share = self.mix(stages, attention)
        return (share[..., None] * each).sum(1)

    def weights(self, stages: list[Staged]) -> Weights:
        attention = self.attend(stages)
        share = self.mix(stages, attention)[1]  # (B, n)
        return {
            i: weights[:, 0] * share[stage.level.segments, i]
            for i, (stage, weights) in enumerate(zip(stages, attention, strict=True))
        }


def make_pooling(settings: SlideSettings) -> Pooling:
    """The pooling that the settings name."""
    kinds: dict[str, type[Pooling]] = {"addition": Addition, "multiattn": MultiAttention}
    return kinds.get(settings.pooling, FromGlobals)(settings)
